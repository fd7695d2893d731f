"""Lists: what a stage did to the documents of a part, row by row. Text itself is never rewritten.

Columns of a list: row (uint32, ascending), reason (why the document is dropped; null where it is kept), note (goes into
the document's `steps`), removed (int64, bytes that its text loses: all of them where it is dropped, fewer than 0 where
it grows), edits (list of start, stop, text: bytes start..stop of the text as the stage saw it become `text`; ascending,
not overlapping, on the boundaries of characters).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.manifest import Folder, Record, writing

if TYPE_CHECKING:
    import pyarrow as pa

Edit = tuple[int, int, str]


@dataclass
class Marks:
    """The list of one part while it is made: one entry per row, in any order.

    `kinds` says for the funnel what was done to a document that is kept, where that is worth counting.
    """

    rows: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    notes: list[str | None] = field(default_factory=list)
    edits: list[Sequence[Edit]] = field(default_factory=list)
    kinds: list[str | None] = field(default_factory=list)

    def drop(self, row: int, size: int, reason: str) -> None:
        """The document of `size` bytes goes, for a reason that is counted."""
        self._add(row, size, reason, None, (), None)

    def note(self, row: int, note: str, kind: str | None = None) -> None:
        """The document stays, with a note in its steps."""
        self._add(row, 0, None, note, (), kind)

    def edit(self, row: int, edits: Sequence[Edit], note: str, kind: str) -> None:
        """The document stays with parts of its text replaced."""
        removed = sum(stop - start - len(text.encode()) for start, stop, text in edits)
        self._add(row, removed, None, note, edits, kind)

    def _add(
        self, row: int, removed: int, reason: str | None, note: str | None, edits: Sequence[Edit], kind: str | None
    ) -> None:
        self.rows.append(int(row))
        self.removed.append(int(removed))
        self.reasons.append(reason)
        self.notes.append(note)
        self.edits.append(edits)
        self.kinds.append(kind)


@cache
def list_schema() -> "pa.Schema":
    import pyarrow as pa

    edit = pa.struct([("start", pa.uint32()), ("stop", pa.uint32()), ("text", pa.large_string())])
    return pa.schema(
        [
            ("row", pa.uint32()),
            ("reason", pa.string()),
            ("note", pa.string()),
            ("removed", pa.int64()),
            ("edits", pa.list_(edit)),
        ]
    )


def write_list(folder: Folder, key: str, name: str, marks: Marks) -> dict:
    """Write the list of the part `name` and return what is counted of it.

    documents and bytes dropped or cut away, `dropped` and `changed` ({reason or kind: [documents, bytes]}), and
    `content`, a hash of the list.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.argsort(np.array(marks.rows, np.int64), kind="stable").tolist()
    rows, removed, reasons, notes, edits, kinds = (
        [column[index] for index in order]
        for column in (marks.rows, marks.removed, marks.reasons, marks.notes, marks.edits, marks.kinds)
    )
    records = [[{"start": a, "stop": b, "text": text} for a, b, text in entry] for entry in edits]
    with writing(folder.file(key, f"{name}.parquet")) as temporary:
        table = pa.table([rows, reasons, notes, removed, records], schema=list_schema())
        pq.write_table(table, temporary, compression="zstd")
    digest = hashlib.sha256(json.dumps([rows, reasons, notes, edits]).encode())
    return {
        "documents": sum(reason is not None for reason in reasons),
        "bytes": sum(removed),
        "dropped": _count(reasons, removed),
        "changed": _count(kinds, removed),
        "content": digest.hexdigest()[:32],
    }


@dataclass
class Edits:
    """Edits by compiled loops, where `Marks` would make an object of each: a span becomes a newline or nothing."""

    rows: list[np.ndarray] = field(default_factory=list)
    removed: list[np.ndarray] = field(default_factory=list)
    owners: list[np.ndarray] = field(default_factory=list)
    spans: list[np.ndarray] = field(default_factory=list)

    def add(self, rows: np.ndarray, removed: np.ndarray, owners: np.ndarray, spans: np.ndarray) -> None:
        """`removed` bytes of the documents `rows`; spans int64 [edits, 3] of the rows `owners`.

        A span is start, stop and whether a newline takes its place.
        """
        self.rows.append(rows.astype(np.uint32))
        self.removed.append(removed)
        self.owners.append(owners.astype(np.uint32))
        self.spans.append(spans.astype(np.uint32))


def write_edits(folder: Folder, key: str, name: str, edits: Edits) -> dict[str, dict]:
    """Write the list of the part `name`, if it has edits; what is counted of it, by name as `commit` has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not sum(map(len, edits.rows)):
        return {}
    rows, removed, owners, spans = map(np.concatenate, (edits.rows, edits.removed, edits.owners, edits.spans))
    order, inner = np.argsort(rows, kind="stable"), np.argsort(owners, kind="stable")
    rows, removed, owners, spans = rows[order], removed[order], owners[inner], spans[inner]
    texts = pa.array(["", "\n"], pa.large_string()).take(pa.array(spans[:, 2]))
    records = pa.StructArray.from_arrays(
        [pa.array(spans[:, 0]), pa.array(spans[:, 1]), texts], fields=list(list_schema().field("edits").type.value_type)
    )
    bounds = np.append(np.searchsorted(owners, rows), len(owners)).astype(np.int32)
    notes = [f"{count} bytes" for count in removed.tolist()]
    nothing = pa.nulls(len(rows), pa.string())
    columns = [rows, nothing, notes, removed, pa.ListArray.from_arrays(pa.array(bounds), records)]
    with writing(folder.file(key, f"{name}.parquet")) as temporary:
        pq.write_table(pa.table(columns, schema=list_schema()), temporary, compression="zstd")
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in (rows, owners, spans)))
    counted = {"documents": 0, "bytes": int(removed.sum()), "dropped": {}, "changed": {}}
    return {name: counted | {"content": digest.hexdigest()[:32]}}


def _count(names: Sequence[str | None], removed: Sequence[int]) -> dict[str, list[int]]:
    documents, size = Counter(), Counter()
    for name, count in zip(names, removed, strict=True):
        if name is not None:
            documents[name] += 1
            size[name] += count
    return {name: [documents[name], size[name]] for name in sorted(documents)}


def commit(folder: Folder, key: str, marks: Mapping[str, Marks], values: Mapping | None = None) -> Record:
    """Write the lists of a stage by the name of the part; `values["lists"]` has what is counted of each."""
    lists = {name: write_list(folder, key, name, entries) for name, entries in marks.items() if entries.rows}
    return folder.commit(key, [f"{name}.parquet" for name in lists], {**(values or {}), "lists": lists})


def total(records: Iterable[Record], kind: str) -> dict[str, tuple[int, int]]:
    """Documents and bytes by reason (`dropped`) or by what was done (`changed`), over all lists of a stage."""
    documents, size = Counter(), Counter()
    for record in records:
        for entry in record.values["lists"].values():
            for name, (count, removed) in entry[kind].items():
                documents[name] += count
                size[name] += removed
    return {name: (documents[name], size[name]) for name in sorted(documents)}


@dataclass(frozen=True)
class Spans(Mapping[int, Sequence[Mapping]]):
    """Edits by the index of the entry, made into objects when they are asked for: a part has a million.

    Of entry i they are numbers places[i]: `starts`, `stops` int64 and `codes` int64 [edits], which number the `texts`.
    """

    places: Mapping[int, tuple[int, int]]
    starts: np.ndarray
    stops: np.ndarray
    codes: np.ndarray
    texts: Sequence[str]

    @staticmethod
    def of(column: "pa.ChunkedArray") -> "Spans":
        import pyarrow.compute as pc

        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        ends = np.cumsum(counts)
        edited = np.flatnonzero(counts)
        places = zip((ends - counts)[edited].tolist(), ends[edited].tolist(), strict=True)
        flat = pc.list_flatten(column)
        starts, stops = (pc.struct_field(flat, name).to_numpy().astype(np.int64) for name in ("start", "stop"))
        texts = pc.unique(pc.struct_field(flat, "text"))
        codes = pc.index_in(pc.struct_field(flat, "text"), texts).to_numpy().astype(np.int64)
        return Spans(dict(zip(edited.tolist(), places, strict=True)), starts, stops, codes, texts.to_pylist())

    def __getitem__(self, index: int) -> Sequence[Mapping]:
        inside = slice(*self.places[index])
        columns = (array[inside].tolist() for array in (self.starts, self.stops, self.codes))
        return [
            {"start": start, "stop": stop, "text": self.texts[code]} for start, stop, code in zip(*columns, strict=True)
        ]

    def __contains__(self, index: object) -> bool:
        return index in self.places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Changes:
    """A list as it is read: `rows` and `removed` int64 [entries]; `notes` and `edits` by the index of the entry."""

    stage: str
    rows: np.ndarray
    removed: np.ndarray
    dropped: np.ndarray
    notes: Mapping[int, str]
    edits: Mapping[int, Sequence[Mapping]]

    def between(self, start: int, stop: int) -> "Changes":
        """The entries of rows start..stop that are kept."""
        low, high = np.searchsorted(self.rows, (start, stop)).tolist()
        inside = slice(low, high)
        notes, edits = (
            {index - low: table[index] for index in range(low, high) if index in table} if table else {}
            for table in (self.notes, self.edits)
        )
        return Changes(self.stage, self.rows[inside], self.removed[inside], self.dropped[inside], notes, edits)

    def edit(self, index: int, text: bytes) -> bytes:
        """The text of an entry's document after its edits."""
        pieces, last = [], 0
        for edit in self.edits[index]:
            pieces += [text[last : edit["start"]], edit["text"].encode()]
            last = edit["stop"]
        return b"".join([*pieces, text[last:]])


def read_changes(stage: str, path: Path) -> Changes:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    dropped = pc.is_valid(table["reason"]).to_numpy()
    noted = np.flatnonzero(pc.is_valid(table["note"]).to_numpy())
    return Changes(
        stage,
        table["row"].to_numpy().astype(np.int64),
        table["removed"].to_numpy(),
        dropped,
        dict(zip(noted.tolist(), table["note"].take(noted).to_pylist(), strict=True)),
        Spans.of(table["edits"]),
    )
