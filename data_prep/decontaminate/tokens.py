"""Words as benchmarks and documents are compared by: form, case, accents, punctuation and Chinese script do not count.

A word is one of `words.split` (each Han character is one), and is known by two hashes of what is left of its
characters: NFKC and folded case, letters without combining accents (so that composed and decomposed text is equal),
traditional Han as simplified, no punctuation. Words of which nothing is left are no words.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np

from data_prep.text import characters, words
from data_prep.text.characters import CODE_POINTS, WORD
from data_prep.text.texts import Texts, decode
from data_prep.text.words import mixed

VERSION = 1
SPLITTER = "unicode"
# U+0300..U+036F, the accents that follow a letter; vowel signs of other scripts are not among them.
FIRST_ACCENT, LAST_ACCENT = 0x0300, 0x036F


@dataclass(frozen=True)
class Tokens:
    """Byte positions in the texts' data and hashes of the words, int64 and uint64 [words]; document i has the words
    bounds[i] .. bounds[i + 1], bounds int64 [documents + 1]."""

    starts: np.ndarray
    stops: np.ndarray
    hashes: np.ndarray
    bounds: np.ndarray


def version() -> list:
    from importlib.metadata import version as installed

    return [VERSION, *words.version(SPLITTER), installed("opencc")]


@cache
def forms() -> tuple[np.ndarray, np.ndarray]:
    """What each code point becomes: uint32 [0x110000] and uint32 [further].

    0 is nothing, a code point is itself; CODE_POINTS + i stands for several, which follow their number in further[i].
    """
    simplified = characters.folded()
    table = np.where(characters.kinds() & WORD, simplified, 0).astype(np.uint32)
    further: list[int] = []
    for code in np.flatnonzero(table).tolist():
        character = chr(code)
        if code < 0x80 or unicodedata.is_normalized("NFKD", character):
            form = [character.casefold()] if code != ord("_") else [""]
        else:
            form = [_without_accents(one) for one in unicodedata.normalize("NFKC", character).casefold()]
        codes = [int(simplified[ord(one)]) for one in "".join(form) if _is_word(one)]
        if len(codes) > 1:
            table[code] = CODE_POINTS + len(further)
            further += [len(codes), *codes]
        else:
            table[code] = codes[0] if codes else 0
    return table, np.array(further, np.uint32)


def _is_word(character: str) -> bool:
    return bool(characters.kinds()[ord(character)] & WORD) and not FIRST_ACCENT <= ord(character) <= LAST_ACCENT


def _without_accents(character: str) -> str:
    first, *marks = unicodedata.normalize("NFD", character)
    return first if all(FIRST_ACCENT <= ord(mark) <= LAST_ACCENT for mark in marks) else character


def tokenize(texts: Texts) -> Tokens:
    found = words.split(texts, SPLITTER)
    return Tokens(*_hash_words(texts.data, found.starts, found.stops, found.bounds, *forms()))


@numba.njit(cache=True)
def _hash_words(data, starts, stops, bounds, table, further):
    """The first hash of every word (FNV-1a over code points, finished); words of nothing are left out."""
    hashes = np.empty(len(starts), np.uint64)
    kept_starts, kept_stops = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)
    kept_bounds = np.zeros(len(bounds), np.int64)
    count = 0
    for document in range(len(bounds) - 1):
        for word in range(bounds[document], bounds[document + 1]):
            value = np.uint64(0xCBF29CE484222325)
            position, empty = starts[word], True
            while position < stops[word]:
                code, position = decode(data, position)
                form = table[code]
                if form == 0:
                    continue
                empty = False
                if form < CODE_POINTS:
                    value = (value ^ np.uint64(form)) * np.uint64(0x100000001B3)
                    continue
                first = np.int64(form) - CODE_POINTS + 1
                for index in range(first, first + further[first - 1]):
                    value = (value ^ np.uint64(further[index])) * np.uint64(0x100000001B3)
            if not empty:
                hashes[count] = mixed(value)
                kept_starts[count], kept_stops[count] = starts[word], stops[word]
                count += 1
        kept_bounds[document + 1] = count
    return kept_starts[:count].copy(), kept_stops[:count].copy(), hashes[:count].copy(), kept_bounds


@numba.njit(cache=True)
def second_hash(data, starts, stops, first, last, table, further):
    """A hash of the words first..last that shares nothing with the first: another recurrence, on bits mixed before."""
    value = np.uint64(0x2545F4914F6CDD1D)
    for word in range(first, last):
        position = starts[word]
        while position < stops[word]:
            code, position = decode(data, position)
            form = table[code]
            if form == 0:
                continue
            if form < CODE_POINTS:
                value = mixed(value + np.uint64(form) * np.uint64(0x9E3779B97F4A7C15))
                continue
            start = np.int64(form) - CODE_POINTS + 1
            for index in range(start, start + further[start - 1]):
                value = mixed(value + np.uint64(further[index]) * np.uint64(0x9E3779B97F4A7C15))
        value = mixed(value ^ np.uint64(0xD1B54A32D192ED03))
    return value
