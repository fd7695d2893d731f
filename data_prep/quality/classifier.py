"""A linear classifier of documents: the sum of the weights of their hashed n-grams of words, a softmax over labels.

It is what fastText's supervised mode computes (Joulin and others, "Bag of tricks for efficient text classification",
2016), without the low rank: there a bucket has 100 numbers, which a matrix turns into a number a label, here it has the
number itself, so that a document costs one read a feature. fastText's own library was not taken. The module of that
name which language identification brings predicts only; its trainer is in another package that overwrites the module.
Its threads update weights without locks, so two trainings differ; it splits at spaces, where Chinese has none; and its
prediction takes a string at a time.

The sum is divided by the square root of the number of features: of documents of the same kind a longer one is surer,
but not in proportion to its length, as its words are not independent. Weights are trained by Adagrad (Duchi and others,
2011), whose steps fit both frequent and rare words, one document after the other: the same documents give the same
bytes. The last label's weights are 0, which costs a softmax nothing: two labels are a logistic regression.
"""

from dataclasses import dataclass

import numba
import numpy as np

from data_prep.quality import features
from data_prep.quality.features import Hashed

VERSION = 1
# The square of an error near 0 may be 0 in float32.
LEAST = np.float32(1e-12)


@dataclass(frozen=True)
class Classifier:
    """`weights` float32 [buckets, labels - 1]; calibrated logits are `scale` times the sums, and `biases` [labels]."""

    labels: tuple[str, ...]
    ngram: int
    weights: np.ndarray
    scale: float
    biases: np.ndarray

    def logits(self, texts: Hashed) -> np.ndarray:
        """Calibrated logits of the labels, float64 [documents, labels]; `softmax` makes probabilities of them."""
        found, bounds = features.buckets(texts, self.ngram, len(self.weights))
        return self.scale * sums(found, bounds, self.weights) + self.biases


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [documents, labels]; sums to 1 over labels."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sums(found: np.ndarray, bounds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logits before calibration of documents with the features `found`, float64 [documents, labels]."""
    return _sums(found, bounds, weights)


def train(
    found: np.ndarray, bounds: np.ndarray, labels: np.ndarray, orders: np.ndarray, shape: tuple[int, int], rate: float
) -> np.ndarray:
    """Weights float32 `shape` (buckets, labels - 1), from 0.

    found, bounds: as `features.buckets` has them; labels: int64 [documents]; orders: int64 [epochs, documents], the
    order in which each epoch goes through documents; rate: Adagrad's step.
    """
    weights, squares = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for order in orders:
        _epoch(found, bounds, labels, order, weights, squares, np.float32(rate))
    return weights


@numba.njit(cache=True)
def _sums(found, bounds, weights):
    columns = weights.shape[1]
    result = np.zeros((len(bounds) - 1, columns + 1))
    for document in range(len(result)):
        start, stop = bounds[document], bounds[document + 1]
        for column in range(columns):
            total = np.float64(0)
            for place in range(start, stop):
                total += weights[found[place], column]
            result[document, column] = total / np.sqrt(max(1, stop - start))
    return result


@numba.njit(cache=True)
def _epoch(found, bounds, labels, order, weights, squares, rate):
    columns = weights.shape[1]
    for document in order:
        start, stop = bounds[document], bounds[document + 1]
        share = np.float32(1 / np.sqrt(max(1, stop - start)))
        logits = np.zeros(columns + 1)
        for place in range(start, stop):
            for column in range(columns):
                logits[column] += weights[found[place], column]
        logits *= share
        powers = np.exp(logits - logits.max())
        powers /= powers.sum()
        for column in range(columns):
            error = np.float32(powers[column] - (labels[document] == column)) * share
            for place in range(start, stop):
                bucket = found[place]
                squares[bucket, column] += error * error
                weights[bucket, column] -= rate * error / np.sqrt(squares[bucket, column] + LEAST)
