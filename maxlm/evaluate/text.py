"""From texts to the ids that a model continues, and from the ids that come back to text."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.evaluate.generate import FirstTokens, stream
from maxlm.evaluate.load import Loaded

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no character, or none yet


class Piece(NamedTuple):
    """What was added to one prompt's text."""

    number: int  # of the prompt
    text: str
    ids: list[int]  # drawn since the piece before; with stop strings, those of the string too
    logprobs: list[float]
    finish: str | None  # "stop", "length", or None while the text goes on


class Prompts(NamedTuple):
    """Texts made ready for `stream_text`."""

    texts: list[str]  # without the space that a first token brings
    ids: list[list[int]]
    first: FirstTokens | None


def encode_prompts(tokenizer: Tokenizer, texts: Sequence[str]) -> Prompts:
    """The ids of texts, each the beginning of a document.

    A space at the end of a prompt is drawn with the token that it begins: tokens carry the space before a word, so
    after a space of its own the model has hardly seen a word start.
    """
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    spaced = {number for number, text in enumerate(texts) if text.endswith(" ") and (start or text != " ")}
    trimmed = [text[:-1] if number in spaced else text for number, text in enumerate(texts)]
    first = FirstTokens(_begin_with_space(tokenizer), spaced) if spaced else None
    return Prompts(trimmed, [start + tokenizer.encode(text) for text in trimmed], first)


def _begin_with_space(tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.decode([number]).startswith(" ") for number in range(tokenizer.vocab_size)])


def stream_text(
    loaded: Loaded, prompts: Sequence[Sequence[int]], *, stop_strings: Sequence[str] = (), **options: Any
) -> Iterator[Piece]:
    """Text that continues the prompts, as it comes; a text ends before a stop string or the end of a document.

    Options are those of `generate.stream`; stop_ids are by default those of the model.
    """
    tokenizer, ended = loaded.tokenizer, set()
    texts = [TextStream(tokenizer, ids, stop_strings) for ids in prompts]
    defaults = {"stop_ids": loaded.stop_ids, "vocab_size": tokenizer.vocab_size}
    for drawn in stream(loaded.graphdef, loaded.params, prompts, ended=ended, **defaults | options):
        text, finish = texts[drawn.number], drawn.finish
        added = text.add(drawn.ids)
        if text.stopped:
            ended.add(drawn.number)
            finish = "stop"
        elif finish:
            added += text.rest()
        yield Piece(drawn.number, added, drawn.ids, drawn.logprobs, finish)


class TextStream:
    """Text of one prompt's ids as they come.

    A character that is split over tokens waits until it is whole, and so does what may be the beginning of a stop
    string. Only the ids since the last but one piece of text are decoded again, so that a long text takes linear time.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop_strings: Sequence[str] = ()):
        if not all(stop_strings):
            raise ConfigError("a stop string is empty; expected some text")
        self.stopped = False  # by a stop string
        self._tokenizer, self._stop_strings, self._held = tokenizer, stop_strings, ""
        self._ids, self._shown = list(prompt), tokenizer.decode(prompt)  # shown: how much of their text was given out
        self._fresh = len(self._ids)  # ids before this one are needed only to decode those after them

    def add(self, ids: Sequence[int]) -> str:
        self._ids += ids
        return self._before_stop(self._decoded(whole=False))

    def rest(self) -> str:
        """What was held back, once the last ids are there."""
        text = self._before_stop(self._decoded(whole=True)) + self._held
        self._held = ""
        return text

    def _decoded(self, whole: bool) -> str:
        text = self._tokenizer.decode(self._ids)
        known = text if whole else text.rstrip(UNFINISHED)
        added = known[len(self._shown) :]
        if not added:
            return ""
        self._shown = known
        # A decoder may leave out a space that begins its text, so what it is given begins with text that was shown.
        context = self._tokenizer.decode(self._ids[self._fresh :])
        if context.strip() and not text.endswith(UNFINISHED):
            self._ids, self._shown = self._ids[self._fresh :], context
            self._fresh = len(self._ids)
        return added

    def _before_stop(self, text: str) -> str:
        """The text that is certainly before a stop string; what comes after one is forgotten."""
        if self.stopped:
            return ""
        text = self._held + text
        places = [place for string in self._stop_strings if (place := text.find(string)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        longest = max((_overlap(text, string) for string in self._stop_strings), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]


def _overlap(text: str, string: str) -> int:
    """Length of the longest beginning of a string, not all of it, at which the text ends."""
    lengths = range(min(len(text), len(string) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(string[:length])), 0)
