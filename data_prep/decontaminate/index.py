"""The index of the benchmarks: every sequence of `ngram` words in their texts, by hash.

A text of an item with fewer than `ngram` and at least `min_tokens` words is one sequence. Of an item all of whose texts
are shorter than that, the texts together are; if they are still shorter, the item is too short to look for.

A sequence has a key, a polynomial of its words' 64-bit hashes, and a second 64-bit hash of its characters that shares
nothing with the first (tokens.py). A window of a document matches where both agree. Among 10^13 windows and 10^8
sequences, which is 10^21 pairs, 10^21 / 2^128 = 3e-18 false matches are to be expected; by the key alone it were 54.

Files, all .npy without objects: `slots` uint64 [slots] keys in a table of open addresses, 0 where free, and `firsts`
uint32 [slots] the first sequence with that key; by sequence, sorted by key: `keys`, `lengths` (uint8, words), `seconds`
(uint64) and `bounds` (int64 [sequences + 1]) of its items in `items` (uint32). items.parquet has the items.

Memory to build it: by the sizes of its arrays about 120 bytes per sequence, and one file of a benchmark. Workers map
the files, and share them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numba
import numpy as np

from data_prep.decontaminate.benchmarks import Benchmark
from data_prep.decontaminate.readers import Item, read_items
from data_prep.decontaminate.tokens import forms, second_hash, tokenize
from data_prep.manifest import Folder, Record, writing
from data_prep.text.texts import BATCH_BYTES, Texts
from maxlm.errors import DataError

VERSION = 1
ARRAYS = ("slots", "firsts", "keys", "lengths", "seconds", "bounds", "items")
ITEMS = "items.parquet"
BASE = np.uint64(0x9FB21C651E98DF25)
# Keys of the first `min_tokens` words of shorter texts lie in the same table.
SHORT = np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True)
class Index:
    """A finished index: its directory, its key, the lengths that it was made with, and whether it has shorter texts."""

    path: Path
    key: str
    ngram: int
    least: int
    short: bool

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays by the names in `ARRAYS`, mapped."""
        return _open(self.path)


@cache
def _open(path: Path) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(np.load(path / f"{name}.npy", mmap_mode="r")) for name in ARRAYS)


def build(folder: Folder, key: str, benchmarks: Sequence[Benchmark], ngram: int, least: int) -> Record:
    """Write the index; `values["problems"]` has a line for each package with files that are none of items."""
    rows, problems = [], []
    pieces: list[tuple[np.ndarray, ...]] = [_empty()]
    for benchmark in benchmarks:
        found = 0
        for items in _batches(benchmark, problems):
            lengths, arrays = _sequences(items, ngram, least)
            pieces += [(*one[:3], one[3] + np.uint32(len(rows))) for one in arrays]
            rows += [(benchmark.name, item.id, length) for item, length in zip(items, lengths, strict=True)]
            found += len(items)
        if not found:
            raise DataError(f"benchmark '{benchmark.name}': its {len(benchmark.files)} files have no items")
    arrays = _sorted(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
    for name, array in zip(ARRAYS, arrays, strict=True):
        with writing(folder.file(key, f"{name}.npy")) as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
    _write_items(folder.file(key, ITEMS), rows, arrays)
    short = bool((arrays[ARRAYS.index("lengths")] < ngram).any())
    values = {"problems": problems, "items": len(rows), "sequences": len(arrays[2]), "short": short}
    return folder.commit(key, [*(f"{name}.npy" for name in ARRAYS), ITEMS], values)


def _empty() -> tuple[np.ndarray, ...]:
    return np.zeros(0, np.uint64), np.zeros(0, np.uint8), np.zeros(0, np.uint64), np.zeros(0, np.uint32)


def _batches(benchmark: Benchmark, problems: list[str]) -> Iterator[list[Item]]:
    """The items of a benchmark, about `BATCH_BYTES` of text at a time. Of packages, files that fail are left out."""
    batch, size, bad = [], 0, []
    for path, name in benchmark.files:
        try:
            items = read_items(path, name, benchmark.fields, benchmark.id_field)
        except DataError as error:
            if not benchmark.package:
                raise
            bad.append(str(error))
            continue
        if not items and not benchmark.package:
            raise DataError(f"{path}: benchmark '{benchmark.name}' has no items there")
        for item in items:
            batch.append(item)
            size += sum(map(len, item.texts))
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if bad:
        problems.append(f"benchmark '{benchmark.name}': {len(bad)} files left out, the first is {bad[0]}")
    if batch:
        yield batch


def _sequences(items: Sequence[Item], ngram: int, least: int) -> tuple[list[int], list[tuple[np.ndarray, ...]]]:
    """Words of each item, and (keys, lengths, second hashes, numbers of the items) of their sequences."""
    owners = np.repeat(np.arange(len(items), dtype=np.uint32), [len(item.texts) for item in items])
    first = _cut([text for item in items for text in item.texts], owners, ngram, least)
    longest, total = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
    np.maximum.at(longest, owners, first[1])
    np.add.at(total, owners, first[1])
    short = np.flatnonzero((longest < least) & (total >= least)).astype(np.uint32)
    second = _cut(["\n".join(items[index].texts) for index in short], short, ngram, least)
    return total.tolist(), [first[0], second[0]]


def _cut(texts: list[str], owners: np.ndarray, ngram: int, least: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The sequences of texts with the owner of each, and the words of each text."""
    joined = Texts.from_strings(texts)
    tokens = tokenize(joined)
    hashes, starts, stops, bounds = tokens.hashes, tokens.starts, tokens.stops, tokens.bounds
    keys, lengths, seconds, places = _windows(
        joined.data, starts, stops, hashes, bounds, ngram, least, powers(ngram, least), *forms()
    )
    return (keys, lengths, seconds, owners[places].astype(np.uint32)), np.diff(bounds)


def powers(ngram: int, least: int) -> np.ndarray:
    """BASE to the power of each length less one, modulo 2^64: uint64 [2]."""
    return np.array([pow(int(BASE), length - 1, 2**64) for length in (ngram, least)], np.uint64)


@numba.njit(cache=True)
def _windows(data, starts, stops, hashes, bounds, ngram, least, powers, table, further):
    room = len(hashes) + len(bounds)
    keys, seconds = np.empty(room, np.uint64), np.empty(room, np.uint64)
    lengths, places = np.empty(room, np.uint8), np.empty(room, np.int64)
    count = 0
    for text in range(len(bounds) - 1):
        first, last = bounds[text], bounds[text + 1]
        size = last - first
        if size < least:
            continue
        length = ngram if size >= ngram else least
        value = np.uint64(0)
        for word in range(first, first + length - 1):
            value = value * BASE + hashes[word]
        for start in range(first, last - length + 1 if size >= ngram else first + 1):
            value = value * BASE + hashes[start + length - 1]
            stop = start + ngram if size >= ngram else last
            keys[count] = key_of(value, size < ngram)
            seconds[count] = second_hash(data, starts, stops, start, stop, table, further)
            lengths[count], places[count] = stop - start, text
            count += 1
            value -= hashes[start] * powers[0 if size >= ngram else 1]
    return keys[:count].copy(), lengths[:count].copy(), seconds[:count].copy(), places[:count].copy()


@numba.njit(cache=True, inline="always")
def key_of(value, short):
    """The key of a window by the polynomial of its words; 0 marks a free place."""
    key = value ^ SHORT if short else value
    return key if key != 0 else np.uint64(1)


def _sorted(keys: np.ndarray, lengths: np.ndarray, seconds: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays of the index, in the order of `ARRAYS`."""
    order = np.lexsort((owners, seconds, lengths, keys))
    keys, lengths, seconds, owners = keys[order], lengths[order], seconds[order], owners[order]
    new = np.ones(len(keys), bool)
    new[1:] = (np.diff(keys) != 0) | (np.diff(lengths) != 0) | (np.diff(seconds) != 0)
    distinct = new.copy()
    distinct[1:] |= np.diff(owners) != 0
    owners, new = owners[distinct], new[distinct]
    starts = np.flatnonzero(new)
    keys, lengths, seconds = (array[distinct][starts] for array in (keys, lengths, seconds))
    bounds = np.append(starts, len(owners)).astype(np.int64)
    size = 16
    while size < 2 * len(keys):
        size *= 2
    slots, firsts = _fill(keys, size)
    return slots, firsts, keys, lengths, seconds, bounds, owners


@numba.njit(cache=True)
def _fill(keys, size):
    slots, firsts = np.zeros(size, np.uint64), np.zeros(size, np.uint32)
    for index in range(len(keys)):
        if index and keys[index] == keys[index - 1]:
            continue
        slot = np.int64(keys[index] & np.uint64(size - 1))
        while slots[slot] != 0:
            slot = (slot + 1) & (size - 1)
        slots[slot], firsts[slot] = keys[index], index
    return slots, firsts


def _write_items(path: Path, rows: Sequence[tuple[str, str, int]], arrays: tuple[np.ndarray, ...]) -> None:
    """benchmark, id, words and sequences (0 where the item is too short) of every item."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, ids, words = zip(*rows, strict=True)
    sequences = np.bincount(arrays[-1], minlength=len(rows))
    table = pa.table(
        {
            "benchmark": pa.array(names, pa.string()),
            "id": pa.array(ids, pa.string()),
            "words": pa.array(words, pa.int64()),
            "sequences": pa.array(sequences, pa.int64()),
        }
    )
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
