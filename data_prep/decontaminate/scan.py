"""Where the documents of a part have sequences of the benchmarks.

Columns of the hits, by row, then by position: row, sequence (number in the index), position (of the first character in
its document, counted in characters), and the region that a cut takes away, from `margin` characters before to `margin`
behind: left and right in bytes, left_position and right_position in characters; characters and size, of the document.
With them cuts are decided without reading text again.
Memory: one piece of a shard (16 MB of text), its hits, and the index, which all workers of a machine share.
"""

from collections.abc import Iterator

import numba
import numpy as np

from data_prep.decontaminate.index import BASE, Index, key_of, powers
from data_prep.decontaminate.tokens import forms, second_hash, tokenize
from data_prep.documents import Part, iterate
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, writing
from data_prep.text.texts import Texts

VERSION = 1
HITS = "hits.parquet"
NUMBERS = ("row", "sequence", "position", "left", "right", "left_position", "right_position", "characters", "size")


def scan(folder: Folder, key: str, part: Part, index: Index, margin: int) -> Record:
    """Write the hits of a part; `values` has how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    schema = pa.schema([(name, pa.int64()) for name in NUMBERS])
    with writing(folder.file(key, HITS)) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as file:
        for rows, texts in _pieces(part):
            hits = find(texts, index, margin)
            advance(int(texts.bounds[-1] - texts.bounds[0]))
            if len(hits[0]):
                # The hits of a document in one row group: they are read group by group.
                file.write_table(pa.table([rows[hits[0]], *hits[1:]], schema=schema), row_group_size=len(hits[0]))
                count += len(hits[0])
    return folder.commit(key, [HITS], {"hits": count})


def _pieces(part: Part) -> Iterator[tuple[np.ndarray, Texts]]:
    for table in iterate(part, ("row", "text")):
        rows = table["row"].to_numpy().astype(np.int64)
        for first, texts in Texts.of(table["text"]).batches():
            yield rows[first : first + len(texts)], texts


def find(texts: Texts, index: Index, margin: int) -> list[np.ndarray]:
    """The hits of documents, int64 arrays as in `NUMBERS`, with a document's number in the place of its row."""
    tokens = tokenize(texts)
    arrays = (tokens.starts, tokens.stops, tokens.hashes, tokens.bounds)
    lengths = powers(index.ngram, index.least)
    settings = (index.ngram, index.least, index.short, lengths)
    found = _find(texts.data, *arrays, *settings, *forms(), *index.arrays()[:5])
    documents, sequences, first, last = found
    order = np.lexsort((sequences, first, documents))
    documents, sequences, first, last = documents[order], sequences[order], first[order], last[order]
    places = _places(texts.data, texts.bounds, documents, tokens.starts[first], tokens.stops[last - 1], margin)
    return [documents, sequences, *places]


@numba.njit(cache=True)
def _find(
    data, starts, stops, hashes, bounds, ngram, least, has_short, powers,
    table, further, slots, firsts, keys, lengths, seconds,
):  # fmt: skip
    """Documents, sequences, and first and last (exclusive) words of the windows that are in the index."""
    room, count = 1024, 0
    found = np.empty((4, room), np.int64)
    mask = np.uint64(len(slots) - 1)
    for document in range(len(bounds) - 1):
        begin, end = bounds[document], bounds[document + 1]
        for short in range(2 if has_short else 1):
            length = least if short else ngram
            if end - begin < length:
                continue
            value = np.uint64(0)
            for word in range(begin, begin + length - 1):
                value = value * BASE + hashes[word]
            for start in range(begin, end - length + 1):
                value = value * BASE + hashes[start + length - 1]
                key = key_of(value, short == 1)
                value -= hashes[start] * powers[short]
                slot = key & mask
                while slots[slot] != 0 and slots[slot] != key:
                    slot = (slot + np.uint64(1)) & mask
                if slots[slot] == 0:
                    continue
                sequence = np.int64(firsts[slot])
                while sequence < len(keys) and keys[sequence] == key:
                    stop = start + lengths[sequence]
                    # A sequence may be longer than the window that led to it.
                    if (
                        stop <= end
                        and second_hash(data, starts, stops, start, stop, table, further) == seconds[sequence]
                    ):
                        if count == room:
                            found = np.concatenate((found, np.empty((4, room), np.int64)), axis=1)
                            room *= 2
                        found[0, count], found[1, count] = document, sequence
                        found[2, count], found[3, count] = start, stop
                        count += 1
                    sequence += 1
    return found[0, :count].copy(), found[1, :count].copy(), found[2, :count].copy(), found[3, :count].copy()


@numba.njit(cache=True)
def _places(data, bounds, documents, starts, stops, margin):
    """position .. size of each hit, int64 [7, hits], from the bytes starts..stops of matches, ascending by document."""
    result = np.empty((7, len(documents)), np.int64)
    at = characters = total = 0
    for hit in range(len(documents)):
        begin, end = bounds[documents[hit]], bounds[documents[hit] + 1]
        if hit == 0 or documents[hit] != documents[hit - 1]:
            at, characters, total = begin, 0, _characters(data, begin, end)
        characters += _characters(data, at, starts[hit])
        at = starts[hit]
        left, before = at, 0
        while before < margin and left > begin:
            left -= 1
            before += (data[left] & 0xC0) != 0x80
        right, after = stops[hit], 0
        while right < end and (after < margin or (data[right] & 0xC0) == 0x80):
            after += (data[right] & 0xC0) != 0x80
            right += 1
        stop = characters + _characters(data, at, stops[hit])
        result[0, hit] = characters
        result[1, hit], result[2, hit] = left - begin, right - begin
        result[3, hit], result[4, hit] = characters - before, stop + after
        result[5, hit], result[6, hit] = total, end - begin
    return result


@numba.njit(cache=True)
def _characters(data, start, stop):
    count = 0
    for position in range(start, stop):
        count += (data[position] & 0xC0) != 0x80
    return count
