"""Documents between the stages: parquet shards of text, the lists of what stages did, and columns that they added.

A shard of text is written once, by ingest, and never rewritten. A stage that drops documents or changes their text
writes a small list beside it (lists.py), a stage that finds something out writes a file of columns, row by row as in
the shard (`write_columns`), and readers put all of it together. So a threshold changes without reading text again, and
no document is dropped without its reason.

Columns of a text shard: row (uint32), id, id_hash (uint64, as in documents.hash), hash (first 16 bytes of the text's
SHA-256), text, source, url, language, bytes (int64, of the text in UTF-8), steps (map of stage to what it did).

Copies are found by `FINGERPRINTS`: hash, and where a stage made them normalised (uint64) and bands (list of uint64).
They go into a file of their own beside the shards that training reads, so that a later preparation can remove copies
of what is there without reading its text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.lists import Changes, read_changes

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 4096
FINGERPRINTS = ("hash", "normalised", "bands")


@dataclass(frozen=True)
class Part:
    """One shard of text as a stage sees it; `key` identifies that.

    `rows` are the documents in the file, `documents` and `bytes` what is kept of them. `lists` are the stages' lists
    in their order; `columns` names the file of each column that a stage added, which may also replace one of the shard.
    """

    path: Path
    key: str
    source: str
    rows: int
    documents: int
    bytes: int
    lists: tuple[tuple[str, Path], ...] = ()
    columns: tuple[tuple[str, Path], ...] = ()

    @property
    def name(self) -> str:
        """Unique among the parts of a pipeline."""
        return f"{self.path.parent.name}-{self.path.stem}"

    def with_list(self, stage: str, path: Path, key: str, documents: int, bytes: int) -> "Part":
        """The part after a stage that dropped `documents` documents and took `bytes` bytes of text away."""
        return replace(
            self,
            key=key,
            documents=self.documents - documents,
            bytes=self.bytes - bytes,
            lists=(*self.lists, (stage, path)),
        )

    def with_columns(self, path: Path, names: Sequence[str], key: str) -> "Part":
        """The part with columns of a file that `write_columns` wrote."""
        others = tuple(entry for entry in self.columns if entry[0] not in names)
        return replace(self, key=key, columns=(*others, *((name, path) for name in names)))

    @property
    def pedigree(self) -> list[str]:
        """Columns of what is known of a document beside its id and text, those that stages added among them."""
        own = text_schema().names
        added = (name for name, _ in self.columns if name not in own and name not in FINGERPRINTS)
        return [*pedigree_schema().names, *added]

    @property
    def split_by(self) -> str:
        """The column of hashes by which documents are held out: all of a cluster of near duplicates, or none."""
        return "cluster" if "cluster" in dict(self.columns) else "id_hash"

    @property
    def fingerprints(self) -> list[str]:
        """The columns of `FINGERPRINTS` that the part has."""
        return [name for name in FINGERPRINTS if name in text_schema().names or name in dict(self.columns)]


@cache
def text_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("row", pa.uint32()),
            ("id", pa.large_string()),
            ("id_hash", pa.uint64()),
            ("hash", pa.binary(16)),
            ("text", pa.large_string()),
            *pedigree_schema(),
        ]
    )


@cache
def pedigree_schema() -> "pa.Schema":
    """What is known of a document beside its id and text."""
    import pyarrow as pa

    return pa.schema(
        [
            ("source", pa.string()),
            ("url", pa.string()),
            ("language", pa.string()),
            ("bytes", pa.int64()),
            ("steps", pa.map_(pa.string(), pa.string())),
        ]
    )


def read(part: Part, columns: Sequence[str]) -> "pa.Table":
    """The documents of a part that are kept, in row order, as the stages left them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if batches := list(iterate(part, columns)):
        return pa.concat_tables(batches)
    elsewhere = dict(part.columns)
    schemas = {name: pq.read_schema(elsewhere[name]) if name in elsewhere else text_schema() for name in columns}
    return pa.schema([schema.field(name) for name, schema in schemas.items()]).empty_table()


def iterate(part: Part, columns: Sequence[str]) -> Iterator["pa.Table"]:
    """`read` in pieces of at most `ROW_GROUP` documents, for readers that do not need the whole part in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    changes = [read_changes(stage, path) for stage, path in part.lists]
    dropped = np.zeros(part.rows, bool)
    for change in changes:
        dropped[change.rows[change.dropped]] = True
    elsewhere = dict(part.columns)
    own = [name for name in columns if name not in elsewhere]
    added = {name: pq.read_table(elsewhere[name], columns=[name])[name] for name in columns if name in elsewhere}
    with pq.ParquetFile(part.path) as file:
        start = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            keep = ~dropped[start : start + count]
            if keep.any():
                table = file.read_row_group(group, columns=own, use_threads=False)
                for name, column in added.items():
                    table = table.append_column(name, column.slice(start, count))
                for change in changes:
                    table = _changed(table, change.between(start, start + count), start)
                table = table.select(list(columns))
                yield table if keep.all() else table.filter(pa.array(keep))
            start += count


def _changed(table: "pa.Table", changes: Changes, start: int) -> "pa.Table":
    """A piece of a shard, from row `start` on, after one stage's list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    present = table.schema.names
    rows = changes.rows - start
    if "bytes" in present and (less := np.flatnonzero(changes.removed)).size:
        removed = np.zeros(table.num_rows, np.int64)
        removed[rows[less]] = changes.removed[less]
        table = _replaced(table, "bytes", pc.subtract(table["bytes"], pa.array(removed)))
    if "text" in present and changes.edits:
        mask = np.zeros(table.num_rows, bool)
        mask[rows[sorted(changes.edits)]] = True
        # Binary while it is cut: offsets count bytes, and cut text need not be copied to and from str.
        text = table["text"].combine_chunks().cast(pa.large_binary())
        edited = [changes.edit(index, text[int(rows[index])].as_py()) for index in sorted(changes.edits)]
        text = pc.replace_with_mask(text, pa.array(mask), pa.array(edited, pa.large_binary()))
        table = _replaced(table, "text", text.cast(pa.large_string()))
    if "steps" in present and changes.notes:
        steps = table["steps"].to_pylist()
        for index, note in changes.notes.items():
            steps[rows[index]] = [*steps[rows[index]], (changes.stage, note)]
        table = _replaced(table, "steps", pa.array(steps, table.field("steps").type))
    return table


def _replaced(table: "pa.Table", name: str, column: object) -> "pa.Table":
    return table.set_column(table.schema.get_field_index(name), table.field(name), column)


def write_columns(path: Path, part: Part, rows: np.ndarray, columns: Mapping[str, "pa.Array"]) -> None:
    """Write columns of the kept documents `rows`, int64 [documents]; every other row of the shard is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = np.full(part.rows, -1, np.int64)
    places[rows] = np.arange(len(rows))
    indices = pa.array(places, mask=places < 0)
    table = pa.table({name: column.take(indices) for name, column in columns.items()})
    pq.write_table(table, path, compression="zstd")


def mix(id_hash: np.ndarray, salt: int) -> np.ndarray:
    """A second hash of uint64 [N], independent for every salt: the finaliser of splitmix64, which is a bijection."""
    golden = 0x9E3779B97F4A7C15
    value = id_hash + np.uint64((salt * golden + golden) % 2**64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def chosen(id_hash: np.ndarray, salt: int, fraction: float) -> np.ndarray:
    """Whether each document falls into a share of all; it depends on its id alone, so others do not change it."""
    return mix(id_hash, salt) < np.uint64(min(int(fraction * 2**64), 2**64 - 1))


# Salts of `mix`. The split does not depend on the pipeline's seed: another order must not train on held-out documents.
VALIDATION_SALT, SAMPLE_SALT, LIMIT_SALT, SHUFFLE_SALT = 1, 2, 3, 2**32


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are validation documents, by their hashes in the column `Part.split_by`."""
    return chosen(hashes, VALIDATION_SALT, fraction)
