"""All statistics that the rules of Gopher, C4 and FineWeb need, in one pass over a batch of documents.

Gopher's (Rae et al. 2021, 2112.11446, appendix A1.1) look at the text as given; FineWeb's (Penedo et al. 2024,
2406.17557, section 3.6) at what the line rules left, as FineWeb applied them behind C4. Definitions are those of the
published implementation of FineWeb's filters, given the same words.

Memory is a few times that of a batch's text: 64-bit hashes and lengths of the words of its longest document.
"""

from dataclasses import dataclass

import numba
import numpy as np

from data_prep.rules.columns import COUNT, LEFT, LEFT_WORDS, TEXT, WORDS
from data_prep.rules.repetition import (
    BASE,
    INVERSE,
    NEWLINE,
    ONE,
    ZERO,
    repeated_grams,
    repeated_pieces,
    slot_of,
    span_hash,
    table_bits,
)
from data_prep.rules.traits import BREAK, STOP, SYMBOL
from data_prep.text.characters import ALPHA, DIGIT, SPACE, kinds
from data_prep.text.texts import Texts, decode
from data_prep.text.words import Words, mixed

VERSION = 2
POINT, HASH, HYPHEN, BULLET, ELLIPSIS, RETURN = 0x2E, 0x23, 0x2D, 0x2022, 0x2026, 0x0D


@dataclass(frozen=True)
class StopWords:
    """A table of hashes, uint64 [1 << bits], and the number of the word in each slot, int64."""

    table: np.ndarray
    numbers: np.ndarray
    count: int

    @staticmethod
    def of(words: tuple[str, ...]) -> "StopWords":
        texts = Texts.from_strings(sorted(set(words)))
        bits = int(table_bits(2 * len(texts)))
        table, numbers = np.zeros(1 << bits, np.uint64), np.zeros(1 << bits, np.int64)
        _fill(texts.data, texts.bounds, table, numbers, bits)
        return StopWords(table, numbers, len(texts))


def measure(texts: Texts, words: Words, traits: np.ndarray, stop_words: StopWords) -> np.ndarray:
    """Statistics of the text as given, int64 [documents, COUNT]; those of lines and of what is left are 0."""
    rows = np.zeros((len(texts), COUNT), np.int64)
    stop = (stop_words.table, stop_words.numbers, stop_words.count)
    _measure(texts.data, texts.bounds, words.starts, words.stops, words.bounds, kinds(), traits, *stop, rows)
    return rows


def measure_left(
    texts: Texts, word_counts: np.ndarray, traits: np.ndarray, short: int, rows: np.ndarray, places: np.ndarray
) -> None:
    """Add FineWeb's statistics of texts to rows[places]; a line of at most `short` characters is short."""
    _measure_left(texts.data, texts.bounds, word_counts, kinds(), traits, short, rows, places)


@numba.njit(cache=True)
def _fill(data, bounds, table, numbers, bits):
    for word in range(len(bounds) - 1):
        value = ZERO
        power = ONE
        for position in range(bounds[word], bounds[word + 1]):
            value += (np.uint64(data[position]) + ONE) * power
            power *= BASE
        key = mixed(value) | ONE
        slot = slot_of(table, bits, key)
        table[slot] = key
        numbers[slot] = word


@numba.njit(cache=True)
def _measure(data, bounds, starts, stops, word_bounds, kinds, traits, stop_table, stop_numbers, stop_count, rows):
    documents = len(bounds) - 1
    most_words = most_pieces = 1
    for document in range(documents):
        most_words = max(most_words, word_bounds[document + 1] - word_bounds[document])
        most_pieces = max(most_pieces, _count(data, bounds[document], bounds[document + 1], NEWLINE) + 1)
    size = 1 << table_bits(max(most_words, most_pieces))
    table = np.empty(size, np.uint64)
    counts, firsts = np.empty(size, np.int32), np.empty(size, np.int32)
    hashes, sums = np.empty(most_words + 1, np.uint64), np.empty(most_words + 1, np.uint64)
    inverses = np.empty(most_words + 1, np.uint64)
    lengths = np.empty(most_words + 1, np.int64)
    seen = np.full(stop_count, -1, np.int64)
    for document in range(documents):
        start, stop, row = bounds[document], bounds[document + 1], rows[document]
        first, count = word_bounds[document], word_bounds[document + 1] - word_bounds[document]
        _measure_text(data, start, stop, kinds, traits, row)
        repeated_pieces(data, start, stop, kinds, table, row)
        span = slice(first, first + count)
        _measure_words(data, starts[span], stops[span], kinds, traits, hashes, sums, inverses, lengths, row)
        row[WORDS + 4] = _count_stop_words(hashes[:count], stop_table, stop_numbers, seen, document)
        repeated_grams(hashes[:count], sums, inverses, lengths[: count + 1], table, counts, firsts, row)


@numba.njit(cache=True)
def _count(data, start, stop, byte):
    count = 0
    for position in range(start, stop):
        count += data[position] == byte
    return count


@numba.njit(cache=True)
def _measure_text(data, start, stop, kinds, traits, row):
    """Characters, symbols and lines."""
    characters = alphanumeric = hashes = ellipses = 0
    lines = bullets = trailing = line_characters = longest = length = 0
    points = 0  # before this character, one after the other
    tail = 0  # points that end the visible part of the line; 3 for an ellipsis
    gap = blank = True  # white space or … came last; the line has no visible character yet
    position = start
    while position < stop:
        code, position = decode(data, position)
        characters += 1
        kind = kinds[code]
        if kind & (ALPHA | DIGIT):
            alphanumeric += 1
        if traits[code] & BREAK:
            if code == RETURN and position < stop and data[position] == NEWLINE:
                position += 1
                characters += 1
            lines += 1
            trailing += tail >= 3
            line_characters += length
            longest = max(longest, length)
            length = points = tail = 0
            gap = blank = True
            continue
        length += 1
        if kind & SPACE:
            points = 0
            gap = True
            continue
        if blank:
            bullets += code in (BULLET, HYPHEN)
            blank = False
        if code == POINT:
            points += 1
            tail = 1 if gap else tail + 1
            if points == 3:
                ellipses += 1
                points = 0
        else:
            points = tail = 0
            hashes += code == HASH
            if code == ELLIPSIS:
                ellipses += 1
                tail = 3
        gap = code == ELLIPSIS
    if length:
        lines += 1
        trailing += tail >= 3
        line_characters += length
        longest = max(longest, length)
    row[TEXT], row[TEXT + 1] = characters, alphanumeric
    row[WORDS + 5], row[WORDS + 6] = hashes, ellipses
    row[WORDS + 7], row[WORDS + 8], row[WORDS + 9] = lines, bullets, trailing
    row[WORDS + 10], row[WORDS + 11] = line_characters, longest


@numba.njit(cache=True)
def _measure_words(data, starts, stops, kinds, traits, hashes, sums, inverses, lengths, row):
    """Counts of words; their hashes, and sums from which the hash of any sequence of words follows."""
    plain = plain_characters = alphabetic = characters = 0
    total, power, inverse = ZERO, ONE, ONE
    sums[0], inverses[0], lengths[0] = total, inverse, 0
    for word in range(len(starts)):
        position, stop = starts[word], stops[word]
        value, own_power, own_inverse = ZERO, ONE, ONE
        visible = np.uint8(0)
        letters = np.uint8(0)
        length = 0
        while position < stop:
            code, after = decode(data, position)
            visible |= ~traits[code] & np.uint8(SYMBOL)
            letters |= kinds[code] & np.uint8(ALPHA)
            length += 1
            for index in range(position, after):
                value += (np.uint64(data[index]) + ONE) * own_power
                own_power *= BASE
                own_inverse *= INVERSE
            position = after
        hashes[word] = mixed(value) | ONE
        total += value * power
        power *= own_power
        inverse *= own_inverse
        characters += length
        sums[word + 1], inverses[word + 1], lengths[word + 1] = total, inverse, characters
        alphabetic += letters != 0
        if visible:
            plain += 1
            plain_characters += length
    row[WORDS], row[WORDS + 1], row[WORDS + 2], row[WORDS + 3] = len(starts), plain, plain_characters, alphabetic


@numba.njit(cache=True)
def _count_stop_words(hashes, table, numbers, seen, document):
    bits = 0
    while (1 << bits) < len(table):
        bits += 1
    count = 0
    for word in range(len(hashes)):
        slot = slot_of(table, bits, hashes[word])
        if table[slot] != ZERO and seen[numbers[slot]] != document:
            seen[numbers[slot]] = document
            count += 1
    return count


@numba.njit(cache=True)
def _measure_left(data, bounds, word_counts, kinds, traits, short, rows, places):
    most = 1
    for document in range(len(bounds) - 1):
        most = max(most, _count(data, bounds[document], bounds[document + 1], NEWLINE) + 1)
    table = np.empty(1 << table_bits(most), np.uint64)
    for document in range(len(bounds) - 1):
        position, stop, row = bounds[document], bounds[document + 1], rows[places[document]]
        newlines = _count(data, position, stop, NEWLINE)
        bits = table_bits(newlines + 1)
        table[: 1 << bits] = ZERO
        characters = lines = stopped = short_lines = duplicates = 0
        while position < stop:
            end, visible, last = position, False, np.uint32(NEWLINE)
            while end < stop and data[end] != NEWLINE:
                last, end = decode(data, end)
                visible |= not kinds[last] & SPACE
            key, length = span_hash(data, position, end)
            characters += length
            if visible:
                lines += 1
                stopped += (traits[last] & STOP) != 0
                short_lines += length <= short
                slot = slot_of(table, bits, key)
                duplicates += length if table[slot] == key else 0
                table[slot] = key
            position = end + 1
        row[LEFT], row[LEFT + 1], row[LEFT + 2] = characters, lines, stopped
        row[LEFT + 3], row[LEFT + 4], row[LEFT + 5] = short_lines, duplicates, newlines
        row[LEFT_WORDS] = word_counts[document]
