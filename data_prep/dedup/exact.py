"""Exact duplicates: documents whose text is the same, byte for byte; and ids that are the same where texts differ."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.dedup.against import Shard
from data_prep.dedup.copies import Ranks, find_pairs, found_of, read_rows
from data_prep.dedup.tables import first_place, load, write_keys
from data_prep.documents import Part, iterate, write_columns
from data_prep.engine import advance
from data_prep.lists import Marks, commit, read_changes
from data_prep.manifest import Folder, Record, writing
from maxlm.errors import DataError

VERSION, MARK_VERSION = 3, 1
TEXTS, IDS, COLUMNS = "texts.npy", "ids.npy", "columns.parquet"
HASH_BYTES = 16
SEEN_GROUPS = 100


def write_part_keys(folder: Folder, key: str, part: Part) -> Record:
    """Write what the kept documents of a part are compared by: hashes of their texts, and of their ids.

    Where earlier stages changed text the shard's hashes are of another text: they are computed anew, and written as a
    column; `values["changed"]` says whether they are.
    """
    import pyarrow as pa

    changed = any(read_changes(stage, path).edits for stage, path in part.lists)
    rows, ids, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], [b""]
    for table in iterate(part, ("row", "id_hash", "bytes", "text" if changed else "hash")):
        rows.append(table["row"].to_numpy().astype(np.int64))
        ids.append(table["id_hash"].to_numpy())
        hashes += [_hash(text) for text in table["text"].to_pylist()] if changed else table["hash"].to_pylist()
        advance(int(table["bytes"].to_numpy().sum()))
    row, hash_bytes = np.concatenate(rows), b"".join(hashes)
    _write_texts(folder.file(key, TEXTS), row, hash_bytes)
    write_keys(folder.file(key, IDS), row, key=np.concatenate(ids))
    if changed:
        with writing(folder.file(key, COLUMNS)) as temporary:
            write_columns(temporary, part, row, {"hash": pa.array(hashes[1:], pa.binary(HASH_BYTES))})
    return folder.commit(key, [TEXTS, IDS, *([COLUMNS] if changed else [])], {"changed": changed})


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


def write_shard_keys(folder: Folder, key: str, shard: Shard) -> Record:
    """Write the hashes of the texts of an earlier shard."""
    hashes = b"".join(value for table in shard.iterate(("hash",)) for value in table["hash"].to_pylist())
    _write_texts(folder.file(key, TEXTS), np.arange(shard.rows), hashes)
    return folder.commit(key, [TEXTS])


def _write_texts(path: Path, rows: np.ndarray, hashes: bytes) -> None:
    halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    write_keys(path, rows, key=halves[:, 0], more=halves[:, 1])


def mark(folder: Folder, key: str, part: Part, number: int, files: Sequence[Path], ranks: Ranks) -> Record:
    """The list of a part: what of it is in the groups of `files` (copies.FOUND) and does not stay is dropped."""
    marks = Marks()
    for row, size, entry in found_of(files, part, number):
        if entry["best"]:
            marks.note(row, f"{entry['size']} copies")
        else:
            marks.drop(row, size, ranks.earlier(entry["rank"]) or "duplicate")
    return commit(folder, key, {part.name: marks})


def check_ids(
    folder: Folder, key: str, tables: Sequence[Path], rows: int, parts: Sequence[Part], files: Sequence[Path]
) -> Record:
    """Refuse an id that documents share which stay: a document must be found by its id.

    tables: ids of the parts; files: FOUND of what does not stay. Raises `DataError`.
    """
    for path in find_pairs(folder, key, tables, rows):
        repeated = _staying(load(path), files)
        starts = np.flatnonzero(np.diff(repeated[:, 0], prepend=repeated[:1, 0] + np.uint64(1)))
        # Hashes of different ids are hardly ever equal, so the first groups tell.
        for group in np.split(repeated[:, 1], starts[1:])[:SEEN_GROUPS]:
            _refuse_repeated([_source_and_id(parts, int(place)) for place in group[:SEEN_GROUPS]])
        path.unlink()
    return folder.commit(key)


def _staying(pairs: np.ndarray, files: Sequence[Path]) -> np.ndarray:
    """Rows (first, place), by both, of the places with equal keys that stay, where those are more than one."""
    firsts = np.unique(pairs[:, 0])
    rows = np.unique(np.concatenate([pairs, np.stack([firsts, firsts], axis=1)]), axis=0)
    for path in files:
        found = load(path)
        rows = rows[~np.isin(rows[:, 1], found["place"][~found["best"]])]
    _, group, sizes = np.unique(rows[:, 0], return_inverse=True, return_counts=True)
    return rows[sizes[group] > 1]


def _source_and_id(parts: Sequence[Part], place: int) -> tuple[str, str]:
    number, row = divmod(place, first_place(1))
    (document,) = read_rows(parts[number], ("row", "id"), np.array([row])).to_pylist()
    return parts[number].source, document["id"]


def _refuse_repeated(documents: Sequence[tuple[str, str]]) -> None:
    seen: set[str] = set()
    for source, name in documents:
        if name in seen:
            raise DataError(
                f"source '{source}': more than one document has the id '{name}'; expected an id_field that is unique "
                "in its source, or none to number the records"
            )
        seen.add(name)
