"""Scores from elsewhere, joined by the documents' ids.

The tables become one index sorted by the hash of the ids, 16 bytes a row, which is mapped into memory and not read into
it. Ids are compared by 64-bit hashes: of a billion documents and a billion rows without any id in common, 0.05 of one
document would find another's score.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import JoinConfig, SourceConfig
from data_prep.documents import Part, iterate, write_columns
from data_prep.ingest.files import DEFAULT_INCLUDE, RawFile, find_files, open_decompressed
from data_prep.manifest import Folder, Record, writing
from maxlm.data.shards import document_hash
from maxlm.errors import DataError

VERSION = 1
STAGE, FILE = "quality-join", "columns.parquet"
IDS, SCORES = "ids.bin", "scores.bin"
BATCH_ROWS = 2**16
# Rows that are sorted in memory at once, 16 bytes each.
RANGE_ROWS = 2**22
ENTRY = np.dtype([("id", "<u8"), ("score", "<f8")])


@dataclass(frozen=True)
class Index:
    """The directory of an index; `rows` are its entries, `kind` the type of their scores."""

    directory: Path
    key: str
    kind: str


def find(name: str, config: JoinConfig) -> list[RawFile]:
    """The files of a join; raises `DataError` for a path that is missing."""
    patterns = [*DEFAULT_INCLUDE["parquet"], *DEFAULT_INCLUDE["jsonl"]]
    try:
        return find_files(name, SourceConfig(kind="jsonl", path=config.path, include=patterns))
    except DataError as error:
        reason = str(error).removeprefix(f"source '{name}': ").partition("; set ingest")[0]
        raise DataError(f"quality.join.{name}: {reason}; set its path") from None


def index(folder: Folder, key: str, files: Sequence[RawFile], config: JoinConfig) -> Record:
    """Sort the scores of tables by the hash of their ids; of an id that comes again the first score is taken.

    `values` has the `kind` of the scores (float32 where all files have that), the rows, how many came `again`, and an
    `example` of an id. Memory: 64 MB, or the rows of 1 in 4,096 ranges of the hash where that is more.
    """
    prefix = "" if config.source is None else f"{config.source}/"
    counts = {"rows": 0, "again": 0, "example": None, "kind": "float32"}
    path = folder.file(key, "rows")
    with writing(path) as temporary, open(temporary, "wb") as file:
        for raw in files:
            for ids, scores, kind in _read(raw, config):
                counts["rows"] += len(ids)
                counts["example"] = counts["example"] or prefix + ids[0]
                counts["kind"] = "float32" if kind == counts["kind"] == "float32" else "float64"
                entries = np.empty(len(ids), ENTRY)
                entries["id"] = [document_hash(prefix + one) for one in ids]
                entries["score"] = scores
                file.write(entries.tobytes())
    with writing(folder.file(key, IDS)) as ids, writing(folder.file(key, SCORES)) as scores:
        counts["again"] = _sort(path, counts["rows"], ids, scores)
    path.unlink()
    return folder.commit(key, [IDS, SCORES], counts)


def _sort(path: Path, rows: int, ids: Path, scores: Path) -> int:
    """Write the entries in `path` in order, range by range of the ids; returns how many ids came again."""
    entries = _mapped(path, ENTRY)
    count = min(4096, -(-rows // RANGE_ROWS)) or 1
    again = 0
    with open(ids, "wb") as id_file, open(scores, "wb") as score_file:
        for number in range(count):
            low, high = (np.uint64(min(2**64 * edge // count, 2**64 - 1)) for edge in (number, number + 1))
            inside = [np.zeros(0, ENTRY)]
            for start in range(0, rows, RANGE_ROWS):
                piece = entries[start : start + RANGE_ROWS]
                inside.append(piece[(piece["id"] >= low) & ((piece["id"] < high) | (number == count - 1))])
            whole = np.concatenate(inside)
            whole = whole[np.argsort(whole["id"], kind="stable")]
            first = np.append(True, whole["id"][1:] != whole["id"][:-1])[: len(whole)]
            again += int((~first).sum())
            whole["id"][first].tofile(id_file)
            whole["score"][first].tofile(score_file)
    return again


def _read(file: RawFile, config: JoinConfig) -> Iterator[tuple[list[str], np.ndarray, str]]:
    """Ids, scores (float64, NaN for none) and the scores' type, some thousand rows at a time."""
    try:
        yield from (_read_parquet if file.suffix == ".parquet" else _read_lines)(file, config)
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror or error})") from None


def _read_parquet(file: RawFile, config: JoinConfig) -> Iterator[tuple[list[str], np.ndarray, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream, _ = file.open_anywhere()
    with stream:
        try:
            table = pq.ParquetFile(stream)
            schema = table.schema_arrow
            for name in (config.id, config.score):
                if name not in schema.names:
                    raise DataError(f"{file.path}: no column '{name}'; it has {', '.join(schema.names)}")
            kind = schema.field(config.score).type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise DataError(f"{file.path}: the column '{config.score}' is of type {kind}, expected a number")
            narrow = kind in (pa.float16(), pa.float32())
            for batch in table.iter_batches(BATCH_ROWS, columns=[config.id, config.score], use_threads=False):
                ids, scores = batch[config.id], batch[config.score].cast(pa.float64())
                if ids.null_count:
                    raise DataError(f"{file.path}: the column '{config.id}' has rows without an id")
                if len(ids):
                    names = ids.cast(pa.large_string()).to_pylist()
                    yield names, scores.to_numpy(zero_copy_only=False), "float32" if narrow else "float64"
        except pa.ArrowException as error:
            raise DataError(f"{file.path}: not a parquet file that can be read ({error})") from None


def _read_lines(file: RawFile, config: JoinConfig) -> Iterator[tuple[list[str], np.ndarray, str]]:
    ids, scores = [], []
    with open_decompressed(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.isspace():
                continue
            name, score = _entry(line, config, f"{file.path}:{number}")
            ids.append(name)
            scores.append(score)
            if len(ids) == BATCH_ROWS:
                yield ids, np.array(scores), "float64"
                ids, scores = [], []
    if ids:
        yield ids, np.array(scores), "float64"


def _entry(line: bytes, config: JoinConfig, place: str) -> tuple[str, float]:
    try:
        record: Any = json.loads(line)
        name, score = record[config.id], record.get(config.score)
    except (ValueError, RecursionError):
        raise DataError(f"{place}: not JSON; expected an object with '{config.id}' and '{config.score}'") from None
    except (KeyError, TypeError):
        raise DataError(f"{place}: expected an object with the key '{config.id}'") from None
    if not isinstance(name, str | int) or isinstance(score, bool) or not isinstance(score, int | float | None):
        raise DataError(f"{place}: expected an id and a number, found {name!r} and {score!r}")
    return str(name), math.nan if score is None else float(score)


def attach(folder: Folder, key: str, part: Part, name: str, known: Index) -> Record:
    """Write the scores of a part's documents as the column `name`; `values` has how many have one, and an id."""
    import pyarrow as pa

    ids, scores = _mapped(known.directory / IDS, "<u8"), _mapped(known.directory / SCORES, "<f8")
    rows, found, example = [np.zeros(0, np.int64)], [np.zeros(0)], None
    for table in iterate(part, ("row", "id", "id_hash")):
        rows.append(table["row"].to_numpy().astype(np.int64))
        hashes = table["id_hash"].to_numpy()
        places = np.searchsorted(ids, hashes)
        same = places < len(ids)
        same[same] = ids[places[same]] == hashes[same]
        values = np.full(len(hashes), np.nan)
        values[same] = scores[places[same]]
        found.append(values)
        example = example or table["id"][0].as_py()
    whole = np.concatenate(found)
    column = pa.array(whole.astype(known.kind), mask=np.isnan(whole))
    with writing(folder.file(key, FILE)) as temporary:
        write_columns(temporary, part, np.concatenate(rows), {name: column})
    return folder.commit(key, [FILE], {"found": len(whole) - column.null_count, "example": example})


def _mapped(path: Path, kind: np.dtype | str) -> np.ndarray:
    """A file of numbers, which is not read before they are; an empty file cannot be mapped."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)
