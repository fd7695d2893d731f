"""From keys that documents share to the copies that go, the same way for every kind of key.

    keys        of each holder (tables.py; what they are, exact.py and fuzzy.py say)
    gathered    of 64 holders each, in one table
    pairs       places that share a key, found by queries over ranges of the keys
    groups      clusters of places that pairs connect (components.py)
    members     what decides which document of a group stays, of some holders each
    found       of every place in a group whether it stays, by queries over ranges of the groups

In a group the best document stays: of an earlier data set before any other, then by the order of the sources, then the
larger text, then the smaller id.

Memory: of a query, see engine/queries.py; of a worker, see tables.py, and in `write_members` the ids of a group of
holders with at most `MEMBER_ROWS` documents, about 0.5 GB. Nothing grows with the number of documents but the lists of
files and what the parent knows of each part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.dedup import components
from data_prep.dedup.against import Shard
from data_prep.dedup.tables import GATHER_VERSION, GROUP_ROWS, TABLE, TOGETHER, first_place, gather, load, save
from data_prep.documents import Part, iterate
from data_prep.engine import Task, queries
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.stages import Run

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
MEMBER_ROWS = 2**22
MEMBERS = "members.parquet"
MEMBER_COLUMNS = ("group", "order", "id", "id_hash", "place", "normalised")
# Of a place in a group of `size` documents: `best` says whether it is the one that stays; `first` is the hash of that
# one's id (0 in an earlier data set), `rank` its rank, `same` whether it has the same normalised text.
FOUND = np.dtype([("place", "<u8"), ("first", "<u8"), ("size", "<u4"), ("rank", "<u2"), ("best", "?"), ("same", "?")])
LARGEST = 2**48 - 1

Holder = Shard | Part


@dataclass(frozen=True)
class Ranks:
    """The order of earlier data sets and sources: a document of a lower rank stays."""

    directories: tuple[str, ...]
    sources: tuple[str, ...]

    def of(self, holder: Holder) -> int:
        if isinstance(holder, Shard):
            return self.directories.index(holder.directory)
        return len(self.directories) + self.sources.index(holder.source)

    def earlier(self, rank: int) -> str | None:
        """The reason for which copies of a document of this rank are dropped, if that is of an earlier data set."""
        return f"in an earlier data set: {self.directories[rank]}" if rank < len(self.directories) else None

    @property
    def key(self) -> list:
        return [self.directories, self.sources]


def find_copies(
    this: Run, stage: str, holders: Sequence[Holder], keys: Sequence[Path], ranks: Ranks, normalised: bool = False
) -> Record:
    """The documents that share keys; `values["found"]` names the files of FOUND, `values["documents"]` counts those.

    keys: the file of each holder's keys; with `normalised` parts have a column of that name.
    """
    folder = this.folder(stage)
    tables = gather_keys(this, stage, holders, keys)
    key = make_key("groups", VERSION, components.VERSION, [table.key for table in tables])
    groups = this.query(stage, Task(key, find_groups, (*located(folder, tables),), 0))
    files = [folder.file(groups.key, name) for name in groups.values["groups"]]
    tasks = []
    for chunk in chunks(holders, MEMBER_ROWS):
        settings = [groups.key, ranks.key, normalised, [[number, holder.key] for number, holder in chunk]]
        arguments = (chunk, files, ranks, normalised)
        tasks.append(Task(make_key("members", VERSION, settings), write_members, arguments, 0))
    members = this.tasks(stage, tasks, "groups of shards")
    key = make_key("found", VERSION, [record.key for record in members])
    return this.query(stage, Task(key, choose, (*located(folder, members, MEMBERS),), 0))


def chunks(holders: Sequence[Holder], rows: int) -> Iterator[list[tuple[int, Holder]]]:
    """Consecutive holders with their numbers, at most `TOGETHER`, and of at most `rows` documents if of several."""
    chunk: list[tuple[int, Holder]] = []
    for entry in enumerate(holders):
        if chunk and (len(chunk) == TOGETHER or sum(holder.rows for _, holder in (*chunk, entry)) > rows):
            yield chunk
            chunk = []
        chunk.append(entry)
    if chunk:
        yield chunk


def gather_keys(this: Run, stage: str, holders: Sequence[Holder], keys: Sequence[Path]) -> list[Record]:
    """Tables of the keys of all holders."""
    tasks = []
    for chunk in chunks(holders, 2**63):
        files = [(number, keys[number]) for number, _ in chunk]
        # A file of keys lies in the directory of its result, whose name is its key.
        key = make_key("gather", GATHER_VERSION, [[number, path.parent.name, path.name] for number, path in files])
        tasks.append(Task(key, gather, (files,), 0))
    return this.tasks(stage, tasks, "tables of keys")


def located(folder: Folder, records: Sequence[Record], name: str = TABLE) -> tuple[list[Path], int]:
    """Where the tables of results lie, and how many rows they have together."""
    return [folder.file(record.key, name) for record in records], sum(record.values["rows"] for record in records)


def find_groups(folder: Folder, key: str, tables: Sequence[Path], rows: int) -> Record:
    """Groups of the places that share keys, as `components.connect` gives them."""
    pairs = find_pairs(folder, key, tables, rows)
    record = components.connect(folder, key, pairs)
    for path in pairs:
        path.unlink()
    return record


def find_pairs(folder: Folder, key: str, tables: Sequence[Path], rows: int) -> list[Path]:
    """Files of pairs of places that share a key, the smallest with each other, uint64 [pairs, 2], once per range.

    Ranges that an interrupted run has written are not asked for again.
    """
    import pyarrow.parquet as pq

    names = pq.read_schema(tables[0]).names
    keys, paths = [name for name in names if name != "place"], []
    table = queries.Sorted(tables, names, "key")
    for number, (low, high) in enumerate(queries.ranges(rows)):
        paths.append(folder.file(key, f"pairs-{number:05d}.npy"))
        if not paths[-1].is_file():
            found = queries.collect(queries.shared(table.between(low, high), keys, "place"))
            pairs = np.stack([found[name].to_numpy() for name in ("first", "place")], axis=1)
            save(paths[-1], np.unique(pairs, axis=0))
    return paths


def write_members(
    folder: Folder, key: str, holders: Sequence[tuple[int, Holder]], groups: Sequence[Path], ranks: Ranks, same: bool
) -> Record:
    """Write the documents of holders that are in a group: group, order, id, its hash, place, normalised, by group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("group", pa.uint64()),
            ("order", pa.uint64()),
            ("id", pa.large_string()),
            ("id_hash", pa.uint64()),
            ("place", pa.uint64()),
            ("normalised", pa.uint64()),
        ]
    )
    tables = [schema.empty_table()]
    for number, holder in holders:
        found = np.concatenate([load_rows(path, number, lambda array: array[:, 0]) for path in groups])
        if len(found):
            members = found[np.argsort(found[:, 0])]
            tables.append(pa.table(_describe(holder, number, members, ranks.of(holder), same), schema))
    table = pa.concat_tables(tables).sort_by([("group", "ascending"), ("place", "ascending")])
    with writing(folder.file(key, MEMBERS)) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=GROUP_ROWS)
    return folder.commit(key, [MEMBERS], {"rows": table.num_rows})


def load_rows(path: Path, number: int, places: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The rows of a saved array, sorted by place, that are of one holder."""
    array = load(path)
    low, high = np.searchsorted(places(array), np.array([first_place(number), first_place(number + 1)], np.uint64))
    return np.array(array[low:high])


def _describe(holder: Holder, number: int, members: np.ndarray, rank: int, same: bool) -> Mapping[str, object]:
    """Columns of the members (rows (place, group), uint64 [members, 2], by place) of a holder."""
    import pyarrow as pa

    count = len(members)
    # One of an earlier data set stays whatever its size, and is never read. No two places are the same.
    order, ids, normalised = np.full(count, rank << 48, np.uint64), pa.nulls(count, pa.large_string()), members[:, 0]
    hashes = np.zeros(count, np.uint64)
    if isinstance(holder, Part):
        columns = ("row", "id", "id_hash", "bytes", *(["normalised"] if same else []))
        table = read_rows(holder, columns, members[:, 0] - np.uint64(first_place(number)))
        order += np.uint64(LARGEST) - table["bytes"].to_numpy().astype(np.uint64)
        ids, hashes, normalised = table["id"], table["id_hash"], table["normalised"] if same else normalised
    places = members[:, 0]
    return {
        "group": members[:, 1],
        "order": order,
        "id": ids,
        "id_hash": hashes,
        "place": places,
        "normalised": normalised,
    }


def read_rows(part: Part, columns: Sequence[str], rows: np.ndarray) -> "pa.Table":
    """The documents `rows` of a part, ascending; `columns` names "row"."""
    import pyarrow as pa

    tables = [table.filter(pa.array(np.isin(table["row"].to_numpy(), rows))) for table in iterate(part, columns)]
    return pa.concat_tables(tables)


def choose(folder: Folder, key: str, members: Sequence[Path], rows: int) -> Record:
    """FOUND of all members, by ranges of their groups; `values["found"]` names its files, sorted by place."""
    names, table = [], queries.Sorted(members, MEMBER_COLUMNS, "group")
    # Ids make rows about twice as large as those that ranges are made for.
    for number, (low, high) in enumerate(queries.ranges(2 * rows)):
        names.append(f"found-{number:05d}.npy")
        if not folder.file(key, names[-1]).is_file():
            found = queries.collect(table.between(low, high), ("group", "order", "id", "place"))
            columns = (found[name].to_numpy() for name in ("group", "order", "id_hash", "place", "normalised"))
            save(folder.file(key, names[-1]), _found(*columns))
    return folder.commit(key, names, {"found": names, "documents": rows})


def _found(
    group: np.ndarray, order: np.ndarray, id_hash: np.ndarray, place: np.ndarray, normalised: np.ndarray
) -> np.ndarray:
    """FOUND of members whose groups follow each other, the best document of each first."""
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
    sizes = np.diff(np.append(starts, len(group)))
    found = np.zeros(len(group), FOUND)
    found["place"] = place
    found["best"][starts] = True
    found["first"] = np.repeat(id_hash[starts], sizes)
    found["size"] = np.repeat(sizes, sizes)
    found["rank"] = np.repeat(order[starts] >> np.uint64(48), sizes)
    found["same"] = normalised == np.repeat(normalised[starts], sizes)
    return found[np.argsort(place)]


def found_of(files: Sequence[Path], part: Part, number: int) -> Iterator[tuple[int, int, np.void]]:
    """Row, bytes and FOUND of the documents of a part that are in a group, by row."""
    found = np.concatenate([load_rows(path, number, lambda array: array["place"]) for path in files])
    found = found[np.argsort(found["place"])]
    if len(found):
        table = read_rows(part, ("row", "bytes"), found["place"] - np.uint64(first_place(number)))
        yield from zip(table["row"].to_pylist(), table["bytes"].to_pylist(), found, strict=True)
