"""Files of questions: what a model completes, or chooses, to show what it knows.

A file is JSON lines in UTF-8. Every line but the first is one question, all of one kind. Of a cloze question the answer
is a text, or a list of texts that are all accepted:

    {"text": "The capital of France is", "answer": " Paris"}
    {"text": "7 + 5 =", "answer": [" 12", " twelve"], "id": "sum-1", "topic": "arithmetic"}

Of a choice question it is the number of the right one of `choices`, from 0 on; there are two choices or more:

    {"text": "Water is made of hydrogen and", "choices": [" oxygen", " iron", " salt"], "answer": 0}
    {"choices": ["The cats sleep.", "The cats sleeps."], "answer": 0, "topic": "agreement"}
    {"text": "法国的首都是", "choices": ["伦敦", "巴黎"], "answer": 1}

`text` may be called `question`. It and the answers are taken as they are: what follows a word in English brings its
blank along, and Chinese has none. Without a text the choices are whole texts, which share no beginning (minimal pairs).
`id` (else the number of the line) and `topic`, by which results are also told, may be left out.

The first line may say of all that follow how a text is asked and what joins it to an answer:

    {"format": "maxlm-questions", "version": 1, "template": "Question: {text}\\nAnswer:", "separator": " "}

`template` has `{text}` once and may hold worked examples; without it, and without a separator, nothing is added. The
separator belongs to the answer. A question without a text has neither.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from maxlm.config import validate
from maxlm.config.section import Integer, Section
from maxlm.errors import ConfigError, DataError

FORMAT, VERSION = "maxlm-questions", 1
SHOWN = 80  # characters of a line that an error shows
SLOT = "{text}"

Text = Annotated[str, Field(min_length=1, strict=True)]


class Question(NamedTuple):
    """One question, ready to be put to a model."""

    id: str
    topic: str | None
    text: str  # with the template; may be empty
    answers: tuple[str, ...]  # with the separator: accepted ones, or choices
    right: int | None  # of choices; None where every answer is accepted
    line: int  # in its file


class Questions(NamedTuple):
    """A file of questions of one kind."""

    path: Path
    sha256: str  # of the file's bytes
    kind: Literal["cloze", "choice"]
    items: list[Question]


class _Header(Section):
    format: Literal["maxlm-questions"]
    version: Literal[1]
    template: Text = SLOT
    separator: str = ""

    @model_validator(mode="after")
    def _check(self) -> "_Header":
        if self.template.count(SLOT) != 1:
            raise ValueError(f"template: found {self.template!r}; expected a text with {SLOT} in it once")
        return self


class _Asked(Section):
    id: Text | None = None
    topic: Text | None = None
    text: str = ""
    question: str = ""

    @model_validator(mode="after")
    def _check_text(self) -> "_Asked":
        if self.text and self.question:
            raise ValueError("found text and question, which are two names of one thing; expected one of them")
        return self


class _Cloze(_Asked):
    answer: Text | Annotated[list[Text], Field(min_length=1)]

    @property
    def answers(self) -> list[str]:
        return [self.answer] if isinstance(self.answer, str) else self.answer

    @model_validator(mode="after")
    def _check(self) -> "_Cloze":
        if not (self.text or self.question):
            raise ValueError("found no text; expected one that the answer completes, or choices")
        return _distinct(self, "answer")


class _Choice(_Asked):
    choices: Annotated[list[Text], Field(min_length=2)]
    answer: Annotated[Integer, Field(ge=0, strict=True)]

    @property
    def answers(self) -> list[str]:
        return self.choices

    @model_validator(mode="after")
    def _check(self) -> "_Choice":
        if self.answer >= len(self.choices):
            raise ValueError(
                f"answer: found {self.answer}; expected the number of a choice, 0 to {len(self.choices) - 1}"
            )
        return _distinct(self, "choices")


KINDS: dict[str, type[_Asked]] = {"cloze": _Cloze, "choice": _Choice}


def read_questions(path: str | Path) -> Questions:
    """Read and check a file of the format above; raises `DataError` naming the file and the line that is not of it."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a file of questions") from None
    header, kind, items, first = _Header(format=FORMAT, version=VERSION), None, [], {}
    for number, values in _objects(path, data):
        place = f"{path}, line {number}"
        if "format" in values:
            if number > 1:
                raise DataError(f"{place}: says of a format again; expected one such line, the first")
            header = _checked(values, _Header, place)
            continue
        found = "choice" if "choices" in values else "cloze"
        kind = kind or found
        if found != kind:
            raise DataError(f"{place}: a {found} question after {kind} questions; put them into two files")
        asked = _checked(values, KINDS[kind], place)
        question = _question(asked, header, number)
        if (earlier := first.setdefault(question.id, number)) != number:
            raise DataError(f"{place}: has the id {question.id!r} of line {earlier}; expected another")
        items.append(question)
    if not items:
        raise DataError(f"{path}: holds no question; expected one JSON object per line")
    return Questions(path, hashlib.sha256(data).hexdigest(), kind, items)


def _question(asked: _Asked, header: _Header, number: int) -> Question:
    text = asked.text or asked.question
    before = header.separator if text else ""
    return Question(
        asked.id or str(number),
        asked.topic,
        header.template.replace(SLOT, text) if text else "",
        tuple(before + answer for answer in asked.answers),
        asked.answer if isinstance(asked, _Choice) else None,
        number,
    )


def _objects(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of the lines that are not blank, with their numbers from 1 on."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text = line.decode()
            found = json.loads(text, object_pairs_hook=_without_doubles)
            json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:SHOWN]
            raise DataError(f"{path}, line {number}: not a JSON object in UTF-8 ({reason})") from None
        if not isinstance(found, dict):
            raise DataError(f"{path}, line {number}: expected an object with text and answer, found {text[:SHOWN]}")
        yield number, found


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice")
        found[key] = value
    return found


def _checked(values: Mapping[str, Any], schema: type[Section], place: str) -> Any:
    try:
        return validate(values, schema, place)
    except ConfigError as error:  # of several faults one: a misspelt key is also a missing one
        faults = str(error).splitlines()
        raise DataError(next((fault for fault in faults if "unknown key" in fault), faults[0])) from None


def _distinct(asked: Any, key: str) -> Any:
    if len(set(asked.answers)) < len(asked.answers):
        raise ValueError(f"{key}: found {asked.answers}; expected texts that differ")
    return asked
