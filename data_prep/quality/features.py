"""What a classifier sees of a document: its words and sequences of words, folded and hashed into buckets.

Words are those of the splitter `unicode`, symbols among them, without case and compatibility forms, and with
traditional Han characters as simplified ones. A Han character is a word of its own, so that two in a row are about what
a dictionary calls one.
"""

from dataclasses import dataclass

import numba
import numpy as np

from data_prep.text import characters, words
from data_prep.text.texts import Texts
from data_prep.text.words import mixed

VERSION = 1
SPLITTER = "unicode"
# Any odd number does.
FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Hashed:
    """Hashes of the words of documents, uint64 [words]; document i has those from bounds[i] to bounds[i + 1], bounds
    int64 [documents + 1]."""

    words: np.ndarray
    bounds: np.ndarray


def version() -> list:
    """What enters the key of a model beside its settings; models of another version cannot be used."""
    import importlib.metadata

    return [VERSION, *words.version(SPLITTER), importlib.metadata.version("opencc")]


def hashed(texts: Texts) -> Hashed:
    found = words.split(texts, SPLITTER)
    return Hashed(words.hashes(texts, found, characters.folded()), found.bounds)


def buckets(texts: Hashed, ngram: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The features of documents with repetitions, int32 [features] below `count`, a power of two.

    Returns: features, and int64 [documents + 1], where those of each document begin.
    """
    return _buckets(texts.words, texts.bounds, ngram, 65 - int(count).bit_length())


@numba.njit(cache=True)
def _buckets(hashes, bounds, ngram, shift):
    feature_bounds = np.zeros(len(bounds), np.int64)
    for document in range(len(bounds) - 1):
        total = 0
        for n in range(ngram):
            total += max(0, bounds[document + 1] - bounds[document] - n)
        feature_bounds[document + 1] = feature_bounds[document] + total
    features = np.empty(feature_bounds[-1], np.int32)
    count = 0
    for document in range(len(bounds) - 1):
        stop = bounds[document + 1]
        for first in range(bounds[document], stop):
            value = hashes[first]
            features[count] = np.int32(value >> np.uint64(shift))
            count += 1
            for place in range(first + 1, min(first + ngram, stop)):
                value = mixed(value * FACTOR + hashes[place])
                features[count] = np.int32(value >> np.uint64(shift))
                count += 1
    return features, feature_bounds
