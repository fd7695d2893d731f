"""Documents between the stages: parquet shards of text, and the lists of rows that later stages dropped or noted.

A shard of text is written once, by ingest, and never rewritten: a stage that removes documents writes a small list
beside it (`row`, `reason`, `note`), and readers apply the lists. So a threshold changes without reading text again, and
no document is dropped without its reason.

Columns of a text shard: row (uint32), id, id_hash (uint64, as in documents.hash), hash (first 16 bytes of the text's
SHA-256), text, source, url, language, bytes (int64, of the text in UTF-8), steps (map of stage to what it did).
Columns of a list: row, reason (why the document is dropped; null where it is kept), note (goes into `steps`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 4096
SELECTION_COLUMNS = ("row", "reason", "note")


@dataclass(frozen=True)
class Part:
    """One shard of text with the lists that apply to it; `key` identifies what a reader sees."""

    path: Path
    key: str
    source: str
    documents: int
    bytes: int
    selections: tuple[tuple[str, Path], ...] = ()

    @property
    def name(self) -> str:
        """Unique among the parts of a pipeline."""
        return f"{self.path.parent.name}-{self.path.stem}"

    def select(self, stage: str, path: Path, key: str, documents: int, bytes: int) -> "Part":
        """The part after a stage that dropped `documents` documents of `bytes` bytes, or noted something."""
        return replace(
            self,
            key=key,
            documents=self.documents - documents,
            bytes=self.bytes - bytes,
            selections=(*self.selections, (stage, path)),
        )


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
    """The documents of a part that are kept, in row order; `steps` includes the notes of later stages."""
    import pyarrow as pa

    batches = list(iterate(part, columns))
    return pa.concat_tables(batches) if batches else pa.table({})


def iterate(part: Part, columns: Sequence[str]) -> Iterator["pa.Table"]:
    """`read` in pieces of `ROW_GROUP` documents, for readers that do not need the whole part in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dropped, notes = _selections(part)
    file = pq.ParquetFile(part.path)
    start = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=list(columns))
        rows = np.arange(start, start + table.num_rows)
        start += table.num_rows
        if notes and "steps" in columns:
            steps = [given + notes.get(row, []) for row, given in zip(rows, table["steps"].to_pylist(), strict=True)]
            index = table.schema.get_field_index("steps")
            table = table.set_column(index, table.field("steps"), pa.array(steps, table.field("steps").type))
        if dropped.size:
            table = table.filter(pa.array(~np.isin(rows, dropped)))
        yield table


def _selections(part: Part) -> tuple[np.ndarray, dict[int, list[tuple[str, str]]]]:
    import pyarrow.parquet as pq

    dropped, notes = [], {}
    for stage, path in part.selections:
        for entry in pq.read_table(path, columns=list(SELECTION_COLUMNS)).to_pylist():
            if entry["reason"] is not None:
                dropped.append(entry["row"])
            elif entry["note"] is not None:
                notes.setdefault(entry["row"], []).append((stage, entry["note"]))
    return np.array(dropped, np.int64), notes


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


def held_out(id_hash: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are validation documents."""
    return chosen(id_hash, VALIDATION_SALT, fraction)
