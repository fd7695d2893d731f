"""What `maxlm generate` does with a path and prompts."""

import json
import math
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from maxlm.errors import DataError
from maxlm.evaluate.load import Loaded
from maxlm.evaluate.placing import open_model
from maxlm.evaluate.text import Piece, Prompts, encode_prompts, stream_text
from maxlm.parallel import runtime
from maxlm.saved import PARAMS

BETWEEN_TEXTS = "\n---\n"


def generate_texts(
    path: Path,
    texts: Sequence[str],
    *,
    mesh: str | None,
    dtype: str | None,
    weights: str = PARAMS,
    batch_size: int,
    as_json: bool,
    logprobs: bool,
    **options: Any,
) -> Iterator[str]:
    """What to print: texts with what continues them, as it comes; with `as_json` one line per text.

    Options are those of `stream_text`.
    """
    runtime.setup()
    loaded = open_model(path, mesh, dtype, min(batch_size, len(texts)), weights)
    yield from continued(
        loaded, encode_prompts(loaded.tokenizer, texts), texts, as_json, logprobs, batch_size=batch_size, **options
    )


def continued(
    loaded: Loaded, prompts: Prompts, shown: Sequence[str], as_json: bool, logprobs: bool, **options: Any
) -> Iterator[str]:
    """Of every prompt what to print; `shown` are prompts as the answers in JSON name them."""
    pieces = measured(loaded, prompts, stream_text(loaded, prompts.ids, first=prompts.first, **options))
    yield from _json_lines(pieces, shown, logprobs) if as_json else _in_order(pieces, prompts.texts)


def _in_order(pieces: Iterable[Piece], texts: Sequence[str]) -> Iterator[str]:
    """The texts one after the other: the first one that is not whole as it comes, later ones when it is their turn."""
    current, waiting, finished = 0, list(texts), set()
    for piece in pieces:
        waiting[piece.number] += piece.text
        finished |= {piece.number} if piece.finish else set()
        while current < len(texts):
            yield waiting[current]
            waiting[current] = ""
            if current not in finished:
                break
            current += 1
            yield BETWEEN_TEXTS if current < len(texts) else "\n"


def _json_lines(pieces: Iterable[Piece], prompts: Sequence[str], logprobs: bool) -> Iterator[str]:
    """One line per prompt, in their order: its text, number of tokens, why it ends, and log-probabilities if asked."""
    answers = [{"prompt": prompt, "text": "", "tokens": 0, "finish": None} for prompt in prompts]
    current, drawn = 0, [[] for _ in prompts]
    for piece in pieces:
        answer = answers[piece.number]
        answer["text"] += piece.text
        answer["tokens"] += len(piece.ids)
        answer["finish"] = piece.finish
        drawn[piece.number] += piece.logprobs
        while current < len(answers) and answers[current]["finish"]:
            more = {"logprobs": drawn[current]} if logprobs else {}
            yield json.dumps(answers[current] | more, ensure_ascii=False) + "\n"
            current += 1


def measured(loaded: Loaded, prompts: Prompts, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces; at their end stderr is told how many tokens came, how fast, and what is longer than it should be."""
    lengths, begin, first = [len(ids) for ids in prompts.ids], time.monotonic(), None
    total = rest = 0
    try:
        for piece in pieces:
            lengths[piece.number] += len(piece.ids)
            total += len(piece.ids)
            if first is None:
                first = time.monotonic()
            else:
                rest += len(piece.ids)
            yield piece
    finally:
        if first is not None:
            rate = rest / max(time.monotonic() - first, 1e-9)
            seconds = f"the first after {first - begin:.1f} s"
            print(f"{total} tokens, {seconds}, then {rate:.1f} per second", file=sys.stderr)
            warn_beyond(loaded, lengths)


def warn_beyond(loaded: Loaded, lengths: Sequence[int]) -> bool:
    """Whether texts are longer than the model is made for, which stderr is told.

    Rotations go on beyond that, so it is no error; what the model then says is worth less.
    """
    made_for = loaded.made_for or math.inf
    beyond = sum(length > made_for for length in lengths)
    if beyond:
        texts = "a text is" if len(lengths) == 1 else f"{beyond} of {len(lengths)} texts are"
        print(f"note: {texts} longer than the {made_for} tokens that the model is made for", file=sys.stderr)
    return beyond > 0


def for_terminal(text: str) -> str:
    """The text without what a terminal obeys: control characters but line breaks and tabs are written as numbers."""
    kept = (c in "\n\t" or unicodedata.category(c) != "Cc" for c in text)
    return "".join(c if keep else f"\\x{ord(c):02x}" for c, keep in zip(text, kept, strict=True))


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: one per line, or of a .jsonl file the "prompt" of every line; `DataError` without any."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    if path.suffix == ".jsonl":
        prompts = [_prompt_of(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    else:
        prompts = [line for line in lines if line]
    if not prompts:
        raise DataError(f"{path}: holds no prompt; expected one per line, or a .jsonl file with a 'prompt' on each")
    return prompts


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise DataError(f"{where}: expected an object with a text 'prompt', found {line[:60]}")
    return prompt
