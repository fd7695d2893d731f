"""Limits: at most so much text of a source, chosen by a hash of the documents' ids."""

from collections.abc import Sequence

import numpy as np

from data_prep.documents import LIMIT_SALT, Part, mix, read
from data_prep.engine import Task
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder, Record, make_key
from data_prep.stages import Run

VERSION = 2


def run(this: Run, parts: list[Part]) -> list[Part]:
    limits = {name: source.max_bytes for name, source in this.config.ingest.sources.items() if source.max_bytes}
    if not limits:
        return parts
    tasks = []
    for name, max_bytes in limits.items():
        group = [part for part in parts if part.source == name]
        key = make_key("limit", VERSION, max_bytes, [part.key for part in group])
        tasks.append(Task(key, find_excess, (group, max_bytes), 0))
    return this.apply("limit", parts, this.tasks("limit", tasks, "sources"))


def find_excess(folder: Folder, key: str, parts: Sequence[Part], max_bytes: int) -> Record:
    """Mark documents of one source, in the order of a hash of their ids, from the first that exceeds `max_bytes`."""
    tables = [read(part, ("row", "id_hash", "bytes")) for part in parts]
    owner = np.repeat(np.arange(len(parts)), [table.num_rows for table in tables])
    rows, hashes, sizes = (
        np.concatenate([table[name].to_numpy() for table in tables]) for name in ("row", "id_hash", "bytes")
    )
    order = np.argsort(mix(hashes, LIMIT_SALT), kind="stable")
    excess = order[np.cumsum(sizes[order]) > max_bytes]
    marks: dict[str, Marks] = {}
    for index in excess:
        marks.setdefault(parts[owner[index]].name, Marks()).drop(rows[index], sizes[index], "over max_bytes")
    return commit(folder, key, marks)
