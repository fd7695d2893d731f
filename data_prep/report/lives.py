"""Single documents through all stages: their text as each stage saw it, what it did, and what it found out.

A document is read from the row group that has it, once, and its texts follow from the stages' lists. Memory: of a shard
one row group of text (16 MB) and one list at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents import FINGERPRINTS, Part
from data_prep.report.sampling import list_of
from data_prep.report.trace import Trace

Span = tuple[int, int, str]  # bytes start..stop become a text
# Columns of text shards that stages may write anew and which say nothing new of a document.
REPLACED = ("id", "id_hash", "url", "steps")


@dataclass(frozen=True)
class Change:
    """What one step did: `before` and `after` are the text in UTF-8, the same where nothing was edited."""

    step: int
    reason: str | None
    note: str | None
    edits: list[Span]
    before: bytes
    after: bytes


@dataclass
class Life:
    """A document as it was read; `columns` has by name the stage that found a value out, and the value.

    `replaced` are columns of the shard itself that a stage wrote anew, such as ids with a mask in them.
    """

    part: Part
    row: int
    id: str
    url: str | None
    language: str | None
    steps: list[tuple[str, str]]
    text: bytes
    columns: dict[str, tuple[str, Any]] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    @property
    def dropped(self) -> Change | None:
        return next((change for change in self.changes if change.reason is not None), None)

    def before(self, step: int) -> bytes:
        """The text as the step saw it."""
        earlier = [change.after for change in self.changes if change.step < step]
        return earlier[-1] if earlier else self.text

    @property
    def last(self) -> bytes:
        """The text as it is in the end, or was when it was dropped."""
        return self.changes[-1].after if self.changes else self.text

    def value(self, name: str) -> Any:
        return self.columns[name][1] if name in self.columns else None


def read_lives(trace: Trace, part: Part, rows: Sequence[int], fingerprints: bool = False) -> dict[int, Life]:
    """The documents `rows` of a part, by row; with `fingerprints` these are among the columns."""
    lives = {}
    for values in _rows(part.path, sorted(set(rows))):
        lives[values["row"]] = Life(
            part, values["row"], values["id"], values["url"], values["language"], values["steps"], values["text"]
        )
    last = next(one for one in trace.parts if one.name == part.name)
    _add_columns(lives, [entry for entry in last.columns if fingerprints or entry[0] not in FINGERPRINTS])
    for number, step in enumerate(trace.steps):
        if (path := list_of(step, part)) is not None:
            _add_changes(lives, number, path)
    return lives


def _rows(path: Path, rows: Sequence[int]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, start = [], 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            inside = [row - start for row in rows if start <= row < start + count]
            if inside:
                names = ["row", "id", "url", "language", "steps", "text"]
                table = file.read_row_group(group, names, use_threads=False).take(pa.array(inside))
                texts = table["text"].cast(pa.large_binary()).to_pylist()
                others = table.drop_columns(["text"]).to_pylist()
                found += [one | {"text": text} for one, text in zip(others, texts, strict=True)]
            start += count
    return found


def _add_columns(lives: dict[int, Life], columns: Sequence[tuple[str, Path]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(lives)
    for name, path in columns:
        column = pq.read_table(path, columns=[name])[name].take(pa.array(rows))
        kind = column.type
        for row, value in zip(rows, column.to_pylist(), strict=True):
            if value is not None:
                if name in REPLACED:
                    lives[row].replaced[name] = value
                else:
                    lives[row].columns[name] = (path.parent.parent.name, _json(value, kind == pa.float32()))


def _json(value: Any, single: bool) -> Any:
    """A column's value as JSON has it: a float32 without the digits that float64 adds, bytes as hexadecimal."""
    if single:
        return float(np.format_float_positional(np.float32(value)))
    return value.hex() if isinstance(value, bytes) else value


def _add_changes(lives: dict[int, Life], step: int, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    table = table.filter(pa.array(np.isin(table["row"].to_numpy(), sorted(lives))))
    for entry in table.to_pylist():
        life = lives[entry["row"]]
        edits = [(edit["start"], edit["stop"], edit["text"]) for edit in entry["edits"] or ()]
        before = life.last
        life.changes.append(Change(step, entry["reason"], entry["note"], edits, before, edited(before, edits)))


def edited(text: bytes, edits: Sequence[Span]) -> bytes:
    pieces, last = [], 0
    for start, stop, new in edits:
        pieces += [text[last:start], new.encode()]
        last = stop
    return b"".join([*pieces, text[last:]])
