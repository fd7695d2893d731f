"""What `maxlm generate --chat` does: answers to messages, or a conversation in the terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from maxlm.errors import ConfigError
from maxlm.evaluate.chat import Chat, read_messages
from maxlm.evaluate.generation import continued, warn_beyond
from maxlm.evaluate.load import Loaded
from maxlm.evaluate.placing import open_model
from maxlm.evaluate.text import Prompts, stream_text
from maxlm.parallel import runtime
from maxlm.saved import PARAMS

MARKER = "> "
HELP = "/exit or Ctrl-D ends, /new begins a new conversation, Ctrl-C stops an answer"


def answer_texts(
    path: Path,
    texts: Sequence[str],
    system: str | None,
    *,
    mesh: str | None,
    dtype: str | None,
    weights: str = PARAMS,
    batch_size: int,
    as_json: bool,
    logprobs: bool,
    **options: Any,
) -> Iterator[str]:
    """What to print as answers: to each text as a user's one message, or without any to the messages on stdin."""
    runtime.setup()
    conversations = [[{"role": "user", "content": text}] for text in texts] or [read_messages(sys.stdin.read())]
    loaded = open_model(path, mesh, dtype, min(batch_size, len(conversations)), weights)
    chat = Chat(loaded.tokenizer, loaded.stop_ids)
    asked = [conversation[-1]["content"] for conversation in conversations]
    ids = [chat.encode(_system(system) + conversation) for conversation in conversations]
    options |= {"stop_ids": chat.stop_ids, "batch_size": batch_size}
    yield from continued(loaded, Prompts([""] * len(ids), ids, None), asked, as_json, logprobs, **options)


def converse(
    path: Path,
    system: str | None,
    show: Callable[[str], None],
    *,
    mesh: str | None,
    dtype: str | None,
    weights: str = PARAMS,
    max_tokens: int,
    seed: int,
    **options: Any,
) -> None:
    """Read lines from the terminal and show answers as they come, until the end of the input or /exit.

    Every answer reads the whole conversation again: templates may rewrite earlier turns, and reading is fast.
    """
    runtime.setup()
    loaded = open_model(path, mesh, dtype, 1, weights)
    chat = Chat(loaded.tokenizer, loaded.stop_ids)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (editing and history of the lines that input() reads)
    print(HELP, file=sys.stderr)
    messages, told = _system(system), False
    while (line := _read_line()) is not None:
        if line == "/new":
            messages = _system(system)
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                answer, length = _answer(loaded, chat, asked, show, max_tokens, seed=seed + len(messages), **options)
            except ConfigError as error:  # of this message: the conversation goes on without it
                print(f"error: {error}", file=sys.stderr)
            else:
                messages = [*asked, {"role": "assistant", "content": answer}]
                told = told or warn_beyond(loaded, [length])


def _read_line() -> str | None:
    try:
        line = input(MARKER).strip()
    except EOFError:
        print(file=sys.stderr)
        return None
    return None if line == "/exit" else line


def _answer(
    loaded: Loaded, chat: Chat, messages: list, show: Callable[[str], None], max_tokens: int, **options: Any
) -> tuple[str, int]:
    """The answer, or what there was of it when Ctrl-C stopped it, and the length of the conversation in tokens."""
    ids, answer = chat.encode(messages), ""
    length = len(ids)
    rows = loaded.model.learned_positions
    if rows is not None:
        max_tokens = max(1, min(max_tokens, rows - length + 1))
    try:
        for piece in stream_text(loaded, [ids], stop_ids=chat.stop_ids, max_tokens=max_tokens, **options):
            show(piece.text)
            answer, length = answer + piece.text, length + len(piece.ids)
            if piece.finish == "length":
                show(" [...]")
    except KeyboardInterrupt:
        show(" [stopped]")
    show("\n")
    return answer, length


def _system(text: str | None) -> list[dict[str, str]]:
    return [] if text is None else [{"role": "system", "content": text}]
