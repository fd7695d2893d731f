"""Repetition inside a document (Rae et al. 2021, 2112.11446, table A1): duplicate lines and paragraphs, n-grams.

As the published implementation has it: paragraphs stand between runs of two newlines or more in the stripped text,
lines between runs of newlines; the most frequent n-gram is the one that occurs first among equals, with spaces between
its words; duplicate n-grams are found from left to right, and one that was seen before is passed over whole.

A set or count of n-grams is a table of their 64-bit hashes, which is cleared for each document to as much as it needs;
two n-grams of a document of a million words are taken for one with a chance of 5e-8.
"""

import numba
import numpy as np

from data_prep.rules.columns import DUPLICATE_GRAMS, REPETITION, TOP_GRAMS
from data_prep.text.characters import SPACE
from data_prep.text.texts import decode
from data_prep.text.words import mixed

NEWLINE = 0x0A
# Polynomial hashes: odd, so that powers have inverses modulo 2^64.
BASE = np.uint64(0xD6E8FEB86659FD93)
INVERSE = np.uint64(pow(0xD6E8FEB86659FD93, -1, 2**64))
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ONE, ZERO = np.uint64(1), np.uint64(0)


@numba.njit(cache=True)
def table_bits(count):
    """Bits of the number of slots for `count` keys: at most half of them are used."""
    bits = 3
    while (1 << bits) < 2 * count:
        bits += 1
    return bits


@numba.njit(cache=True)
def span_hash(data, start, stop):
    """Hash of bytes, never 0, and the number of characters."""
    value = np.uint64(0xCBF29CE484222325)
    characters = 0
    for position in range(start, stop):
        byte = data[position]
        value = (value ^ np.uint64(byte)) * np.uint64(0x100000001B3)
        characters += (byte & 0xC0) != 0x80
    return mixed(value) | ONE, characters


@numba.njit(cache=True, inline="always")
def slot_of(table, bits, key):
    """The slot of a key that is not 0, or the empty one where it belongs."""
    mask = (1 << bits) - 1
    slot = np.int64((key * GOLDEN) >> np.uint64(64 - bits))
    while table[slot] != ZERO and table[slot] != key:
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True)
def stripped(data, start, stop, kinds):
    """The range without white space at both ends, as str.strip."""
    while start < stop:
        code, after = decode(data, start)
        if not kinds[code] & SPACE:
            break
        start = after
    while stop > start:
        before = stop - 1
        while (data[before] & 0xC0) == 0x80:
            before -= 1
        code, _ = decode(data, before)
        if not kinds[code] & SPACE:
            break
        stop = before
    return start, stop


@numba.njit(cache=True)
def duplicate_pieces(data, start, stop, least, table, row, column):
    """Count pieces between runs of at least `least` newlines, those seen before, and the characters of these."""
    bits = 3
    pieces = 1
    for position in range(start, stop):
        pieces += data[position] == NEWLINE
    bits = table_bits(pieces)
    table[: 1 << bits] = ZERO
    pieces = duplicates = characters = 0
    position = begin = start
    while True:
        if position < stop and data[position] != NEWLINE:
            position += 1
            continue
        end = position
        while position < stop and data[position] == NEWLINE:
            position += 1
        last = end == stop
        if position - end < least and not last:
            continue
        key, length = span_hash(data, begin, end)
        slot = slot_of(table, bits, key)
        if table[slot] == key:
            duplicates += 1
            characters += length
        table[slot] = key
        pieces += 1
        begin = position
        if last:
            break
    row[column], row[column + 1], row[column + 2] = pieces, duplicates, characters


@numba.njit(cache=True)
def repeated_pieces(data, start, stop, kinds, table, row):
    inner_start, inner_stop = stripped(data, start, stop, kinds)
    duplicate_pieces(data, inner_start, inner_stop, 2, table, row, REPETITION)
    duplicate_pieces(data, start, stop, 1, table, row, REPETITION + 3)


@numba.njit(cache=True)
def top_gram(hashes, lengths, n, table, counts, firsts, bits):
    """Characters of all occurrences of the most frequent n-gram.

    hashes uint64 [words]; lengths int64 [words + 1], cumulative.
    """
    grams = len(hashes) - n + 1
    if grams < 1:
        return 0
    table[: 1 << bits] = ZERO
    most, first = 0, 0
    for word in range(grams):
        key = ZERO
        for offset in range(n):
            key = key * BASE + hashes[word + offset]
        key |= ONE
        slot = slot_of(table, bits, key)
        if table[slot] == ZERO:
            table[slot] = key
            counts[slot] = 0
            firsts[slot] = word
        counts[slot] += 1
        if counts[slot] > most or (counts[slot] == most and firsts[slot] < first):
            most, first = counts[slot], firsts[slot]
    return most * (lengths[first + n] - lengths[first] + n - 1)


@numba.njit(cache=True)
def duplicate_grams(sums, inverses, lengths, n, table, bits):
    """Characters of n-grams that were seen before; their hash is that of their words' characters without a gap."""
    words = len(lengths) - 1
    table[: 1 << bits] = ZERO
    characters = word = 0
    while word < words - n + 1:
        # Mixed first: sums of texts that differ in their first byte alone may differ in the last bit alone.
        key = mixed((sums[word + n] - sums[word]) * inverses[word]) | ONE
        slot = slot_of(table, bits, key)
        if table[slot] == key:
            characters += lengths[word + n] - lengths[word]
            word += n
        else:
            table[slot] = key
            word += 1
    return characters


@numba.njit(cache=True)
def repeated_grams(hashes, sums, inverses, lengths, table, counts, firsts, row):
    bits = table_bits(len(hashes))
    for n in range(2, 5):
        row[TOP_GRAMS + n - 2] = top_gram(hashes, lengths, n, table, counts, firsts, bits)
    for n in range(5, 11):
        row[DUPLICATE_GRAMS + n - 5] = duplicate_grams(sums, inverses, lengths, n, table, bits)
