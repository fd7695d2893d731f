"""Kind `jsonl`: one document per line, plain or compressed."""

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import READ_BYTES, RawFile
from data_prep.ingest.records import Document, Rejected, read_record


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    for number, record in _records(file):
        yield read_record(record, number, file.path, file.name, config, ingest)


def _records(file: RawFile) -> Iterator[tuple[int, Any]]:
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
    compression = {"gz": "gzip", "zst": "zstd"}.get(file.name.rpartition(".")[2])
    if compression is None:
        return file.open()
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(file.open(), compression), READ_BYTES)
