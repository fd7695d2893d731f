"""Pieces of text that occur more than once in the whole corpus: which occurrences of them go.

A unit is a piece of a document that is known by a 64-bit hash: a line, a paragraph, a k-gram of bytes. Tables of units
are a third to a whole of the text's size, so they are never in memory together. Three maps:

  part -> units    `write_units`: the part's units, and their hashes sorted.
  range -> cuts    `find_cuts`: merges a range of hashes of all parts; of each hash that occurs too often, how many of a
                   part's occurrences stay.
  part -> list     `going`: reads what all ranges say of the part's units. Text is not read again.

Occurrences are ordered by precedence: source, id_hash, place in the document; so the result depends neither on how
documents were split into parts nor on the number of workers or ranges. A hash that occurs in very many documents takes
no more room in a range than the few first occurrences of each part that can stay.

Memory of a worker (measured, beside 0.2 GB of libraries): about 50 bytes for each unit of a part, of which 256 MB of
text have 6 million lines or 10 million k-grams of substrings.py; 0.2 GB for a range; 30 bytes for each unit for a list.

Among n different units n^2 / 2^65 pairs are expected to share a hash: 0.03 among 10^9.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from data_prep.documents import Part
from data_prep.engine import Task, advance
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.stages import Run

CUTS_VERSION, LISTS_VERSION = 1, 2
# Hashes of a range; they and what it takes to sort and group them need about 50 bytes each.
RANGE_UNITS = 2**22
# A hash and the number of its unit.
ENTRY_BYTES = 12
# hashes and units: one entry per unit that is compared, ascending by hash, then unit. Units are numbered by precedence.
# bounds, rows, documents (id_hash) and sizes: one entry per document, ascending by id_hash.
UNIT_FILES = {"hashes": "<u8", "units": "<u4", "bounds": "<i8", "rows": "<u4", "documents": "<u8", "sizes": "<u4"}
# Ascending by part, then hash: those of part i are bounds[i] .. bounds[i + 1].
CUT_FILES = {"hashes": "<u8", "stays": "<u4", "bounds": "<i8"}


@dataclass(frozen=True)
class Rule:
    """Units that occur more than `allowed` times are cut: all but the first `allowed` occurrences, or all of them.

    With `by_document` documents are counted, and what stays in one stays as often as it occurs there. Otherwise each
    occurrence counts, and one that begins less than `reach` bytes after one that stays overlaps it and stays as well.
    """

    allowed: int
    keep_first: bool
    by_document: bool
    reach: int = 0

    @property
    def key(self) -> list:
        return [self.allowed, self.keep_first, self.by_document, self.reach]


@dataclass(frozen=True)
class Arrays:
    """Arrays of a result, a file each, which are read in pieces."""

    directory: Path
    types: Mapping[str, str]

    def load(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Entries start..stop of an array, in memory."""
        dtype = np.dtype(self.types[name])
        count = -1 if stop is None else stop - start
        return np.fromfile(self.directory / name, dtype, count, offset=start * dtype.itemsize)

    def mapped(self, name: str) -> np.ndarray:
        """An array on disk."""
        path = self.directory / name
        return (
            np.asarray(np.memmap(path, self.types[name], "r")) if path.stat().st_size else np.zeros(0, self.types[name])
        )


def write_arrays(folder: Folder, key: str, arrays: Mapping[str, np.ndarray], types: Mapping[str, str]) -> list[str]:
    """Write a file per array; returns their names."""
    for name, array in arrays.items():
        with writing(folder.file(key, name)) as temporary:
            array.astype(types[name], copy=False).tofile(temporary)
    return list(arrays)


@dataclass(frozen=True)
class Pieces:
    """The units of some documents of a part, in the order of the documents and of their places.

    `rows`, `documents` (id_hash), `sizes` (bytes of text), `counts` (units) [documents]; `hashes` uint64 and `compared`
    bool [units]: units that are not compared are never cut; `columns`: what else is known of the units, [units] each.
    """

    rows: np.ndarray
    documents: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    hashes: np.ndarray
    compared: np.ndarray
    columns: Mapping[str, np.ndarray]


def write_units(folder: Folder, key: str, pieces: Sequence[Pieces], types: Mapping[str, str]) -> Record:
    """Write the units of a part; `types` are those of their columns. `values` has how many are compared."""

    def joined(name: str, dtype: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(piece, name) for piece in pieces)])

    documents, counts = joined("documents", "u8"), joined("counts", "i8")
    order = np.argsort(documents, kind="stable")
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[order])])
    # Where the units of each document, in their new order, were before.
    before = np.repeat((np.cumsum(counts) - counts)[order] - bounds[:-1], counts[order])
    before += np.arange(bounds[-1])
    # One array after the other: they are most of a worker's memory.
    for name, dtype in types.items():
        columns = [np.zeros(0, dtype), *(piece.columns[name] for piece in pieces)]
        write_arrays(folder, key, {name: np.concatenate(columns)[before]}, types)
    compared = np.flatnonzero(joined("compared", "?")[before]).astype(np.uint32)
    hashes = joined("hashes", "u8")[before[compared]]
    del before
    by_hash = np.argsort(hashes, kind="stable")
    arrays = {
        "hashes": hashes[by_hash],
        "units": compared[by_hash],
        "bounds": bounds,
        "rows": joined("rows", "u4")[order],
        "documents": documents[order],
        "sizes": joined("sizes", "u4")[order],
    }
    names = write_arrays(folder, key, arrays, UNIT_FILES)
    return folder.commit(key, [*names, *types], {"units": len(hashes)})


def find_lists(
    this: Run,
    stage: str,
    parts: Sequence[Part],
    units: Sequence[Record],
    rule: Rule,
    write_list: Callable[..., Record],
    *arguments: object,
) -> list[Record]:
    """The lists of a stage, from the units of its parts.

    `write_list(folder, key, name, directory, cuts, number, rule, *arguments)` makes the one of part `number`.
    """
    ranks = {source: rank for rank, source in enumerate(this.config.ingest.sources)}
    folder = this.folder(stage)
    directories = [folder.file(record.key, "hashes").parent for record in units]
    owners = [ranks[part.source] for part in parts]
    inputs = [[record.key, rank] for record, rank in zip(units, owners, strict=True)]
    total = sum(record.values["units"] for record in units)
    count = -(-total // RANGE_UNITS) or 1
    ranges = [
        Task(
            make_key(f"{stage} cuts", CUTS_VERSION, inputs, rule.key, number, count),
            find_cuts,
            (directories, owners, rule, number, count),
            total * ENTRY_BYTES // count,
        )
        for number in range(count)
    ]
    cuts = [folder.file(record.key, "hashes").parent for record in this.tasks(stage, ranges, "ranges")]
    keys = [task.key for task in ranges]
    lists = [
        Task(
            make_key(f"{stage} lists", LISTS_VERSION, keys, number, part.name),
            write_list,
            (part.name, directory, cuts, number, rule, *arguments),
            0,
        )
        for number, (part, directory) in enumerate(zip(parts, directories, strict=True))
    ]
    return this.tasks(stage, lists, "lists")


def find_cuts(
    folder: Folder,
    key: str,
    directories: Sequence[Path],
    ranks: Sequence[int],
    rule: Rule,
    number: int,
    count: int,
) -> Record:
    """Range `number` of `count`: of each hash that occurs too often, and each part, how many occurrences stay there."""
    hashes, units, owners = _candidates(directories, rule, number, count)
    order = np.argsort(hashes)
    sizes = _run_lengths(hashes[order])
    order = order[np.repeat(sizes > rule.allowed, sizes)]
    hashes, units, owners = hashes[order], units[order], owners[order]
    documents = _documents(directories, units, owners)
    order = np.lexsort((owners, units, documents, np.asarray(ranks, np.int64)[owners], hashes))
    sizes = _run_lengths(hashes[order])
    places = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    stays = np.zeros(len(order), np.int64)
    stays[order] = (places < rule.allowed) & rule.keep_first
    order = np.lexsort((hashes, owners))
    hashes, owners, stays = hashes[order], owners[order], stays[order]
    sizes = _run_lengths(hashes, owners)
    starts = np.cumsum(sizes) - sizes
    stays = np.add.reduceat(stays, starts) if len(starts) else stays
    cut = stays < sizes
    arrays = {
        "hashes": hashes[starts][cut],
        "stays": stays[cut],
        "bounds": np.searchsorted(owners[starts][cut], np.arange(len(directories) + 1)),
    }
    return folder.commit(key, write_arrays(folder, key, arrays, CUT_FILES), {"cuts": int(cut.sum())})


def _candidates(
    directories: Sequence[Path], rule: Rule, number: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash, unit and part of the occurrences in a range that decide: of each part and hash, one more than may stay."""
    edges = [-(-(2**64) * edge // count) for edge in (number, number + 1)]
    found = []
    for owner, directory in enumerate(directories):
        arrays = Arrays(directory, UNIT_FILES)
        every = arrays.mapped("hashes")
        low, high = (int(np.searchsorted(every, np.uint64(edge))) if edge < 2**64 else len(every) for edge in edges)
        hashes, units = arrays.load("hashes", low, high), arrays.load("units", low, high)
        bounds = arrays.load("bounds") if rule.by_document else np.zeros(0, np.int64)
        first = _first_occurrences(hashes, units, bounds, rule.allowed + 1, rule.by_document)
        found.append((hashes[first], units[first], np.full(np.count_nonzero(first), owner, np.uint32)))
        advance(ENTRY_BYTES * (high - low))
    hashes, units, owners = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return hashes, units, owners


@numba.njit(cache=True)
def _first_occurrences(hashes, units, bounds, limit, by_document):
    """Which entries are the first occurrences of their hash, or the first of their document, up to `limit` of them."""
    chosen = np.zeros(len(hashes), np.bool_)
    number, stop = 0, 0
    for entry in range(len(hashes)):
        fresh = entry == 0 or hashes[entry] != hashes[entry - 1]
        number = 0 if fresh else number
        if number == limit or (by_document and not fresh and np.int64(units[entry]) < stop):
            continue
        chosen[entry] = True
        number += 1
        last = entry + 1 == len(hashes) or hashes[entry + 1] != hashes[entry]
        if by_document and not last:
            stop = bounds[np.searchsorted(bounds, np.int64(units[entry]), side="right")]
    return chosen


def _run_lengths(*arrays: np.ndarray) -> np.ndarray:
    """Lengths of the runs of entries that are equal in all arrays, int64 [runs]."""
    size = len(arrays[0])
    if not size:
        return np.zeros(0, np.int64)
    change = np.zeros(size - 1, bool)
    for array in arrays:
        change |= array[1:] != array[:-1]
    return np.diff(np.concatenate([[0], np.flatnonzero(change) + 1, [size]]))


def _documents(directories: Sequence[Path], units: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The id_hash of each unit's document."""
    result = np.zeros(len(units), np.uint64)
    order = np.argsort(owners, kind="stable")
    edges = np.searchsorted(owners[order], np.arange(len(directories) + 1))
    for directory, low, high in zip(directories, edges, edges[1:], strict=False):
        if low < high:
            arrays, chosen = Arrays(directory, UNIT_FILES), order[low:high]
            numbers = np.searchsorted(arrays.load("bounds"), units[chosen].astype(np.int64), side="right") - 1
            result[chosen] = arrays.load("documents")[numbers]
    return result


def going(units: Arrays, cuts: Sequence[Path], number: int, rule: Rule, starts: np.ndarray) -> np.ndarray:
    """Which units of part `number` are cut, bool [units]; `starts` are their places, where the rule has a reach."""
    hashes, stays = [], []
    for directory in cuts:
        arrays = Arrays(directory, CUT_FILES)
        low, high = arrays.mapped("bounds")[number : number + 2].tolist()
        hashes.append(arrays.load("hashes", low, high))
        stays.append(arrays.load("stays", low, high))
    return _going(
        units.mapped("hashes"),
        units.mapped("units"),
        units.load("bounds"),
        np.concatenate(hashes),
        np.concatenate(stays),
        rule.by_document,
        rule.reach,
        starts,
    )


@numba.njit(cache=True)
def _going(hashes, units, bounds, cut_hashes, cut_stays, by_document, reach, starts):
    gone = np.zeros(bounds[-1], np.bool_)
    for cut in range(len(cut_hashes)):
        low = np.searchsorted(hashes, cut_hashes[cut])
        number, stop, kept, kept_stop = 0, 0, 0, 0
        for entry in range(low, len(hashes)):
            if hashes[entry] != cut_hashes[cut]:
                break
            unit = np.int64(units[entry])
            if not by_document or unit >= stop:
                number += 1
                if by_document or reach:
                    stop = bounds[np.searchsorted(bounds, unit, side="right")]
            if number > cut_stays[cut]:
                gone[unit] = not (reach and unit < kept_stop and starts[unit] < starts[kept] + reach)
            else:
                kept, kept_stop = unit, stop
    return gone
