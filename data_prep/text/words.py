"""Word splitters: where the words of documents begin and end. A splitter has a name and a version, which enter keys.

unicode     Runs of word characters, with apostrophes between letters and points between digits; every character of a
            script without spaces; every other visible character, runs of the same one together ("...", "----").
jieba       Runs of Han characters are segmented by rjieba (dictionary and hidden Markov model); what stands between
            them is split as `unicode` does.
whitespace  Runs of characters that are not white space.

Words that have no word character ("..." or "%") are symbols; spaCy, with whose words the thresholds of published
filters were set, gives them too.
"""

import difflib
import importlib.metadata
from dataclasses import dataclass

import numba
import numpy as np

from data_prep.text import characters
from data_prep.text.characters import ALPHA, DIGIT, SINGLE, SPACE, WORD
from data_prep.text.texts import Texts, decode
from maxlm.errors import ConfigError

VERSIONS = {"unicode": 1, "jieba": 1, "whitespace": 1}
APOSTROPHE, RIGHT_QUOTE, POINT, COMMA, NEWLINE = 0x27, 0x2019, 0x2E, 0x2C, 0x0A


@dataclass(frozen=True)
class Words:
    """`starts` and `stops` int64 [words] are byte positions in the texts' data; document i has the words
    bounds[i] .. bounds[i + 1], bounds int64 [documents + 1]."""

    starts: np.ndarray
    stops: np.ndarray
    bounds: np.ndarray


def version(splitter: str) -> list:
    """What enters the key of results that were computed with a splitter; `ConfigError` where there is none."""
    if splitter not in VERSIONS:
        close = difflib.get_close_matches(splitter, VERSIONS, 1)
        nearest = f"; the nearest is '{close[0]}'" if close else ""
        raise ConfigError(f"no word splitter is called '{splitter}'{nearest}; there are {', '.join(VERSIONS)}")
    library = [importlib.metadata.version("rjieba")] if splitter == "jieba" else []
    return [splitter, VERSIONS[splitter], characters.UNICODE, *library]


def split(texts: Texts, splitter: str = "unicode") -> Words:
    """The words of all documents, symbols included; `ConfigError` where there is no such splitter."""
    version(splitter)
    kinds = characters.kinds()
    if splitter == "whitespace":
        return Words(*_split_at_spaces(texts.data, texts.bounds, kinds))
    words = Words(*_split(texts.data, texts.bounds, kinds))
    return words if splitter == "unicode" else _with_jieba(texts, words)


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


@numba.njit(cache=True)
def _split_at_spaces(data, bounds, kinds):
    size = bounds[-1] - bounds[0]
    starts = np.empty(size, np.int64)
    stops = np.empty(size, np.int64)
    word_bounds = np.zeros(len(bounds), np.int64)
    count = 0
    for document in range(len(bounds) - 1):
        position, end = bounds[document], bounds[document + 1]
        inside = False
        while position < end:
            code, after = decode(data, position)
            if kinds[code] & SPACE:
                inside = False
            else:
                if not inside:
                    starts[count] = position
                    count += 1
                inside = True
                stops[count - 1] = after
            position = after
        word_bounds[document + 1] = count
    return starts[:count].copy(), stops[:count].copy(), word_bounds


def _with_jieba(texts: Texts, words: Words) -> Words:
    """The words of `unicode`, of which each Han character is one, joined where rjieba finds longer ones.

    All runs of Han characters go through one call, a line each: a call per run would cost more than the segmentation.
    """
    import rjieba

    lines = _han_runs(texts.data, words.starts, words.stops, words.bounds).tobytes().decode()
    found = rjieba.cut(lines)
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    assert lengths.sum() == len(lines)
    return Words(*_join(texts.data, words.starts, words.stops, words.bounds, lengths))


@numba.njit(cache=True, inline="always")
def _is_han(data, start, stop):
    """Whether a word of `unicode` is one ideograph; kana and marks of repetition stay as they are."""
    if stop - start < 3:
        return False
    code, after = decode(data, start)
    return after == stop and (
        0x3400 <= code < 0x4DC0 or 0x4E00 <= code < 0xA000 or 0xF900 <= code < 0xFB00 or 0x20000 <= code < 0x40000
    )


@numba.njit(cache=True)
def _han_runs(data, starts, stops, bounds):
    """The runs of Han characters, with newlines between them, uint8; no run goes over the end of a document."""
    size = 0
    for word in range(len(starts)):
        size += stops[word] - starts[word] + 1
    runs = np.empty(size, np.uint8)
    count = 0
    for document in range(len(bounds) - 1):
        last = -1
        for word in range(bounds[document], bounds[document + 1]):
            if not _is_han(data, starts[word], stops[word]):
                continue
            if count and starts[word] != last:
                runs[count] = NEWLINE
                count += 1
            for position in range(starts[word], stops[word]):
                runs[count] = data[position]
                count += 1
            last = stops[word]
    return runs[:count]


@numba.njit(cache=True)
def _join(data, starts, stops, bounds, lengths):
    """The words, of which those that are Han characters are joined to words of `lengths` characters."""
    new_starts, new_stops = np.empty_like(starts), np.empty_like(stops)
    new_bounds = np.zeros_like(bounds)
    count = used = 0
    for document in range(len(bounds) - 1):
        word, last = bounds[document], -1
        while word < bounds[document + 1]:
            first = word
            if _is_han(data, starts[word], stops[word]):
                if used and starts[word] != last:
                    used += 1  # the newline
                word += lengths[used]
                used += 1
                last = stops[word - 1]
            else:
                word += 1
            new_starts[count], new_stops[count] = starts[first], stops[word - 1]
            count += 1
        new_bounds[document + 1] = count
    return new_starts[:count].copy(), new_stops[:count].copy(), new_bounds


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
