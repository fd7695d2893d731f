"""Of documents that were dropped as copies, the ones that stayed; and how many copies there were.

Both come from what the search for copies left (dedup/copies.py): of every place in a group whether it stays, and the
groups, both on disk. They are read in pieces of `ROWS` rows, once for all documents asked for.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dedup.tables import first_place, load
from data_prep.documents import Part
from data_prep.report.trace import Trace

ROWS = 2**20


def cluster_sizes(trace: Trace) -> list[dict[str, Any]]:
    """By stage how many clusters have 2, 3, ... documents: [size, clusters], smallest first."""
    found = []
    for stage in trace.records:
        if files := trace.files(stage, "found"):
            sizes: Counter = Counter()
            for piece in _pieces(files):
                values, counts = np.unique(piece["size"][piece["best"]], return_counts=True)
                sizes.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            found.append({"stage": stage, "sizes": [list(item) for item in sorted(sizes.items())]})
    return found


def stayed(trace: Trace, step: int, documents: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[Part, int]]:
    """Part and row of the copy that stayed, by the name of the part and the row of one that a step dropped.

    A document whose copy is one of an earlier data set, or which is no copy, is not in it.
    """
    at = trace.steps[step]
    groups, found = (trace.files(at.stage, kind) for kind in ("groups", "found"))
    wanted = {first_place(at.numbers[name]) + row: (name, row) for name, row in documents if name in at.numbers}
    if not wanted or not groups:
        return {}
    group_of = {}
    places = np.array(sorted(wanted), np.uint64)
    for piece in _pieces(groups):
        inside = piece[np.isin(piece[:, 0], places)]
        group_of.update(dict(zip(inside[:, 0].tolist(), inside[:, 1].tolist(), strict=True)))
    chosen = np.array(sorted(set(group_of.values())), np.uint64)
    members = np.concatenate([piece[np.isin(piece[:, 1], chosen)] for piece in _pieces(groups)])
    staying = np.concatenate([_staying(piece, members[:, 0]) for piece in _pieces(found)])
    best = {int(group): int(place) for place, group in members[np.isin(members[:, 0], staying)].tolist()}
    copies = {}
    for place, group in group_of.items():
        number, row = divmod(best.get(group, place), first_place(1))
        if best.get(group, place) != place and number < len(at.before):
            copies[wanted[place]] = (at.before[number], row)
    return copies


def _staying(found: np.ndarray, places: np.ndarray) -> np.ndarray:
    return found["place"][found["best"] & np.isin(found["place"], places)]


def _pieces(files: Sequence[Path]) -> Iterator[np.ndarray]:
    for path in files:
        array = load(path)
        for start in range(0, len(array), ROWS):
            yield np.array(array[start : start + ROWS])
