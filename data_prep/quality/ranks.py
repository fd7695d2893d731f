"""Ranks: the share of the documents of the same source and language that have a smaller score, float32 in [0, 1).

Scores of different sources cannot be compared: one is often nearly the same for all documents of a source. Documents of
the same score, as float32, stand in the order of their id_hash (of its first 32 bits), so that ranks are even; those of
a classifier are ranked by the logit of their probability, as that is 1 for many of them.

Score and hash make a key of 64 bits; a rank is its place among the keys of its group. Of up to `KEYS` documents all
keys are kept and ranks are exact. Of more, each block of `KEYS` keys is sorted and one of `stride` is kept, where the
stride is what lets `KEYS` be kept in all. No rank of N documents is then off by more than N / KEYS^2, 0.4 % for a
billion; as the errors of blocks add up by chance, sqrt(N) / KEYS^1.5 is nearer (measured: 1.3 % at most for 300,000
documents with 2^11 keys, which makes 0.02 % for a billion).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.config.quality import RANK
from data_prep.documents import Part, iterate, write_columns
from data_prep.manifest import Folder, Record, writing

VERSION = 1
STAGE, FILE, TABLE = "quality-ranks", "columns.parquet", "table.parquet"
# A power of two; 8 bytes each for every language of a source, and once more for the block that is waiting.
KEYS = 2**19
# Largest float32 below 1: (N - 1) / N rounds to 1 where N is large.
LARGEST = np.nextafter(np.float32(1), np.float32(0))


@dataclass
class Quantiles:
    """Keys of a group, of which each of `kept` stands for `stride`; those `waiting` stand for themselves."""

    limit: int = KEYS
    stride: int = 1
    count: int = 0
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    waiting: list[np.ndarray] = field(default_factory=list)

    def add(self, keys: np.ndarray) -> None:
        self.count += len(keys)
        self.waiting.append(keys)
        if sum(map(len, self.waiting)) >= self.limit:
            self._reduce()

    def _reduce(self) -> None:
        keys = np.concatenate(self.waiting)
        for start in range(0, len(keys) - self.limit + 1, self.limit):
            block = np.sort(keys[start : start + self.limit])
            # The middle of each `stride` keys stands for them.
            self.kept = np.sort(np.concatenate([self.kept, block[self.stride // 2 :: self.stride]]))
            if len(self.kept) > self.limit:
                self.kept, self.stride = self.kept[1::2], self.stride * 2
        self.waiting = [keys[len(keys) // self.limit * self.limit :]]

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys in order, uint64, and how many documents each stands for, int64."""
        keys = np.concatenate([self.kept, *self.waiting])
        weights = np.where(np.arange(len(keys)) < len(self.kept), self.stride, 1)
        order = np.argsort(keys, kind="stable")
        return keys[order], weights[order]


def keys_of(scores: np.ndarray, id_hashes: np.ndarray) -> np.ndarray:
    """Keys in the order of the scores, then of the hashes; uint64 [documents]."""
    # -0.0 becomes 0.0, and the bits of a float are in the order of its magnitude.
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return ordered << np.uint64(32) | id_hashes >> np.uint64(32)


def tabulate(folder: Folder, key: str, parts: Sequence[Part], order: str) -> Record:
    """Write the table of the column `order` over the parts of one source, by language; no text is read.

    `values["languages"]` has how many documents of each language have a score.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups: dict[str, Quantiles] = {}
    for part in parts:
        for _, languages, keys, _ in _scored(part, order):
            for language in np.unique(languages).tolist():
                groups.setdefault(language, Quantiles()).add(keys[languages == language])
    schema = pa.schema([("language", pa.string()), ("key", pa.uint64()), ("weight", pa.int64())])
    with (
        writing(folder.file(key, TABLE)) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for language, group in sorted(groups.items()):
            keys, weights = group.table()
            writer.write_table(pa.table([pa.repeat(language, len(keys)), keys, weights], schema=schema))
    return folder.commit(key, [TABLE], {"languages": {name: group.count for name, group in sorted(groups.items())}})


def rank(folder: Folder, key: str, part: Part, name: str, order: str, path: Path) -> Record:
    """Write the ranks of the score `name` in a part by its column `order`, and the table of its source in `path`."""
    import pyarrow as pa

    groups = _read_table(path)
    rows, ranks, empty = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    for every, languages, keys, scored in _scored(part, order):
        found = np.zeros(len(keys), np.float32)
        for language in np.unique(languages).tolist():
            inside = languages == language
            known, below = groups[language]
            smaller = below[np.searchsorted(known, keys[inside])]
            found[inside] = np.minimum((smaller / below[-1]).astype(np.float32), LARGEST)
        values = np.zeros(len(every), np.float32)
        values[scored] = found
        rows.append(every)
        ranks.append(values)
        empty.append(~scored)
    column = pa.array(np.concatenate(ranks), mask=np.concatenate(empty))
    with writing(folder.file(key, FILE)) as temporary:
        write_columns(temporary, part, np.concatenate(rows), {name + RANK: column})
    return folder.commit(key, [FILE])


def _scored(part: Part, order: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """By piece of a shard: rows int64 of all documents; languages and keys of those with a score; which those are."""
    import pyarrow.compute as pc

    for table in iterate(part, ("row", "id_hash", "language", order)):
        scored = pc.is_valid(table[order]).to_numpy()
        languages = np.array(table["language"].fill_null("").to_pylist(), str)[scored]
        keys = keys_of(table[order].to_numpy()[scored], table["id_hash"].to_numpy()[scored])
        yield table["row"].to_numpy().astype(np.int64), languages, keys, scored


def _read_table(path: Path) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """By language, the keys and how many documents are below each, and below none: uint64 [keys], int64 [keys + 1]."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    languages, keys, weights = (table[name].to_numpy() for name in ("language", "key", "weight"))
    edges = np.flatnonzero(languages[1:] != languages[:-1]) + 1 if len(languages) else []
    pieces = zip(np.split(languages, edges), np.split(keys, edges), np.split(weights, edges), strict=True)
    return {names[0]: (part, np.append(0, np.cumsum(counts))) for names, part, counts in pieces if len(names)}
