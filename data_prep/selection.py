"""Stages that drop documents: they query small columns and write, per part, the rows that are dropped or noted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep import engine
from data_prep.documents import LIMIT_SALT, Part, mix, read
from data_prep.manifest import Folder, Record, make_key, writing
from maxlm.errors import DataError

DEDUP_VERSION, LIMIT_VERSION = 1, 1
ORDER = ("source", "id", "path", "row")


@dataclass(frozen=True)
class Mark:
    """One row of a list: dropped for `reason`, or kept with a `note`."""

    row: int
    bytes: int
    reason: str | None
    note: str | None = None


def commit(folder: Folder, key: str, marks: Mapping[str, Sequence[Mark]]) -> Record:
    """Write the lists of a stage, by the name of the part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = {}
    for name, rows in marks.items():
        rows = sorted(rows, key=lambda mark: mark.row)
        with writing(folder.file(key, f"{name}.parquet")) as temporary:
            table = pa.table(
                {
                    "row": pa.array([mark.row for mark in rows], pa.uint32()),
                    "reason": pa.array([mark.reason for mark in rows], pa.string()),
                    "note": pa.array([mark.note for mark in rows], pa.string()),
                }
            )
            pq.write_table(table, temporary, compression="zstd")
        gone = [mark for mark in rows if mark.reason is not None]
        values[name] = {
            "documents": len(gone),
            "bytes": sum(mark.bytes for mark in gone),
            "content": make_key("list", 1, [[mark.row, mark.reason, mark.note] for mark in rows]),
        }
    return folder.commit(key, [f"{name}.parquet" for name in values], values)


def apply(stage: str, folder: Folder, record: Record, parts: Sequence[Part]) -> list[Part]:
    """The parts as they are read after a stage; a part in which it marked nothing stays the same."""
    selected = []
    for part in parts:
        if (found := record.values.get(part.name)) is not None:
            key = make_key(stage, 1, part.key, found["content"])
            path = folder.file(record.key, f"{part.name}.parquet")
            part = part.select(stage, path, key, found["documents"], found["bytes"])
        selected.append(part)
    return selected


def find_duplicates(folder: Folder, key: str, parts: Sequence[Part], sources: Sequence[str], exact: bool) -> Record:
    """Mark what is to be dropped: with `exact`, of equal texts all but the first by the order of `sources`, then by id.

    In any case an id that two remaining documents share is a `DataError`: a document must be found by its id.
    """
    table = engine.scan([part.path for part in parts], ("row", "id", "id_hash", "hash", "source", "bytes"))
    names = {str(part.path): part.name for part in parts}
    marks: dict[str, list[Mark]] = {}
    dropped = set()
    if exact:
        found = engine.collect(
            engine.repeated(table, "hash", ORDER, sources).select("path", "row", "bytes", "copies", "kept")
        )
        for path, row, size, copies, kept in zip(*(column.to_pylist() for column in found.columns), strict=True):
            mark = Mark(row, size, None, f"{copies} copies") if kept else Mark(row, size, "duplicate")
            marks.setdefault(names[path], []).append(mark)
            if not kept:
                dropped.add((path, row))
    same_id = engine.collect(engine.repeated(table, "id_hash", ORDER).select("path", "row", "id", "source"))
    _check_ids([row for row in same_id.to_pylist() if (row["path"], row["row"]) not in dropped])
    return commit(folder, key, marks)


def _check_ids(rows: Sequence[Mapping]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise DataError(
                f"source '{row['source']}': more than one document has the id '{row['id']}'; expected an id_field that "
                "is unique in its source, or none to number the records"
            )
        seen.add(row["id"])


def find_excess(folder: Folder, key: str, parts: Sequence[Part], max_bytes: int) -> Record:
    """Mark documents of one source, in the order of a hash of their ids, from the first that exceeds `max_bytes`."""
    tables = [read(part, ("row", "id_hash", "bytes")) for part in parts]
    owner = np.repeat(np.arange(len(parts)), [table.num_rows for table in tables])
    rows, hashes, sizes = (
        np.concatenate([table[name].to_numpy() for table in tables]) for name in ("row", "id_hash", "bytes")
    )
    order = np.argsort(mix(hashes, LIMIT_SALT), kind="stable")
    excess = order[np.cumsum(sizes[order]) > max_bytes]
    marks: dict[str, list[Mark]] = {}
    for index in excess:
        mark = Mark(int(rows[index]), int(sizes[index]), "over max_bytes")
        marks.setdefault(parts[owner[index]].name, []).append(mark)
    return commit(folder, key, marks)
