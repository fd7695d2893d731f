"""Lines and paragraphs that occur in too many documents: menus, notices, licences, templates.

A paragraph is a block of lines between blank lines. Units are compared without their indentation, and with `normalise`
folded (case, width, traditional Han) with white space runs as one. As in CCNet (Wenzek et al. 2020, section 3.1) and
the line-level step of Llama 3 (Dubey et al. 2024, section 3.1.1: lines in more than 6 documents), across the corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from data_prep.dedup.spans import UNIT_FILES, Arrays, Pieces, Rule, going, write_units
from data_prep.documents import Part, iterate
from data_prep.engine import advance
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder, Record
from data_prep.text import characters
from data_prep.text.characters import SPACE
from data_prep.text.texts import Texts, decode
from data_prep.text.words import mixed

VERSION = 1
NEWLINE = 0x0A
# Places of a unit in its document, in bytes, without the line break behind it.
COLUMNS = {"starts": "<u4", "stops": "<u4"}


@dataclass(frozen=True)
class Splitting:
    """What the units are, and which of them are compared: those of at least `min_characters` characters."""

    blocks: bool
    min_characters: int
    normalise: bool

    @property
    def key(self) -> list:
        return [self.blocks, self.min_characters, self.normalise, characters.UNICODE]


def write_part_units(folder: Folder, key: str, part: Part, splitting: Splitting) -> Record:
    """The lines or paragraphs of a part that are not blank."""
    pieces = []
    for table in iterate(part, ("row", "id_hash", "text")):
        rows, documents = table["row"].to_numpy(), table["id_hash"].to_numpy()
        for first, texts in Texts.of(table["text"]).batches():
            inside = slice(first, first + len(texts))
            pieces.append(_pieces(texts, rows[inside], documents[inside], splitting))
            advance(int(texts.bounds[-1] - texts.bounds[0]))
    return write_units(folder, key, pieces, COLUMNS)


def _pieces(texts: Texts, rows: np.ndarray, documents: np.ndarray, splitting: Splitting) -> Pieces:
    starts, stops, counts, hashes, sizes = split(texts, splitting.blocks, splitting.normalise)
    compared = sizes >= splitting.min_characters
    columns = {"starts": starts, "stops": stops}
    return Pieces(rows, documents, np.diff(texts.bounds), counts, hashes, compared, columns)


def split(texts: Texts, blocks: bool, normalise: bool) -> tuple[np.ndarray, ...]:
    """Lines, or `blocks` of lines, that are not blank.

    starts, stops uint32 [units] (bytes in the document), counts int64 [documents], hashes uint64 [units], sizes uint32
    [units] (characters, a run of white space as one).
    """
    data = texts.data[texts.bounds[0] : texts.bounds[-1]]
    room = np.count_nonzero(data == NEWLINE) + len(texts)
    table = characters.folded() if normalise else np.zeros(0, np.uint32)
    return _split(data, texts.bounds - texts.bounds[0], characters.kinds(), table, blocks, room)


@numba.njit(cache=True)
def _split(data, bounds, kinds, table, blocks, room):
    starts, stops, sizes = np.empty(room, np.uint32), np.empty(room, np.uint32), np.empty(room, np.uint32)
    hashes = np.empty(room, np.uint64)
    counts = np.zeros(len(bounds) - 1, np.int64)
    count = 0
    for document in range(len(bounds) - 1):
        position, begin, end = bounds[document], bounds[document], bounds[document + 1]
        before = count
        inside, gap = False, False
        value, size, first, last = np.uint64(0), 0, 0, 0
        while position < end:
            line, visible = position, False
            while position < end and data[position] != NEWLINE:
                here = position
                code, position = decode(data, position)
                if kinds[code] & SPACE:
                    gap = True
                    continue
                if not inside:
                    inside, gap, size, value = True, False, 0, np.uint64(0xCBF29CE484222325)
                    starts[count], first = line - begin, here
                if gap:
                    value = (value ^ np.uint64(0x20)) * np.uint64(0x100000001B3)
                    gap, size = False, size + 1
                if len(table):
                    value = (value ^ np.uint64(table[code])) * np.uint64(0x100000001B3)
                visible, size, last = True, size + 1, position
            if visible:
                stops[count] = position - begin
            gap = True
            position += 1
            if inside and (not visible or not blocks or position >= end):
                if not len(table):
                    value = np.uint64(0xCBF29CE484222325)
                    for byte in data[first:last]:
                        value = (value ^ np.uint64(byte)) * np.uint64(0x100000001B3)
                hashes[count], sizes[count] = mixed(value), size
                count += 1
                inside = False
        counts[document] = count - before
    return starts[:count].copy(), stops[:count].copy(), counts, hashes[:count].copy(), sizes[:count].copy()


def write_list(
    folder: Folder, key: str, name: str, directory: Path, cuts: Sequence[Path], number: int, rule: Rule
) -> Record:
    """Cut the units of part `number` that go; a document of which nothing is left is dropped."""
    arrays = Arrays(directory, {**UNIT_FILES, **COLUMNS})
    starts, stops, bounds = arrays.load("starts"), arrays.load("stops"), arrays.load("bounds")
    rows, sizes = arrays.load("rows"), arrays.load("sizes")
    gone = going(arrays, cuts, number, rule, starts)
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(gone)])[bounds]
    marks = Marks()
    for document in np.flatnonzero(np.diff(total)).tolist():
        inside = slice(bounds[document], bounds[document + 1])
        cut = total[document + 1] - total[document]
        if cut == bounds[document + 1] - bounds[document]:
            marks.drop(rows[document], sizes[document], "no line left")
        else:
            spans = spans_of(gone[inside], starts[inside], stops[inside])
            marks.edit(rows[document], [(a, b, "") for a, b in spans.tolist()], f"{cut} cut", "repeated")
    return commit(folder, key, {name: marks} if marks.rows else {})


@numba.njit(cache=True)
def spans_of(gone, starts, stops):
    """The bytes to cut from a document of which some units go and some stay, int64 [spans, 2].

    Of the two gaps around units that go, the larger one stays: so a paragraph still ends where it ended, and no blank
    line is left where lines were. At the document's ends both go.
    """
    spans = np.empty((len(gone), 2), np.int64)
    count, unit = 0, 0
    while unit < len(gone):
        if not gone[unit]:
            unit += 1
            continue
        first = unit
        while unit < len(gone) and gone[unit]:
            unit += 1
        last = unit == len(gone)
        if first and (last or starts[first] - stops[first - 1] < starts[unit] - stops[unit - 1]):
            spans[count, 0], spans[count, 1] = stops[first - 1], stops[unit - 1]
        else:
            spans[count, 0], spans[count, 1] = starts[first] if first else 0, starts[unit]
        count += 1
    return spans[:count]
