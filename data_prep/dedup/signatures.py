"""Signatures: what copies of a document share although their texts differ, a few integers per document.

`normalised` is equal where texts differ in case, script, compatibility forms, punctuation and white space alone.

`bands` are equal, one at least, where texts share most of their shingles (n words in a row): MinHash (Broder, "On the
resemblance and containment of documents", 1997) with `buckets * rows` permutations, and locality-sensitive hashing
with one hash per bucket of `rows` minima (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4).
Documents whose shingles have the Jaccard similarity s share a band with the probability 1 - (1 - s^rows)^buckets.

A permutation is (a * x + b) >> 32 of the 64-bit shingle (Dietzfelbinger and others, "A reliable randomized algorithm
for the closest-pair problem", 1997), with its minimum in 32 bits: the loop over permutations has neither branch nor
carry, so that compilers make SIMD of it.
"""

from dataclasses import dataclass

import numba
import numpy as np

from data_prep.documents import mix
from data_prep.text import characters, words
from data_prep.text.characters import PUNCTUATION, WORD
from data_prep.text.texts import Texts, decode
from data_prep.text.words import Words, mixed

SPLITTER = "unicode"
VERSION = 1
# Any odd factor and any salts do.
FACTOR, SALT = np.uint64(0x9E3779B97F4A7C15), 2**33


@dataclass(frozen=True)
class MinHash:
    """Parameters of `bands`: permutations in `buckets` bands of `rows`."""

    buckets: int
    rows: int
    seed: int

    def permutations(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors and summands, uint64 [buckets * rows]."""
        numbers = np.arange(self.buckets * self.rows, dtype=np.uint64) + np.uint64(self.seed << 32)
        return mix(numbers, SALT) | np.uint64(1), mix(numbers, SALT + 1)


def normalised(texts: Texts) -> np.ndarray:
    """A hash of each document's letters, marks and numbers, folded; uint64 [documents].

    A document that has none of them is hashed as it is.
    """
    return _normalised(texts.data, texts.bounds, characters.kinds(), characters.folded())


@numba.njit(cache=True, inline="always")
def _add(value, item):
    """A hash of a sequence with one more item."""
    value = (value ^ np.uint64(item)) * FACTOR
    return value ^ (value >> np.uint64(32))


@numba.njit(cache=True)
def _normalised(data, bounds, kinds, table):
    result = np.empty(len(bounds) - 1, np.uint64)
    for document in range(len(result)):
        value, found = np.uint64(1), False
        position, end = bounds[document], bounds[document + 1]
        while position < end:
            code, position = decode(data, position)
            if kinds[code] & WORD and not kinds[code] & PUNCTUATION:
                value, found = _add(value, table[code]), True
        if not found:
            value = np.uint64(2)
            for position in range(bounds[document], end):
                value = _add(value, data[position])
        result[document] = mixed(value)
    return result


def units(texts: Texts, single: np.ndarray) -> Words:
    """What shingles are made of: words without symbols, or, where `single` bool [documents], their characters."""
    found = words.split(texts, SPLITTER)
    return Words(*_units(texts.data, found.starts, found.stops, found.bounds, characters.kinds(), single))


@numba.njit(cache=True)
def _units(data, starts, stops, word_bounds, kinds, single):
    size = 0
    for document in range(len(single)):
        for word in range(word_bounds[document], word_bounds[document + 1]):
            size += stops[word] - starts[word] if single[document] else 1
    unit_starts = np.empty(size, np.int64)
    unit_stops = np.empty(size, np.int64)
    unit_bounds = np.zeros(len(word_bounds), np.int64)
    count = 0
    for document in range(len(single)):
        for word in range(word_bounds[document], word_bounds[document + 1]):
            position = starts[word]
            code, after = decode(data, position)
            if not kinds[code] & WORD:
                continue
            if not single[document]:
                unit_starts[count], unit_stops[count] = position, stops[word]
                count += 1
                continue
            while position < stops[word]:
                _, after = decode(data, position)
                unit_starts[count], unit_stops[count] = position, after
                count += 1
                position = after
        unit_bounds[document + 1] = count
    return unit_starts[:count].copy(), unit_stops[:count].copy(), unit_bounds


def shingles(texts: Texts, single: np.ndarray, ngrams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of every `ngrams` (int64 [documents]) units in a row, folded; repeated ones are repeated.

    A document of fewer units is one shingle, and so is one of none, by its bytes.

    Returns: uint64 [shingles], and int64 [documents + 1], where those of each document begin.
    """
    found = units(texts, single)
    hashes = words.hashes(texts, found, characters.folded())
    return _shingles(texts.data, texts.bounds, hashes, found.bounds, ngrams)


@numba.njit(cache=True)
def _shingles(data, bounds, hashes, unit_bounds, ngrams):
    counts = np.maximum(unit_bounds[1:] - unit_bounds[:-1] - ngrams + 1, 1)
    result_bounds = np.zeros(len(unit_bounds), np.int64)
    result_bounds[1:] = np.cumsum(counts)
    result = np.empty(result_bounds[-1], np.uint64)
    for document in range(len(counts)):
        first, stop = unit_bounds[document], unit_bounds[document + 1]
        if first == stop:
            value = np.uint64(3)
            for position in range(bounds[document], bounds[document + 1]):
                value = _add(value, data[position])
            result[result_bounds[document]] = mixed(value)
        else:
            for shingle in range(counts[document]):
                value = np.uint64(0)
                for unit in range(first + shingle, min(first + shingle + ngrams[document], stop)):
                    value = value * FACTOR + hashes[unit]
                result[result_bounds[document] + shingle] = mixed(value)
    return result, result_bounds


def minima(shingles: np.ndarray, bounds: np.ndarray, minhash: MinHash) -> np.ndarray:
    """The smallest value of each permutation over a document's shingles, uint32 [documents, buckets * rows].

    The share of equal minima of two documents estimates the Jaccard similarity of their sets of shingles.
    """
    return _minima(shingles, bounds, *minhash.permutations())


@numba.njit(cache=True)
def _minima(shingles, bounds, factors, summands):
    result = np.empty((len(bounds) - 1, len(factors)), np.uint32)
    least = np.empty(len(factors), np.uint32)
    for document in range(len(bounds) - 1):
        for number in range(len(factors)):
            least[number] = np.uint32(0xFFFFFFFF)
        for place in range(bounds[document], bounds[document + 1]):
            shingle = shingles[place]
            for number in range(len(factors)):
                value = np.uint32((factors[number] * shingle + summands[number]) >> np.uint64(32))
                if value < least[number]:
                    least[number] = value
        result[document] = least
    return result


def bands(texts: Texts, minhash: MinHash, single: np.ndarray, ngrams: np.ndarray) -> np.ndarray:
    """One hash per bucket, uint64 [documents, buckets]; those of different buckets are never meant to be equal.

    single: bool [documents], whether a document's shingles are of characters; ngrams: int64 [documents], their length.
    """
    return _bands(minima(*shingles(texts, single, ngrams), minhash), minhash.rows)


@numba.njit(cache=True)
def _bands(least, rows):
    result = np.empty((len(least), least.shape[1] // rows), np.uint64)
    for document in range(len(result)):
        for bucket in range(result.shape[1]):
            value = mixed(np.uint64(bucket) + FACTOR)
            for row in range(rows):
                value = mixed(value ^ np.uint64(least[document, bucket * rows + row]))
            result[document, bucket] = value
    return result
