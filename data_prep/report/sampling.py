"""The part of a corpus that a report reads: some shards, and of them what every stage did to which row.

Shards are taken in the order of a hash of their names, from every source its share, until they have `MOST_ROWS`
documents: a small corpus is read whole, and a page that is made again shows the same. Read of them are the hashes of
the ids and the lists of the stages without their edits. Memory: 30 bytes for every document of the shards, and of one
shard its lists.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.documents import Part, mix
from data_prep.report.trace import Step, Trace

MOST_ROWS = 200_000
NEVER = -1


@dataclass(frozen=True)
class Fate:
    """The documents of one shard. `id_hash` uint64, `bytes` int64 (as they were read), both [rows].

    `dropped` int16 [rows] is the number of the step that dropped a document, or NEVER; `left` int64 [rows] the bytes
    of its text that are left in the end, or were when it was dropped.
    """

    part: Part
    id_hash: np.ndarray
    bytes: np.ndarray
    dropped: np.ndarray
    left: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        return self.dropped == NEVER

    @cached_property
    def rows(self) -> np.ndarray:
        """Evenly spaced rows, so that those of a large shard are no more than a sample may have; int64."""
        return np.arange(0, len(self.bytes), max(1, len(self.bytes) // MOST_ROWS))


@dataclass(frozen=True)
class Entry:
    """What a list says of a row."""

    row: int
    reason: str | None
    note: str | None
    edited: bool


def choose(parts: Sequence[Part]) -> list[Part]:
    total = sum(part.rows for part in parts)
    chosen = []
    for source in dict.fromkeys(part.source for part in parts):
        own = sorted((part for part in parts if part.source == source), key=lambda part: _order(part.name))
        most = MOST_ROWS * sum(part.rows for part in own) / max(1, total)
        rows = 0
        for part in own:
            if rows and rows + part.rows > most and total > MOST_ROWS:
                break
            chosen.append(part)
            rows += part.rows
    return chosen


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def follow(trace: Trace, parts: Sequence[Part], tell: Callable[[int], None]) -> list[Fate]:
    """What became of the documents of parts; `tell` is told how many parts are done."""
    import pyarrow.parquet as pq

    found = []
    for number, part in enumerate(parts):
        table = pq.read_table(part.path, columns=["id_hash", "bytes"])
        id_hash, sizes = table["id_hash"].to_numpy(), table["bytes"].to_numpy()
        dropped, left = np.full(len(sizes), NEVER, np.int16), sizes.copy()
        for index, step in enumerate(trace.steps):
            if (path := list_of(step, part)) is not None:
                entries = pq.read_table(path, columns=["row", "reason", "removed"])
                rows = entries["row"].to_numpy()
                gone = entries["reason"].is_valid().to_numpy()
                dropped[rows[gone]] = index
                left[rows[~gone]] -= entries["removed"].to_numpy()[~gone]
        found.append(Fate(part, id_hash, sizes, dropped, left))
        tell(number + 1)
    return found


def list_of(step: Step, part: Part) -> Path | None:
    return step.list_of(step.numbers[part.name]) if part.name in step.numbers else None


def entries(path: Path) -> Iterator[Entry]:
    """The rows of a list; of their edits only whether there are any."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(2**14, columns=["row", "reason", "note", "edits"]):
            edited = pc.greater(pc.fill_null(pc.list_value_length(batch["edits"]), 0), 0)
            columns = (batch[name].to_pylist() for name in ("row", "reason", "note"))
            for values in zip(*columns, edited.to_pylist(), strict=True):
                yield Entry(*values)


def order(id_hash: np.ndarray, salt: str) -> np.ndarray:
    """A hash of the documents' ids, uint64 as `id_hash`, that is another one for every salt."""
    return mix(id_hash, int.from_bytes(hashlib.sha256(salt.encode()).digest()[:4], "little"))
