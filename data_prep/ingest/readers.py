"""Readers of raw files: each yields documents, or the reason why a record is not one."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import READ_BYTES, RawFile
from maxlm.errors import DataError

INVALID_UTF8, EMPTY, BAD_RECORD = "invalid UTF-8", "empty", "bad record"
REPLACED = "invalid UTF-8 replaced"
PARQUET_BATCH = 1024
# Code points that UTF-8 does not have, but for those that stand for an undecodable byte (U+DC80..U+DCFF).
SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True)
class Document:
    """`text` is valid UTF-8 and not blank; `id` is unique in its source, `origin` says where the text was read."""

    id: str
    text: bytes
    origin: str
    url: str | None = None
    language: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    reason: str


def read_documents(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    """All records of one file. Raises `DataError` by the policies of `ingest`."""
    if config.kind == "tree":
        with file.open() as stream:
            yield _clean(stream.read(), file.name, file.name, {}, file.path, config, ingest)
        return
    for number, record in _jsonl(file) if config.kind == "jsonl" else _parquet(file, config):
        place, origin = f"{file.path}:{number}", f"{file.name}:{number}"
        if problem := _problem(record, config):
            if ingest.on_bad_record == "fail":
                raise DataError(f"{place}: {problem}; correct it, or set ingest.on_bad_record=skip")
            yield Rejected(BAD_RECORD)
            continue
        document_id = _text(record[config.id_field]) if config.id_field else origin
        yield _clean(record[config.text_field or "text"], document_id, origin, record, place, config, ingest)


def _problem(record: Any, config: SourceConfig) -> str | None:
    """Why a record is not a document, if it is not."""
    if isinstance(record, ValueError | RecursionError):
        return f"not JSON ({record})"
    if not isinstance(record, dict):
        return f"expected an object, found a {type(record).__name__}"
    text_field = config.text_field or "text"
    if not isinstance(record.get(text_field), str | bytes):
        return f"no text in '{text_field}'; the record has {', '.join(record) or 'nothing'}"
    if config.id_field and not isinstance(record.get(config.id_field), str | bytes | int):
        return f"no id in '{config.id_field}'; the record has {', '.join(record)}"
    return None


def _clean(
    text: str | bytes,
    document_id: str,
    origin: str,
    record: dict,
    place: Any,
    config: SourceConfig,
    ingest: IngestConfig,
) -> Document | Rejected:
    """Apply the policy on invalid UTF-8 and leave out blank text."""
    notes: tuple[str, ...] = ()
    try:
        data = text.encode() if isinstance(text, str) else text
        decoded = text if isinstance(text, str) else codecs.decode(data, "utf-8")
    except UnicodeError as error:
        if ingest.on_invalid_utf8 == "fail":
            raise DataError(
                f"{place}: not UTF-8 at position {error.start}; correct it, or set ingest.on_invalid_utf8=replace"
            ) from None
        if ingest.on_invalid_utf8 == "skip":
            return Rejected(INVALID_UTF8)
        decoded, notes = _replace(text), (REPLACED,)
        data = decoded.encode()
    if not decoded.strip():
        return Rejected(EMPTY)
    url = record.get(config.url_field) if config.url_field else None
    language = record.get(config.language_field) if config.language_field else config.language
    return Document(document_id, data, origin, _text(url), _text(language), notes)


def _replace(text: str | bytes) -> str:
    """Put U+FFFD in the place of what is not UTF-8; a str has it as lone surrogates, which JSON can escape."""
    if isinstance(text, str):
        text = SURROGATES.sub("\ufffd", text).encode("utf-8", "surrogateescape")
    return text.decode("utf-8", "replace")


def _text(value: Any) -> str | None:
    return None if value is None else _replace(value if isinstance(value, bytes) else str(value))


def _jsonl(file: RawFile) -> Iterator[tuple[int, Any]]:
    """Line numbers from 1 with the value of the line, or the error that it is not JSON; blank lines are left out."""
    with _open_lines(file) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.isspace():
                continue
            try:
                # Bytes that are not UTF-8 pass as lone surrogates, and meet the policy if they are in the text.
                yield number, json.loads(line.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                yield number, error


def _open_lines(file: RawFile) -> BinaryIO:
    compression = {".gz": "gzip", ".zst": "zstd"}.get(file.path.suffix)
    if compression is None:
        return file.open()
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(file.open(), compression), READ_BYTES)


def _parquet(file: RawFile, config: SourceConfig) -> Iterator[tuple[int, dict]]:
    """Row numbers from 0 with the columns that are asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = (config.text_field or "text", config.id_field, config.url_field, config.language_field)
    names = [name for name in asked if name is not None]
    try:
        table = pq.ParquetFile(file.open())
        present = table.schema_arrow.names
        if missing := [name for name in names if name not in present]:
            raise DataError(f"{file.path}: no column '{missing[0]}'; it has {', '.join(present)}")
        number = 0
        for batch in table.iter_batches(PARQUET_BATCH, columns=names):
            for record in pa.RecordBatch.from_arrays(
                [_as_bytes(column) for column in batch.columns], batch.schema.names
            ).to_pylist():
                yield number, record
                number += 1
    except pa.ArrowException as error:
        raise DataError(f"{file.path}: not a parquet file that can be read ({error})") from None


def _as_bytes(column: Any) -> Any:
    """Strings as bytes: a parquet file does not promise that its strings are UTF-8."""
    import pyarrow as pa

    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return column.cast(pa.large_binary()) if is_text else column
