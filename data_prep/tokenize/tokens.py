"""Compiled loops over the token ids of many documents."""

import numba
import numpy as np


def add_boundaries(
    ids: np.ndarray, counts: np.ndarray, bos_id: int | None, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put [BOS] and EOS around every document that has tokens.

    ids [tokens] and counts [documents] become tokens uint32 [more tokens] and their counts; 0 stays 0.
    """
    lengths = np.where(counts > 0, counts + (1 if bos_id is None else 2), 0)
    tokens = np.empty(lengths.sum(), np.uint32)
    _surround(ids, counts, -1 if bos_id is None else bos_id, eos_id, tokens)
    return tokens, lengths


@numba.njit(cache=True)
def _surround(ids, counts, bos_id, eos_id, tokens):
    read = write = 0
    for count in counts:
        if count == 0:
            continue
        if bos_id >= 0:
            tokens[write] = bos_id
            write += 1
        for _ in range(count):
            tokens[write] = ids[read]
            read, write = read + 1, write + 1
        tokens[write] = eos_id
        write += 1


@numba.njit(cache=True)
def gather(tokens, starts, lengths, result):
    """Copy documents one after the other: number i is tokens[starts[i] : starts[i] + lengths[i]]."""
    write = 0
    for document in range(len(starts)):
        first = starts[document]
        for place in range(first, first + lengths[document]):
            result[write] = tokens[place]
            write += 1


@numba.njit(cache=True)
def spell(ids, counts, pieces, edges, data, bounds):
    """Whether the ids of every document spell its text.

    Token i is the bytes pieces[edges[i] : edges[i + 1]]; ids [tokens] are those of all documents, counts [documents];
    document d is data[bounds[d] : bounds[d + 1]].
    """
    read = 0
    for document, count in enumerate(counts):
        place, stop = bounds[document], bounds[document + 1]
        for token in ids[read : read + count]:
            if token >= len(edges) - 1:
                return False
            first, last = edges[token], edges[token + 1]
            if last - first > stop - place:
                return False
            for position in range(first, last):
                if pieces[position] != data[place]:
                    return False
                place += 1
        if place != stop:
            return False
        read += count
    return True
