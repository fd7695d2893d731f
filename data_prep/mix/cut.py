"""Where a source's share ends on the line of its copies (copies.py).

The place is found from sums of tokens by ranges of the line, and then from the copies of one range. Memory: one run
(40 bytes per document), and of a source the copies of one range of 4,096 (16 bytes each).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.manifest import Folder, Record, writing
from data_prep.mix.copies import Copying
from data_prep.tokenize.runs import Run

VERSION = 1
RANGES = 2**12
SUMS = "sums.npy"


def count(folder: Folder, key: str, run: Run, copying: Copying) -> Record:
    """Sum the tokens of a run's copies: `values` has those of one epoch (`once`) and of `max_epochs` (`most`).

    The file `SUMS` has them by range of the line, int64 [RANGES].
    """
    lengths, sums, once = np.diff(run.edges(0, run.documents)), np.zeros(RANGES, np.int64), 0
    for _, rows, places in copying.places(run):
        np.add.at(sums, _range_of(places, copying), lengths[rows])
        once += int(lengths[rows[places <= 1]].sum())
    with writing(folder.file(key, SUMS)) as temporary, open(temporary, "wb") as file:
        np.save(file, sums)
    return folder.commit(key, [SUMS], {"once": once, "most": int(sums.sum())})


def find_cut(
    folder: Folder, key: str, runs: Sequence[Run], copyings: Sequence[Copying], sums: Sequence[Path], tokens: int
) -> Record:
    """The share of `tokens`, fewer than all, of runs with a line in common: as near as whole documents come to it.

    `values["until"]` is the place of the first copy that is not in it; those before it are.
    """
    total = np.sum([np.load(path) for path in sums], axis=0)
    before = np.cumsum(total)
    wanted = int(np.searchsorted(before, tokens, "right"))
    places, lengths = [], []
    for run, copying in zip(runs, copyings, strict=True):
        length = np.diff(run.edges(0, run.documents))
        for _, rows, place in copying.places(run):
            inside = _range_of(place, copying) == wanted
            places.append(place[inside])
            lengths.append(length[rows[inside]])
    place, length = np.concatenate(places), np.concatenate(lengths)
    order = np.argsort(place, kind="stable")
    room, ends = tokens - (before[wanted] - total[wanted]), np.cumsum(length[order])
    across = int(np.searchsorted(ends, room, "right"))
    until = place[order[across]]
    # The copy that lies across the end belongs to the share where most of it does.
    if ends[across] - length[order[across]] / 2 <= room:
        until = np.nextafter(until, np.inf)
    return folder.commit(key, (), {"until": float(until)})


def _range_of(places: np.ndarray, copying: Copying) -> np.ndarray:
    return np.minimum((places / copying.max_epochs * RANGES).astype(np.int64), RANGES - 1)
