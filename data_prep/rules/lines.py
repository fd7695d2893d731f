"""Line rules: which lines of a document go, what is left, and the edits that make it of the text.

The rules in their order; of a line that several concern the first is counted:

    boilerplate   contains a phrase and is not long, or is a phrase, white space at its ends aside
    short run     belongs to a run of short lines without final punctuation at either end of the text, or anywhere
    few words     has a visible character, but too few words
    c4            C4's, see c4.py

C4's strip the lines that are left and join them with newlines; without them, what is left stays as it is.
Lines end where str.splitlines ends them. Memory is a few times that of the batch.
"""

from dataclasses import dataclass

import numba
import numpy as np

from data_prep.rules import settings as place
from data_prep.rules.c4 import judge
from data_prep.rules.phrases import find
from data_prep.rules.repetition import NEWLINE, stripped
from data_prep.rules.settings import (
    BOILERPLATE,
    BOILERPLATE_GROUP,
    C4_CITATIONS,
    FEW_WORDS,
    KEPT,
    KINDS,
    SHORT_RUN,
    WHITE_SPACE,
    LineRules,
)
from data_prep.rules.traits import BREAK, STOP, SYMBOL
from data_prep.text.characters import kinds
from data_prep.text.texts import Texts, decode
from data_prep.text.words import Words

VERSION = 1
OPEN, RETURN = 0x5B, 0x0D
# Columns of the lines of a document: start, visible start and stop, start of the next one.
START, FIRST, LAST, NEXT = range(4)


@dataclass(frozen=True)
class Left:
    """What line rules left of a batch.

    changed int64: the numbers of the documents whose text changed; texts: theirs. edits int64 [edits, 4]: number of the
    document, start and stop in bytes of its text, and whether a newline stands there now, or nothing. counts int64
    [len(KINDS), 2]: documents and bytes by kind.
    """

    changed: np.ndarray
    texts: Texts
    edits: np.ndarray
    counts: np.ndarray


def apply_rules(texts: Texts, words: Words, traits: np.ndarray, rules: LineRules, rows: np.ndarray) -> Left:
    """Apply line rules to a batch; rows int64 [documents, COUNT] get the counts of C4."""
    data, bounds, changed, edits, counts = _apply(
        texts.data,
        texts.bounds,
        (words.starts, words.stops, words.bounds),
        kinds(),
        traits,
        rules.settings,
        rules.phrases,
        rows,
    )
    # Compiled loops are compiled for arrays that cannot be written, as Arrow's.
    data.setflags(write=False)
    bounds.setflags(write=False)
    return Left(changed, Texts(data, bounds), edits, counts)


@numba.njit(cache=True)
def _apply(data, bounds, words, kinds, traits, settings, phrases, rows):
    documents = len(bounds) - 1
    most_lines = most_pieces = all_pieces = most_bytes = 1
    for document in range(documents):
        line_count, brackets = _most_lines(data, bounds[document], bounds[document + 1])
        most_lines, most_pieces = max(most_lines, line_count), max(most_pieces, line_count + brackets)
        all_pieces += line_count + brackets + 1
        most_bytes = max(most_bytes, bounds[document + 1] - bounds[document])
    lines, removed_by = np.empty((most_lines, 4), np.int64), np.empty(most_lines, np.int64)
    pieces = np.empty((most_pieces, 3), np.int64)  # start, stop, whether a newline stands before it
    edits = np.empty((all_pieces, 4), np.int64)
    scratch, left = np.empty(most_bytes, np.uint8), np.empty(bounds[-1] - bounds[0], np.uint8)
    left_bounds, changed = np.zeros(documents + 1, np.int64), np.empty(documents, np.int64)
    counts, counted = np.zeros((len(KINDS), 2), np.int64), np.full(len(KINDS), -1, np.int64)
    edit_count = change_count = size = 0
    for document in range(documents):
        start, stop = bounds[document], bounds[document + 1]
        count = _split_lines(data, start, stop, kinds, traits, lines)
        removed_by[:count] = KEPT
        _own_rules(data, lines[:count], removed_by, words, document, kinds, traits, settings, phrases)
        first, last, cited = _keep(
            data, lines[:count], removed_by, kinds, traits, settings, phrases, scratch, pieces, rows[document]
        )
        before = edit_count
        edit_count = _write_edits(data, start, stop, document, pieces[first:last], edits, edit_count)
        if edit_count == before:
            continue
        begin, size = size, _write_text(data, pieces[first:last], left, size)
        changed[change_count] = document
        change_count += 1
        left_bounds[change_count] = size
        lost = _count_lines(lines[:count], removed_by, counts, counted, document) + cited
        if cited:
            counts[C4_CITATIONS] += np.array([1, cited])
        white = stop - start - (size - begin) - lost
        if white:
            counts[WHITE_SPACE] += np.array([1, white])
    return (
        left[:size].copy(),
        left_bounds[: change_count + 1].copy(),
        changed[:change_count].copy(),
        edits[:edit_count].copy(),
        counts,
    )


@numba.njit(cache=True)
def _most_lines(data, start, stop):
    """Upper bounds of the number of lines and of citations: bytes that only their marks have, among others."""
    lines, brackets = 1, 0
    for position in range(start, stop):
        byte = data[position]
        lines += byte < 0x20 or byte == 0x85 or byte == 0xA8 or byte == 0xA9
        brackets += byte == OPEN
    return lines, brackets


@numba.njit(cache=True)
def _split_lines(data, start, stop, kinds, traits, lines):
    """Find the lines; those without a visible character have an empty visible range."""
    count = 0
    position = begin = start
    while position < stop:
        byte = data[position]
        # No mark that ends a line has such a byte, or such a first one: most characters need not be decoded.
        if byte >= 0x20 and byte != 0xC2 and byte != 0xE2:
            position += 1
            continue
        end = position
        code, position = decode(data, position)
        if not traits[code] & BREAK:
            continue
        if code == RETURN and position < stop and data[position] == NEWLINE:
            position += 1
        first, last = stripped(data, begin, end, kinds)
        lines[count, START], lines[count, FIRST], lines[count, LAST], lines[count, NEXT] = begin, first, last, position
        count += 1
        begin = position
    if begin < stop:
        first, last = stripped(data, begin, stop, kinds)
        lines[count, START], lines[count, FIRST], lines[count, LAST], lines[count, NEXT] = begin, first, last, stop
        count += 1
    return count


@numba.njit(cache=True)
def _own_rules(data, lines, removed_by, words, document, kinds, traits, settings, phrases):
    if settings[place.BOILERPLATE_CHARACTERS]:
        for line in range(len(lines)):
            if lines[line, FIRST] == lines[line, LAST]:
                continue
            groups, length = find(data, lines[line, FIRST], lines[line, LAST], phrases)
            if groups >> BOILERPLATE_GROUP & 1 and length <= settings[place.BOILERPLATE_CHARACTERS]:
                removed_by[line] = BOILERPLATE
    if settings[place.RUN_CHARACTERS]:
        _find_runs(data, lines, removed_by, traits, settings)
    if settings[place.LEAST_WORDS]:
        _find_few_words(data, lines, removed_by, words, document, traits, settings[place.LEAST_WORDS])


@numba.njit(cache=True)
def _find_runs(data, lines, removed_by, traits, settings):
    """Blank lines and lines that are removed already neither end a run nor count."""
    begin = length = 0
    at_start = True
    for line in range(len(lines) + 1):
        at_end = line == len(lines)
        if not at_end:
            if removed_by[line] != KEPT or lines[line, FIRST] == lines[line, LAST]:
                continue
            if _is_short(data, lines[line, FIRST], lines[line, LAST], traits, settings[place.RUN_CHARACTERS]):
                begin = line if length == 0 else begin
                length += 1
                continue
        if length >= settings[place.RUN_LINES] and (at_start or at_end or settings[place.RUN_ANYWHERE]):
            for member in range(begin, line):
                if removed_by[member] == KEPT and lines[member, FIRST] < lines[member, LAST]:
                    removed_by[member] = SHORT_RUN
        length = 0
        at_start = False


@numba.njit(cache=True)
def _is_short(data, first, last, traits, limit):
    length, position, code = 0, first, np.uint32(0)
    while position < last:
        code, position = decode(data, position)
        length += 1
        if length > limit:
            return False
    return not traits[code] & STOP


@numba.njit(cache=True)
def _find_few_words(data, lines, removed_by, words, document, traits, least):
    starts, stops, bounds = words
    word, end = bounds[document], bounds[document + 1]
    for line in range(len(lines)):
        plain = 0
        while word < end and starts[word] < lines[line, NEXT]:
            position, visible = starts[word], False
            while position < stops[word] and not visible:
                code, position = decode(data, position)
                visible = not traits[code] & SYMBOL
            plain += visible
            word += 1
        if removed_by[line] == KEPT and lines[line, FIRST] < lines[line, LAST] and plain < least:
            removed_by[line] = FEW_WORDS


@numba.njit(cache=True)
def _keep(data, lines, removed_by, kinds, traits, settings, phrases, scratch, pieces, row):
    """Judge lines by C4 and list what is left: pieces first..last, and the bytes of citations among them."""
    count = cited = 0
    for line in range(len(lines)):
        if removed_by[line] != KEPT:
            continue
        if not settings[place.C4]:
            count = _add_whole(lines, line, pieces, count)
            continue
        found = pieces[count:]
        start, stop = lines[line, FIRST], lines[line, LAST]
        removed_by[line], parts = judge(data, start, stop, kinds, traits, settings, phrases, scratch, found, row)
        if not settings[place.C4_LINES]:
            removed_by[line] = KEPT
            count = _add_whole(lines, line, pieces, count)
        elif removed_by[line] == KEPT:
            cited += stop - start
            for piece in range(parts):
                found[piece, 2] = piece == 0
                cited -= found[piece, 1] - found[piece, 0]
            count += parts
    if settings[place.C4_LINES]:
        first, last = _strip_pieces(data, pieces, count, kinds)
        return first, last, cited
    if count and removed_by[len(lines) - 1] != KEPT:
        # What ended the last line separated it from one that is gone.
        line = len(lines) - 1
        while removed_by[line] != KEPT:
            line -= 1
        pieces[count - 1, 1] = max(lines[line, LAST], lines[line, START])
    return 0, count, cited


@numba.njit(cache=True)
def _add_whole(lines, line, pieces, count):
    pieces[count, 0], pieces[count, 1], pieces[count, 2] = lines[line, START], lines[line, NEXT], 0
    return count + 1


@numba.njit(cache=True)
def _strip_pieces(data, pieces, count, kinds):
    """Take white space from both ends of all pieces together, the newlines between them included."""
    first = 0
    while first < count:
        pieces[first, 2] = 0
        pieces[first, 0], _ = stripped(data, pieces[first, 0], pieces[first, 1], kinds)
        if pieces[first, 0] < pieces[first, 1]:
            break
        first += 1
    while count > first:
        begin, pieces[count - 1, 1] = stripped(data, pieces[count - 1, 0], pieces[count - 1, 1], kinds)
        if begin < pieces[count - 1, 1]:
            break
        count -= 1
    return first, count


@numba.njit(cache=True)
def _write_edits(data, start, stop, document, pieces, edits, count):
    """Add an edit for every gap between pieces that is not what should stand there already."""
    position = start
    for piece in range(len(pieces) + 1):
        end = pieces[piece, 0] if piece < len(pieces) else stop
        newline = pieces[piece, 2] if piece < len(pieces) else 0
        same = end - position == newline and (not newline or data[position] == NEWLINE)
        if not same:
            edits[count, 0], edits[count, 1], edits[count, 2] = document, position - start, end - start
            edits[count, 3] = newline
            count += 1
        if piece < len(pieces):
            position = pieces[piece, 1]
    return count


@numba.njit(cache=True)
def _write_text(data, pieces, left, size):
    for piece in range(len(pieces)):
        if pieces[piece, 2]:
            left[size] = NEWLINE
            size += 1
        for position in range(pieces[piece, 0], pieces[piece, 1]):
            left[size] = data[position]
            size += 1
    return size


@numba.njit(cache=True)
def _count_lines(lines, removed_by, counts, counted, document):
    """Count removed lines by rule; returns their bytes, with what ends them."""
    lost = 0
    for line in range(len(lines)):
        rule = removed_by[line]
        if rule == KEPT:
            continue
        size = lines[line, NEXT] - lines[line, START]
        counts[rule, 0] += counted[rule] != document
        counts[rule, 1] += size
        counted[rule] = document
        lost += size
    return lost
