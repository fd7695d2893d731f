"""Limits: at most so much text of a source, chosen by a hash of the documents' ids.

The hash of the last document that fits is found from sums of bytes by ranges of the hash, and then from the documents
of one range, so that memory holds a share of 1 in `RANGES` of a source's documents (16 bytes each).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.documents import LIMIT_SALT, Part, iterate, mix
from data_prep.engine import Task
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder, Record, make_key
from data_prep.stages import Run

VERSION = 3
RANGES = 2**12
SHIFT = np.uint64(64 - 12)


def run(this: Run, parts: list[Part]) -> list[Part]:
    limits = {name: source.max_bytes for name, source in this.config.ingest.sources.items() if source.max_bytes}
    groups = {name: [part for part in parts if part.source == name] for name in limits}
    over = [name for name, group in groups.items() if sum(part.bytes for part in group) > limits[name]]
    if not limits:
        return parts
    tasks = []
    for name in over:
        key = make_key("limit", VERSION, limits[name], [part.key for part in groups[name]])
        tasks.append(Task(key, find_limit, (groups[name], limits[name]), 0))
    found = this.tasks("limit", tasks, "sources") if tasks else []
    marking = []
    for name, record in zip(over, found, strict=True):
        for part in groups[name]:
            key = make_key("limit", VERSION, part.key, record.values["first"])
            marking.append(Task(key, mark_excess, (part, record.values["first"]), part.bytes))
    return this.apply("limit", parts, this.tasks("limit", marking, "shards") if marking else [])


def find_limit(folder: Folder, key: str, parts: Sequence[Part], max_bytes: int) -> Record:
    """Find which documents of one source exceed `max_bytes` in the order of a hash of their ids.

    `values` has the hash of the `first` of them; that one and those with larger hashes are too many.
    """
    total = np.zeros(RANGES, np.int64)
    for _, hashes, sizes in _documents(parts):
        np.add.at(total, (hashes >> SHIFT).astype(np.int64), sizes)
    before = np.cumsum(total)
    place = int(np.searchsorted(before, max_bytes, "right"))
    within = [
        (hashes[inside], sizes[inside])
        for _, hashes, sizes in _documents(parts)
        if (inside := hashes >> SHIFT == place).any()
    ]
    hashes, sizes = (np.concatenate(arrays) for arrays in zip(*within, strict=True))
    order = np.argsort(hashes, kind="stable")
    room = max_bytes - (before[place] - total[place])
    first = order[np.searchsorted(np.cumsum(sizes[order]), room, "right")]
    return folder.commit(key, (), {"first": int(hashes[first])})


def mark_excess(folder: Folder, key: str, part: Part, first: int) -> Record:
    marks = Marks()
    for rows, hashes, sizes in _documents([part]):
        excess = hashes >= np.uint64(first)
        for row, size in zip(rows[excess].tolist(), sizes[excess].tolist(), strict=True):
            marks.drop(row, size, "over max_bytes")
    return commit(folder, key, {part.name: marks})


def _documents(parts: Sequence[Part]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, hashes that order the documents, and sizes, some thousand documents at a time."""
    for part in parts:
        for table in iterate(part, ("row", "id_hash", "bytes")):
            hashes = mix(table["id_hash"].to_numpy(), LIMIT_SALT)
            yield table["row"].to_numpy(), hashes, table["bytes"].to_numpy()
