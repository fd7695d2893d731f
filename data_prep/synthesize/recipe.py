"""What becomes of a seed: the questions that are put for it, in order, and the document that their answers make.

`Recipe.follow` is a function of the seed and of the answers that there are. While a run asks, it says which question
comes next; when documents are written, it says what the answers came to. So a run that was killed goes on where it
stopped, and a threshold that changes asks nothing again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.config.synthesis import PassConfig, Synthesis
from data_prep.manifest import make_key
from data_prep.synthesize.answers import SCORE_SCHEMA, Answer, Invalid, Shape, as_text
from data_prep.synthesize.prompts import Prompt, Template, choose
from data_prep.synthesize.seeds import FIELDS, Seed
from data_prep.text.texts import Texts
from data_prep.text.words import split
from maxlm.errors import ConfigError

VERSION = 1
AnswerOf = Callable[[str], Answer | None]
COPIED_WORDS = 8
# A token is one byte or more of the text, but for what a server adds around messages: roles, a date, a system prompt.
ADDED_TOKENS = 256


@dataclass(frozen=True)
class Request:
    """A question: `key` is a hash of everything the answer depends on but for the server, `place` is for messages.

    `input_tokens` is the most that the prompt can be, `output_tokens` the most that the answer can be.
    """

    key: str
    body: Mapping[str, Any]
    place: str
    input_tokens: int
    output_tokens: int


@dataclass
class Trail:
    """The answers that led to an outcome, by the key of their request; and who gave them, to which prompt."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a seed came to: a text, or the reason why it is dropped, with what exactly.

    `unique` is a part of the text that no other document may have, None where that is not asked for.
    """

    trail: Trail
    text: str | None = None
    unique: str | None = None
    score: Mapping[str, Any] | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class _Pass:
    """A question: its prompts, and what an answer to it must be."""

    name: str
    config: PassConfig
    prompts: tuple[Prompt, ...]
    shape: Shape

    @staticmethod
    def load(name: str, config: PassConfig, known: Sequence[str], shape: Shape) -> "_Pass":
        prompts = tuple(Prompt.load(prompt, entry, known) for prompt, entry in config.prompts.items())
        return _Pass(name, config, prompts, shape)


class Recipe:
    """The prompts, schemas and templates of a configuration; raises `ConfigError` where they do not fit together."""

    def __init__(self, config: Synthesis):
        self.config = config
        self._shape = Shape.load(config.answer.shape)
        if taken := [name for name in self._shape.fields if name in FIELDS]:
            raise ConfigError(f"answer.schema: '{taken[0]}' is a field of seeds; name the property otherwise")
        self._text = Template.checked(config.text, self._shape.fields, "text")
        unique = config.filter.unique
        self._unique = None if unique is None else Template.checked(unique, self._shape.fields, "filter.unique")
        self._generate = _Pass.load("answer", config.generate, FIELDS, self._shape)
        known = (*FIELDS, *self._shape.fields)
        judged = Shape.of(SCORE_SCHEMA, "score")
        self._score = None if config.score is None else _Pass.load("score", config.score, known, judged)

    def follow(self, seed: Seed, answer_of: AnswerOf) -> Request | Outcome:
        trail, values = Trail(), seed.fields
        found = self._put(self._generate, seed, values, trail, answer_of)
        if not isinstance(found, dict):
            return found
        fields = {name: as_text(found[name]) for name in self._shape.fields}
        text = self._text.fill(fields)
        unique = None if self._unique is None else self._unique.fill(fields)
        # Before the score, which costs a request.
        if reason := self._refuse(text, trail.prompts["answer"].messages(values)):
            return Outcome(trail, text, reason=reason)
        score = None
        if self._score is not None:
            score = self._put(self._score, seed, values | fields, trail, answer_of)
            if not isinstance(score, dict):
                return score
            if score["score"] < self.config.score.min_score:
                return Outcome(trail, text, unique, score, "score", as_text(score["score"]))
        return Outcome(trail, text, unique, score)

    def _put(
        self, asked: _Pass, seed: Seed, values: Mapping[str, str], trail: Trail, answer_of: AnswerOf
    ) -> Request | Outcome | dict[str, Any]:
        """The values of the first valid answer to a question, or the next request for it, or that it has none."""
        prompt = choose(asked.prompts, seed)
        if prompt is None:
            return Outcome(trail, reason=f"{asked.name}: no prompt", detail=f"language {seed.language}")
        trail.prompts[asked.name] = prompt
        found = Invalid("")
        for number in range(1 + self.config.answer.repairs):
            request = self._request(asked, prompt.messages(values), seed, number)
            answer = answer_of(request.key)
            if answer is None:
                return request
            trail.answers[request.key] = answer
            found = asked.shape.read(answer)
            if not isinstance(found, Invalid):
                return found
        return Outcome(trail, reason=f"{asked.name}: {found.reason}", detail=found.detail)

    def _request(self, asked: _Pass, messages: list[dict], seed: Seed, number: int) -> Request:
        server = self.config.server
        body = {"model": server.model, "messages": messages, **sampling(asked.config, number)}
        # The name of a parameter is the server's affair.
        key = make_key("request", VERSION, seed.id, asked.name, number, body)
        body[server.max_tokens_key] = body.pop("max_tokens")
        size = len(json.dumps(body, ensure_ascii=False).encode())
        return Request(key, body, f"{asked.name} of seed {seed.id}", size + ADDED_TOKENS, asked.config.max_tokens)

    def _refuse(self, text: str, messages: Sequence[Mapping[str, str]]) -> str | None:
        """Why a text is not wanted, as far as it tells by itself."""
        config = self.config.filter
        if len(text.strip()) < config.min_characters:
            return "too short"
        if config.max_characters is not None and len(text) > config.max_characters:
            return "too long"
        if config.max_copied is not None:
            prompt = "\n".join(message["content"] for message in messages)
            if copied(text, prompt) > config.max_copied:
                return "copied from the prompt"
        return None


def sampling(config: PassConfig, number: int = 0) -> dict[str, Any]:
    """The settings of a pass as a request has them; `number` counts the questions that repeat the first."""
    seed = None if config.seed is None else config.seed + number
    own = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": seed}
    return config.body | {name: value for name, value in own.items() if value is not None}


def copied(text: str, prompt: str) -> float:
    """The share of a text's sequences of `COPIED_WORDS` words that stand in the prompt; 0 of a text with fewer."""
    sequences, present = _sequences(text), set(_sequences(prompt))
    return sum(one in present for one in sequences) / len(sequences) if sequences else 0.0


def _sequences(text: str) -> list[tuple[str, ...]]:
    texts = Texts.from_strings([text.casefold()])
    words, data = split(texts), texts.data.tobytes()
    found = [data[a:b] for a, b in zip(words.starts.tolist(), words.stops.tolist(), strict=True)]
    return list(zip(*(found[first:] for first in range(COPIED_WORDS)), strict=False))
