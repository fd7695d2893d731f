"""An n-gram model as an automaton: what is asked for every word of every document.

States are the contexts of the model's n-grams, 0 the empty one. A word in a state is looked up in one hash table:
either there is an n-gram, with its probability and the state behind it, or the back-off of the state is paid and its
suffix takes its place. That gives the sums of KenLM (Heafield, "KenLM: Faster and Smaller Language Model Queries",
2011), where the state is the part of the history that matters as well, in about two look-ups per word.
"""

from collections.abc import Mapping

import numba
import numpy as np

from data_prep.quality.kneser_ney import BEGIN, END, SHIFT, SPECIAL, UNKNOWN, Estimate
from data_prep.text.words import mixed

# Keys of the words that no text has; 0 is an empty place of a table.
KEYS = np.arange(1, SPECIAL + 1, dtype=np.uint64)
# Hash tables: of words by their hash, and of longer n-grams by state << 32 | word. `next` is the state behind them.
VOCABULARY = np.dtype([("key", "<u8"), ("log_p", "<f4"), ("next", "<u4"), ("word", "<u4"), ("unused", "<u4")])
NGRAMS = np.dtype([("key", "<u8"), ("log_p", "<f4"), ("next", "<u4")])
# By state: the logarithm of its back-off, and the state of its longest suffix.
STATES = np.dtype([("backoff", "<f4"), ("suffix", "<u4")])
KINDS = {"vocabulary": VOCABULARY, "ngrams": NGRAMS, "states": STATES}


@numba.njit(cache=True, inline="always")
def _find(table, key):
    """The place of a key in a hash table, or the empty one where it would be."""
    size = np.uint64(len(table))
    slot = ((mixed(key) >> SHIFT) * size) >> SHIFT
    while table[slot].key != key and table[slot].key != np.uint64(0):
        slot += np.uint64(1)
        if slot == size:
            slot = np.uint64(0)
    return slot


@numba.njit(cache=True)
def measure(hashes, bounds, vocabulary, ngrams, states):
    """Of each document the logarithm of its probability, tokens and unknown words: float64, int64, int64 [documents].

    hashes: of the words, uint64 [words]; document i has those from bounds[i] on, int64 [documents + 1].
    """
    documents = len(bounds) - 1
    log_p = np.zeros(documents)
    tokens = bounds[1:] - bounds[:-1] + 1
    unknown = np.zeros(documents, np.int64)
    begin = _find(vocabulary, np.uint64(BEGIN + 1))
    end = _find(vocabulary, np.uint64(END + 1))
    nowhere = _find(vocabulary, np.uint64(UNKNOWN + 1))
    for document in range(documents):
        state = vocabulary[begin].next
        for place in range(bounds[document], bounds[document + 1] + 1):
            entry = end
            if place < bounds[document + 1]:
                entry = _find(vocabulary, hashes[place])
                if vocabulary[entry].key == 0:
                    entry = nowhere
                    unknown[document] += 1
            word = np.uint64(vocabulary[entry].word)
            while state:
                slot = _find(ngrams, np.uint64(state) << SHIFT | word)
                if ngrams[slot].key:
                    log_p[document] += ngrams[slot].log_p
                    state = ngrams[slot].next
                    break
                log_p[document] += states[state].backoff
                state = states[state].suffix
            else:
                log_p[document] += vocabulary[entry].log_p
                state = vocabulary[entry].next
    return log_p, tokens, unknown


@numba.njit(cache=True)
def _fill(table, keys):
    """Put different keys into an empty table; their places, int64 [keys]."""
    places = np.empty(len(keys), np.int64)
    for number in range(len(keys)):
        places[number] = _find(table, keys[number])
        table[places[number]].key = keys[number]
    return places


def compiled(estimate: Estimate, hashes: np.ndarray) -> dict[str, np.ndarray]:
    """The tables of KINDS for a model whose word i has the hash hashes[i], uint64 [words], KEYS first."""
    states = [np.zeros(1, STATES)]
    keys, log_ps, nexts = [], [], []
    # Of each n-gram of the length below: its state, 0 for none, and the state behind it.
    state = following = np.zeros(1, np.uint32)
    total = 1
    for level, longer in zip(estimate.ngrams, [*estimate.ngrams[1:], None], strict=True):
        keys.append(state[level.context].astype(np.uint64) << SHIFT | level.word.astype(np.uint64))
        # A context that nothing follows is no state: its back-off is 1.
        contexts = np.flatnonzero(np.bincount(longer.context)) if longer is not None else np.zeros(0, np.int64)
        below = following[level.suffix]
        state = np.zeros(len(level.word), np.uint32)
        state[contexts] = total + np.arange(len(contexts))
        total += len(contexts)
        following = np.where(state > 0, state, below)
        states.append(np.zeros(len(contexts), STATES))
        states[-1]["backoff"] = np.log(level.backoff[contexts])
        states[-1]["suffix"] = below[contexts]
        log_ps.append(level.log_p)
        nexts.append(following)
    known = _table(VOCABULARY, hashes, log_ps[0], nexts[0], {"word": np.arange(len(hashes))})
    ngrams = _table(NGRAMS, *map(np.concatenate, (keys[1:], log_ps[1:], nexts[1:])), {})
    return {"vocabulary": known, "ngrams": ngrams, "states": np.concatenate(states)}


def _table(
    kind: np.dtype, keys: np.ndarray, log_p: np.ndarray, following: np.ndarray, columns: Mapping[str, np.ndarray]
) -> np.ndarray:
    """A hash table that is two thirds full."""
    table = np.zeros(len(keys) + len(keys) // 2 + 1, kind)
    places = _fill(table, keys)
    for name, values in {"log_p": log_p, "next": following, **columns}.items():
        table[name][places] = values
    return table


def flaw(tables: Mapping[str, np.ndarray]) -> str | None:
    """Why tables that were read cannot be used: compiled loops check no index and would not end; None if they can."""
    for name, kind in KINDS.items():
        if tables[name].dtype != kind or tables[name].ndim != 1 or not len(tables[name]):
            return f"{name} is {tables[name].dtype} {list(tables[name].shape)}"
    states = tables["states"]
    if (states["suffix"][1:] >= np.arange(1, len(states))).any():
        return "a suffix in states is no earlier state"
    for name in ("vocabulary", "ngrams"):
        if tables[name]["key"].all():
            return f"{name} has no empty place"
        if tables[name]["next"].max() >= len(states):
            return f"a state in {name} is not in states"
    return None if np.isin(KEYS, tables["vocabulary"]["key"]).all() else "vocabulary lacks the ends of documents"
