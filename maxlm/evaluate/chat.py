"""Conversations with a model: messages to ids, and ids to answers.

What a person writes never becomes a special token: only the template's own text is encoded with special tokens
recognised. So no message can end its turn or begin another's, as `<|im_end|>` in a pasted text would. (The template
libraries of others encode the whole rendered text alike by default; messages without special tokens are encoded to
the same ids here and there.)
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError, MaxlmError
from maxlm.evaluate.template import ChatTemplate, Message

ROLES = ("system", "user", "assistant")
# Unicode's noncharacters, for a program's own use, stand around what looks like a special token in a message.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
ANSWER = "0answer0"  # some text, to see what a template writes after it


class Chat:
    """What turns messages into ids, and which ids end an answer: a model's own, and the end of a turn."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Iterable[int]):
        self.tokenizer, self.template = tokenizer, ChatTemplate(Path(tokenizer.path).parent)
        ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        self._names = {name: tokenizer.token_text(number) for name, number in ends.items() if number is not None}
        # The longest first, so that one that contains another is found.
        control = sorted(tokenizer.control_tokens(), key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, control)) or "(?!)")
        self.stop_ids = set(stop_ids) | self._ends_of_turn()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation and of the beginning of an answer to it."""
        marked = [{"role": message["role"], "content": self._marked(message["content"])} for message in messages]
        text = self.template.render(marked, self._names, add_generation_prompt=True)
        parts = re.split(f"{OPEN}({self._any.pattern}){CLOSE}|[{OPEN}{CLOSE}]", text)
        ids = []
        for number, part in enumerate(parts):  # odd ones are what stood between the marks, if anything did
            ids += self.tokenizer.encode(part, special=number % 2 == 0) if part else []
        return ids

    def _marked(self, content: str) -> str:
        plain = re.sub(f"[{OPEN}{CLOSE}]", "\N{REPLACEMENT CHARACTER}", content)
        return self._any.sub(f"{OPEN}\\g<0>{CLOSE}", plain)

    def _ends_of_turn(self) -> set[int]:
        """The special token that the template writes after an answer."""
        messages = [{"role": "user", "content": ANSWER}, {"role": "assistant", "content": ANSWER}]
        try:
            after = self.template.render(messages, self._names, add_generation_prompt=False).rpartition(ANSWER)[2]
        except MaxlmError:  # what real conversations will be told
            return set()
        found = self._any.match(after.lstrip())
        return set() if found is None else {self.tokenizer.token_id(found[0])}


def read_messages(text: str) -> list[dict[str, str]]:
    """A JSON list of messages, or plain text as one message of a user; `DataError` says what a message must be."""
    if not text.strip():
        raise DataError("stdin holds no message; expected a text, or a JSON list of messages")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        return [{"role": "user", "content": text.strip()}]
    for number, message in enumerate(found, 1):
        right = isinstance(message, dict) and set(message) == {"role", "content"}
        if not right or message["role"] not in ROLES or not isinstance(message["content"], str):
            raise DataError(
                f"stdin, message {number}: found {json.dumps(message, ensure_ascii=False)[:80]}, expected an object of "
                f"a role ({', '.join(ROLES)}) and a text as its content"
            )
    if not found:
        raise DataError("stdin holds an empty list of messages; expected at least one")
    return found
