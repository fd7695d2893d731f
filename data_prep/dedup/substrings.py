"""Long substrings that occur more than once, across the corpus and within a document: all but the first are cut.

Lee et al. 2021 (arXiv 2107.06499) cut repeats of 50 BPE tokens, about 200 bytes, found by one suffix array of the whole
corpus. That takes memory in proportion to the corpus; here fingerprints are compared, by winnowing (Schleimer,
Wilkerson, Aiken 2003): of every w consecutive k-grams of bytes the one with the smallest hash is selected, so two equal
substrings of w + k - 1 bytes select equal k-grams. The first and the last k-gram of a document are selected too, so
that beginnings, endings and whole documents that are equal are found up to their edge. k = min_bytes / 2 and
w = min_bytes / 4, so 4 % of the k-grams are selected by default, which take 0.7 bytes on disk per byte of text.

- A selected k-gram goes if the same one occurs earlier: in a source before, in a document with a smaller id_hash, or
  further up in the document and not overlapping. Runs of k-grams that go and touch are cut where they are at least
  min_bytes long, from the beginning of a line or word to that of another if there is one within `SNAP` bytes, and
  always between characters.
- Guaranteed: of a substring of L >= min_bytes + 2 (w - 1) bytes, one and a half times min_bytes, that occurs earlier
  and not overlapping, all is cut but at most w - 1 + SNAP bytes at each end. For the selected k-grams inside are at
  most w <= k apart, the outer ones end less than w bytes from its ends, and so cover at least L - 2 (w - 1) bytes.
- Every byte that is cut lies in a k-gram that occurs earlier in the text as this stage sees it. A substring of less
  than min_bytes between text that occurs nowhere else is not cut. Between the two lengths it depends on the hashes.
- A first occurrence stays whole, but for what is itself in a repeat of something earlier.

Among n different selected k-grams w n^2 / 2^66 pairs are expected to have the same hash, as small hashes are selected:
0.007 among 10^8, those of 2.5 GB of text. A pair alone is shorter than min_bytes and cuts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numba
import numpy as np

from data_prep.dedup.spans import UNIT_FILES, Arrays, Pieces, Rule, going, write_units
from data_prep.documents import Part, iterate, mix
from data_prep.engine import advance
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder, Record
from data_prep.text.texts import Texts
from data_prep.text.words import mixed

VERSION = 1
# Place of a k-gram in its document, and how far inside it a cut may begin and how far before its end it may stop.
COLUMNS = {"starts": "<u4", "leads": "u1", "trails": "u1"}
# Looking this far for the beginning of a line or word costs at most so many bytes at each end of a cut.
SNAP = 48
NEWLINE, SPACE = 0x0A, 0x20
# 5 modulo 8: no other numbers have more powers modulo 2^64.
BASE = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Winnowing:
    """How k-grams are selected."""

    min_bytes: int

    @property
    def k(self) -> int:
        return self.min_bytes // 2

    @property
    def w(self) -> int:
        return self.min_bytes // 4

    @property
    def snap(self) -> int:
        return min(SNAP, self.k // 2)

    @property
    def rule(self) -> Rule:
        return Rule(1, True, False, self.k)

    @property
    def key(self) -> list:
        return [self.min_bytes]


@cache
def _powers(k: int) -> np.ndarray:
    """What a byte that enters and one that leaves a rolling hash are worth, uint64 [2, 256]."""
    entering = mix(np.arange(256, dtype=np.uint64), 0)
    return np.stack([entering, entering * np.uint64(pow(BASE, k, 2**64))])


def write_part_units(folder: Folder, key: str, part: Part, winnowing: Winnowing) -> Record:
    """The selected k-grams of a part."""
    pieces = []
    for table in iterate(part, ("row", "id_hash", "text")):
        rows, documents = table["row"].to_numpy(), table["id_hash"].to_numpy()
        for first, texts in Texts.of(table["text"]).batches():
            inside = slice(first, first + len(texts))
            starts, leads, trails, counts, hashes = select(texts, winnowing)
            columns = {"starts": starts, "leads": leads, "trails": trails}
            compared = np.ones(len(hashes), bool)
            pieces.append(
                Pieces(rows[inside], documents[inside], np.diff(texts.bounds), counts, hashes, compared, columns)
            )
            advance(int(texts.bounds[-1] - texts.bounds[0]))
    return write_units(folder, key, pieces, COLUMNS)


def select(texts: Texts, winnowing: Winnowing) -> tuple[np.ndarray, ...]:
    """The selected k-grams: starts uint32, leads and trails uint8, counts int64 [documents], hashes uint64."""
    starts, counts, hashes = _select(texts.data, texts.bounds, winnowing.k, winnowing.w, _powers(winnowing.k))
    begins = np.repeat(texts.bounds[:-1], counts)
    ends = np.repeat(texts.bounds[1:], counts)
    leads = _snap(texts.data, begins + starts, begins, ends, winnowing.snap, 1)
    trails = _snap(texts.data, begins + starts + winnowing.k, begins, ends, winnowing.snap, -1)
    return starts, leads, trails, counts, hashes


@numba.njit(cache=True)
def _select(data, bounds, k, w, powers):
    room = bounds[-1] - bounds[0]
    starts, hashes = np.empty(room, np.uint32), np.empty(room, np.uint64)
    counts = np.zeros(len(bounds) - 1, np.int64)
    ring = np.empty(w, np.uint64)
    base = np.uint64(BASE)
    count = 0
    for document in range(len(bounds) - 1):
        begin, grams = bounds[document], bounds[document + 1] - bounds[document] - k + 1
        if grams < w:
            continue
        before, value = count, np.uint64(0)
        chosen, smallest, order = 0, np.uint64(0), np.uint64(0)
        for position in range(begin, begin + k - 1):
            value = value * base + powers[0, data[position]]
        for gram in range(grams):
            value = value * base + powers[0, data[begin + gram + k - 1]]
            if gram:
                value -= powers[1, data[begin + gram - 1]]
            order = mixed(value)
            ring[gram % w] = order
            if gram == 0 or order < smallest:
                chosen, smallest = gram, order
            elif chosen == gram - w:
                # Of equal ones the last; and one that is chosen stays until it has left the window, so that a run of
                # one character gives one in w.
                chosen, smallest = gram, order
                for other in range(gram - 1, gram - w, -1):
                    if ring[other % w] < smallest:
                        chosen, smallest = other, ring[other % w]
            if gram == 0 or (gram >= w - 1 and chosen != starts[count - 1]):
                starts[count], hashes[count] = chosen, smallest
                count += 1
        if starts[count - 1] != grams - 1:
            starts[count], hashes[count] = grams - 1, order
            count += 1
        counts[document] = count - before
    for index in range(count):
        # Small ones were chosen; ranges of hashes should hold equal shares.
        hashes[index] = mixed(hashes[index] + base)
    return starts[:count].copy(), counts, hashes[:count].copy()


@numba.njit(cache=True)
def _snap(data, places, begins, ends, reach, step):
    """Bytes from each place, forward or back, to where a line begins; none in reach, then a word, then a character."""
    result = np.empty(len(places), np.uint8)
    for index in range(len(places)):
        word, character = -1, -1
        for distance in range(reach + 1):
            place = places[index] + step * distance
            before = NEWLINE if place == begins[index] or place == ends[index] else data[place - 1]
            if before == NEWLINE:
                word = distance
                break
            if word < 0 and before <= SPACE:
                word = distance
            if character < 0 and data[place] & 0xC0 != 0x80:
                character = distance
        result[index] = word if word >= 0 else character
    return result


def write_list(
    folder: Folder, key: str, name: str, directory: Path, cuts: Sequence[Path], number: int, rule: Rule, min_bytes: int
) -> Record:
    """Cut the substrings of part `number` that go; a document of which nothing is left is dropped."""
    arrays = Arrays(directory, {**UNIT_FILES, **COLUMNS})
    starts = arrays.load("starts").astype(np.int64)
    rows, sizes = arrays.load("rows"), arrays.load("sizes")
    gone = going(arrays, cuts, number, rule, starts)
    owners, spans = spans_of(
        gone, starts, arrays.load("leads"), arrays.load("trails"), arrays.load("bounds"), rule.reach, min_bytes
    )
    marks = Marks()
    edges = np.searchsorted(owners, np.arange(len(rows) + 1))
    for document in np.unique(owners).tolist():
        own = spans[edges[document] : edges[document + 1]]
        cut = int((own[:, 1] - own[:, 0]).sum())
        if cut == sizes[document]:
            marks.drop(rows[document], cut, "nothing left")
        else:
            marks.edit(rows[document], [(a, b, "") for a, b in own.tolist()], f"{len(own)} cut", "repeated")
    return commit(folder, key, {name: marks} if marks.rows else {})


@numba.njit(cache=True)
def spans_of(gone, starts, leads, trails, bounds, k, min_bytes):
    """Runs of k-grams that go and touch: their documents int64 [spans] and bytes int64 [spans, 2]."""
    owners, spans = np.empty(len(gone), np.int64), np.empty((len(gone), 2), np.int64)
    count = 0
    for document in range(len(bounds) - 1):
        first, last = -1, -1
        for unit in range(bounds[document], bounds[document + 1] + 1):
            inside = unit < bounds[document + 1]
            if inside and not gone[unit]:
                # One that stays may lie across two that go and touch.
                continue
            if first >= 0 and not (inside and starts[unit] <= starts[last] + k):
                if starts[last] + k - starts[first] >= min_bytes:
                    owners[count] = document
                    spans[count, 0], spans[count, 1] = starts[first] + leads[first], starts[last] + k - trails[last]
                    count += 1
                first = -1
            if first < 0:
                first = unit
            last = unit
    return owners[:count].copy(), spans[:count].copy()
