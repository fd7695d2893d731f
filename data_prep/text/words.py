"""Word splitters: where the words of documents begin and end. A splitter has a name and a version, which enter keys.

unicode   Runs of word characters, with apostrophes between letters and points between digits; every character of a
          script without spaces; every other visible character, runs of the same one together ("...", "----").

Words that have no word character ("..." or "%") are symbols; spaCy, with whose words the thresholds of published
filters were set, gives them too.
"""

from dataclasses import dataclass

import numba
import numpy as np

from data_prep.text import characters
from data_prep.text.characters import ALPHA, DIGIT, SINGLE, SPACE, WORD
from data_prep.text.texts import Texts, decode

VERSIONS = {"unicode": 1}
APOSTROPHE, RIGHT_QUOTE, POINT, COMMA = 0x27, 0x2019, 0x2E, 0x2C


@dataclass(frozen=True)
class Words:
    """`starts` and `stops` int64 [words] are byte positions in the texts' data; document i has the words
    bounds[i] .. bounds[i + 1], bounds int64 [documents + 1]."""

    starts: np.ndarray
    stops: np.ndarray
    bounds: np.ndarray


def version(splitter: str) -> list:
    """What enters the key of results that were computed with a splitter."""
    return [splitter, VERSIONS[splitter], characters.UNICODE]


def split(texts: Texts, splitter: str = "unicode") -> Words:
    """The words of all documents, symbols included."""
    starts, stops, bounds = _split(texts.data, texts.bounds, characters.kinds())
    return Words(starts, stops, bounds)


@numba.njit(cache=True)
def _split(data, bounds, kinds):
    size = bounds[-1] - bounds[0]
    starts = np.empty(size, np.int64)
    stops = np.empty(size, np.int64)
    word_bounds = np.zeros(len(bounds), np.int64)
    count = 0
    for document in range(len(bounds) - 1):
        position, end = bounds[document], bounds[document + 1]
        while position < end:
            start = position
            code, position = decode(data, position)
            kind = kinds[code]
            if kind & SPACE:
                continue
            if kind & SINGLE:
                pass
            elif kind & WORD:
                last = kind
                while position < end:
                    following, after = decode(data, position)
                    next_kind = kinds[following]
                    if next_kind & WORD and not next_kind & SINGLE:
                        last, position = next_kind, after
                        continue
                    joins_letters = following in (APOSTROPHE, RIGHT_QUOTE)
                    joins_digits = following in (POINT, COMMA)
                    if after < end and ((joins_letters and last & ALPHA) or (joins_digits and last & DIGIT)):
                        beyond, _ = decode(data, after)
                        wanted = ALPHA if joins_letters else DIGIT
                        if kinds[beyond] & wanted and not kinds[beyond] & SINGLE:
                            position = after
                            continue
                    break
            else:
                while position < end:
                    following, after = decode(data, position)
                    if following != code:
                        break
                    position = after
            starts[count], stops[count] = start, position
            count += 1
        word_bounds[document + 1] = count
    return starts[:count].copy(), stops[:count].copy(), word_bounds


@numba.njit(cache=True, inline="always")
def mixed(value):
    """The finaliser of splitmix64: every bit of the result depends on every bit of the value."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hashes(texts: Texts, words: Words, table: np.ndarray | None = None) -> np.ndarray:
    """64-bit hashes of the words, uint64 [words]; with a `table` of `characters.folded`, of their folded form."""
    if table is None:
        return _hash_bytes(texts.data, words.starts, words.stops)
    return _hash_folded(texts.data, words.starts, words.stops, table)


@numba.njit(cache=True)
def _hash_bytes(data, starts, stops):
    result = np.empty(len(starts), np.uint64)
    for word in range(len(starts)):
        value = np.uint64(0xCBF29CE484222325)
        for position in range(starts[word], stops[word]):
            value = (value ^ np.uint64(data[position])) * np.uint64(0x100000001B3)
        result[word] = mixed(value)
    return result


@numba.njit(cache=True)
def _hash_folded(data, starts, stops, table):
    result = np.empty(len(starts), np.uint64)
    for word in range(len(starts)):
        value = np.uint64(0xCBF29CE484222325)
        position = starts[word]
        while position < stops[word]:
            code, position = decode(data, position)
            value = (value ^ np.uint64(table[code])) * np.uint64(0x100000001B3)
        result[word] = mixed(value)
    return result
