"""n-gram models with interpolated modified Kneser-Ney smoothing, counted and estimated in memory.

The estimator is that of Heafield and others, "Scalable Modified Kneser-Ney Language Model Estimation" (ACL 2013,
section 3), and so are the choices around it, so that KenLM's `lmplz` gives the same numbers (Chen and Goodman, 1999,
have the smoothing itself):

    p(w | v u) = (a(v u w) - D(a(v u w))) / a(v u .) + b(v u) p(w | u)

a is the count of the longest n-grams and of those that begin a document, and the number of different words to the left
of all others. Unigrams are interpolated with the uniform distribution over the vocabulary, <unk> among it. What is
pruned counts in a and D, and its share of a context goes to b.

Memory: about 100 bytes per token at the peak, 20 per byte of English text and 30 per byte of Chinese (measured).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from data_prep.text.words import mixed

UNKNOWN, BEGIN, END = 0, 1, 2
SPECIAL = 3
# Where counts of counts are too few for the estimate; those of lmplz.
FALLBACK = (0.5, 1.0, 1.5)
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of one length that a model has; all arrays are [n-grams].

    context and suffix: int32, the n-gram without its last and without its first word, among those of the length below;
    word: int32, the last word; log_p: float32, natural logarithm of its probability; backoff: float32, b of its own.
    """

    context: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    log_p: np.ndarray
    backoff: np.ndarray


@dataclass(frozen=True)
class Counts:
    """All n-grams of one length that occur, int32 [n-grams]: `Ngrams` among all of the length below, how often each
    occurs, and how many different words stand to the left of it, 0 where it begins a document."""

    context: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    count: np.ndarray
    left: np.ndarray


@numba.njit(cache=True)
def number(keys):
    """Number different keys, uint64 [N], in order of their first occurrence.

    Returns: numbers int32 [N], the place of the first occurrence int32 [different], and counts int32 [different].
    """
    slots = np.uint64(len(keys) + len(keys) // 2 + 1)
    table = np.full(slots, -1, np.int32)
    numbers = np.empty(len(keys), np.int32)
    first = np.empty(len(keys), np.int32)
    counts = np.zeros(len(keys), np.int32)
    found = 0
    for place in range(len(keys)):
        key = keys[place]
        slot = ((mixed(key) >> SHIFT) * slots) >> SHIFT
        while table[slot] >= 0 and keys[first[table[slot]]] != key:
            slot += np.uint64(1)
            if slot == slots:
                slot = np.uint64(0)
        if table[slot] < 0:
            table[slot] = found
            first[found] = place
            found += 1
        numbers[place] = table[slot]
        counts[table[slot]] += 1
    return numbers, first[:found].copy(), counts[:found].copy()


def count(words: np.ndarray, order: int) -> Iterator[Counts]:
    """The n-grams of each length up to `order` in turn.

    words: int32 [N]; BEGIN stands before each document and END behind it.
    """
    inside = words[1:] != BEGIN
    found = words  # The n-gram that ends at each place, -1 for none.
    counts = np.bincount(words, minlength=SPECIAL).astype(np.int32)
    current = (np.zeros_like(counts), np.arange(len(counts), dtype=np.int32), np.zeros_like(counts), counts)
    for _ in range(order - 1):
        places = np.flatnonzero((found[:-1] >= 0) & inside).astype(np.int32) + np.int32(1)
        keys = found[places - 1].astype(np.uint64) << SHIFT | words[places].astype(np.uint64)
        numbers, first, counts = number(keys)
        keys = keys[first]
        longer = ((keys >> SHIFT).astype(np.int32), (keys & LOW).astype(np.int32), found[places[first]], counts)
        found = np.full_like(words, -1)
        found[places] = numbers
        del places, keys, numbers, first
        left = np.bincount(longer[2], minlength=len(current[0])).astype(np.int32)
        yield Counts(*current, left)
        current = longer
    yield Counts(*current, np.zeros_like(current[0]))


@dataclass(frozen=True)
class Estimate:
    """A model: its n-grams by length, unigrams first, of which number i is the word i.

    By length as well: `found` n-grams before any was left out, and the `discounts` of those that count 1, 2, and more.
    `fallback` names the lengths whose discounts are FALLBACK.
    """

    ngrams: list[Ngrams]
    found: list[int]
    discounts: list[list[float]]
    fallback: list[int]


def estimate(words: np.ndarray, order: int, prune: Sequence[int], vocabulary: int) -> Estimate:
    """A model of n-grams up to `order` words.

    Args:
        words: int32 [N]; BEGIN stands before each document and END behind it, UNKNOWN nowhere.
        prune: n-grams that occur at most so often are left out, by length; not falling, the last for longer ones.
        vocabulary: n-grams with a word of this number or a larger one are left out.
    """
    levels, backoffs, result = [], [], Estimate([], [], [], [])
    # Of the length below: where each n-gram is among those that are kept, -1 for nowhere, and their probabilities.
    places, lower = np.zeros(1, np.int32), np.array([1 / (min(words.max() + 1, vocabulary) - 1)])
    for length, counts in enumerate(count(words, order), 1):
        kept = (counts.count > prune[min(length, len(prune)) - 1]) & (counts.word < vocabulary)
        # Of the words before the last one, the parts know which are left out.
        kept &= (places[counts.context] >= 0) & (places[counts.suffix] >= 0)
        adjusted = np.where(counts.left > 0, counts.left, counts.count)
        if length == 1:
            kept[:SPECIAL], adjusted[BEGIN] = True, 0
        discounts, estimated = _discounts(adjusted)
        # What is taken from each n-gram goes to the shorter ones: all, where it is left out.
        taken = np.where(kept, discounts[np.minimum(adjusted, 3)], adjusted)
        total, free = (np.bincount(counts.context, values, len(places)) for values in (adjusted, taken))
        backoff = np.divide(free, total, out=np.ones(len(places)), where=total > 0)
        backoffs.append(backoff[places >= 0].astype(np.float32))
        context, suffix = counts.context[kept], places[counts.suffix[kept]]
        lower = (adjusted - taken)[kept] / total[context] + backoff[context] * lower[suffix]
        levels.append((places[context], counts.word[kept], suffix, np.log(lower).astype(np.float32)))
        places = np.where(kept, np.cumsum(kept, dtype=np.int32) - 1, -1).astype(np.int32)
        result.found.append(len(kept))
        result.discounts.append(discounts[1:].tolist())
        result.fallback.extend([] if estimated else [length])
    backoffs.append(np.ones(len(lower), np.float32))
    result.ngrams.extend(Ngrams(*level, backoff) for level, backoff in zip(levels, backoffs[1:], strict=True))
    return result


def _discounts(adjusted: np.ndarray) -> tuple[np.ndarray, bool]:
    """What is taken from the adjusted counts 0, 1, 2 and more, and whether that is estimated (Chen and Goodman)."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6)[:5].astype(float)
    if n[1:].all():
        counts = np.arange(4.0)
        found = counts - (counts + 1) * n[1] / (n[1] + 2 * n[2]) * np.append(0, n[2:] / n[1:4])
        found[0] = 0
        if (found[1:] > 0).all() and (found <= counts).all():
            return found, True
    return np.array([0, *FALLBACK]), False
