"""Which window each piece of a block's documents goes into: best-fit-decreasing, for the index of bestfit.py."""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def best_fit_decreasing(slots: Ints, seq_len: int) -> Ints:
    """Place pieces of 1..seq_len slots into windows: the longest first, each into the fullest window that holds it.

    Returns: the window of each piece, int64 [pieces]. Windows are numbered in the order in which they are opened;
    pieces of the same length are placed in the order in which they are given.

    Windows with the same room are alike, and so are pieces of one length: if the fullest window that holds one has
    room for m, it gets m of them, because after each it is still the fullest that does. So runs of windows are filled
    at once, in steps that number a few per distinct length, not one per piece.
    """
    lengths, counts = np.unique(slots, return_counts=True)
    # Ranges (first window, windows) by room, and the rooms in ascending order; there are enough empty windows.
    ranges, rooms = {seq_len: [(0, len(slots))]}, [seq_len]
    placed = []
    for length, count in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            fullest = bisect_left(rooms, length)
            room = rooms[fullest]
            first, windows = ranges[room].pop()
            each = min(room // length, count)
            filled = min(windows, count // each)
            placed.append((first, filled, each))
            count -= filled * each
            if filled < windows:
                ranges[room].append((first + filled, windows - filled))
            elif not ranges[room]:
                del ranges[room], rooms[fullest]
            if rest := room - each * length:
                if rest not in ranges:
                    ranges[rest] = []
                    insort(rooms, rest)
                ranges[rest].append((first, filled))
    firsts, filled, each = np.array(placed, np.int64).reshape(-1, 3).T
    number = np.arange(filled.sum()) - np.repeat(filled.cumsum() - filled, filled)
    window = np.empty(len(slots), np.int64)
    window[np.argsort(-slots, kind="stable")] = np.repeat(np.repeat(firsts, filled) + number, np.repeat(each, filled))
    return window


def arrange(slots: Ints, seq_len: int) -> tuple[Ints, Ints]:
    """Pack pieces: their order by windows, and where in that order each window begins and the last one ends."""
    window = best_fit_decreasing(slots, seq_len)
    # numpy guarantees this stream for ever (reference of Philox, "Compatibility Guarantee").
    random = np.random.Philox(0).random_raw(len(slots))
    _, first = np.unique(window, return_index=True)
    order = np.lexsort((random, window, random[first][window]))
    begins = np.flatnonzero(np.diff(window[order], prepend=-1))
    return order, np.append(begins, len(order))


def cut(starts: Ints, ends: Ints, seq_len: int) -> tuple[Ints, Ints, Ints]:
    """Documents cut into pieces of at most seq_len slots: their starts, their slots, and the tokens that are read."""
    pieces = -(-(ends - starts) // seq_len)
    number = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    starts = np.repeat(starts, pieces) + number * seq_len
    left = np.repeat(ends, pieces) - starts
    return starts, np.minimum(left, seq_len), np.minimum(left, seq_len + 1)
