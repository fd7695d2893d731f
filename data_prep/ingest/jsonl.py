"""Kind `jsonl`: one document per line, plain or compressed.

Lines are read in blocks of a few MB, of which Arrow's JSON parser makes columns (3 to 10 times as fast as Python's,
one line at a time); a block in which it finds anything unusual goes through Python's parser line by line.
"""

import codecs
import io
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.columns import as_documents, wanted_columns
from data_prep.ingest.files import COMPRESSIONS, READ_BYTES, RawFile, open_decompressed
from data_prep.ingest.records import LONGEST_DOCUMENT, Document, Rejected, read_record
from maxlm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 2**23
# A whole file without a line end, such as one JSON array, would be one line. What is longer is not gathered: this
# stands for it, and is no JSON.
LONGEST_LINE = LONGEST_DOCUMENT
TOO_LONG = b"\0too long"
NEWLINE, OPEN, CLOSE = b"\n{}"


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> "Iterator[Document | Rejected | pa.Table]":
    names = wanted_columns(config)
    with open_decompressed(file) as stream:
        for first, block in _blocks(file, stream):
            table = _parse(block, names, config.id_field)
            documents = None if table is None else as_documents(table, first, file.name, config)
            if documents is not None:
                yield from documents
                continue
            for number, line in enumerate(io.BytesIO(block), first):
                if not line.isspace():
                    record = _load(line, names, config.id_field)
                    yield read_record(record, number, file.path, file.name, config, ingest)


def is_plain(file: RawFile) -> bool:
    """Whether its lines can be read from anywhere in it."""
    return file.suffix not in COMPRESSIONS


def _blocks(file: RawFile, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Whole lines, some MB at a time, with the number of the first: those that begin in the file's range."""
    first, rest, position = file.first, b"", _first_line(file, stream)
    stop = sys.maxsize if file.stop is None else file.stop
    while position < stop and (block := stream.read(min(BLOCK_BYTES, stop - position))):
        begins, position = position == 0, position + len(block)
        if position == stop and not block.endswith(b"\n"):
            block += stream.readline(LONGEST_LINE)
        if begins:
            _check_encoding(file, block)
            block = block.removeprefix(codecs.BOM_UTF8)
        if rest == TOO_LONG:
            block = block[block.find(b"\n") :] if b"\n" in block else b""
        end = block.rfind(b"\n") + 1
        if not end:
            rest = rest + block if len(rest) + len(block) <= LONGEST_LINE else TOO_LONG
            continue
        yield first, rest + block[:end]
        first, rest = first + block.count(b"\n"), block[end:]
    if rest:
        yield first, rest


def _first_line(file: RawFile, stream: BinaryIO) -> int:
    """Go to where the first line begins in the file's range, or behind it; returns the position."""
    if file.start == 0:
        return 0
    stream.seek(file.start - 1)
    while (line := stream.readline(READ_BYTES)) and not line.endswith(b"\n"):
        pass
    return stream.tell()


def _check_encoding(file: RawFile, begin: bytes) -> None:
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (b"\0" in begin[:4] and begin[:4].strip(b"\0")):
        raise DataError(f"{file.path}: looks like UTF-16 or UTF-32; expected UTF-8, convert it (iconv -t UTF-8)")


def _parse(block: bytes, names: list[str], id_field: str | None) -> "pa.Table | None":
    """The wanted keys of every line as columns; None where a line is not one object or a value is no string.

    Arrow takes several objects on a line, and objects over several lines. Where as many objects come as there are
    lines, and every line begins and ends with a brace, each line is one: a line that ends with } inside of an object
    goes on with a comma or a bracket.
    """
    import pyarrow as pa
    import pyarrow.json as pj

    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == NEWLINE)
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    if data[0] != OPEN or not ((data[ends - 1] == CLOSE).all() and (data[ends[:-1] + 1] == OPEN).all()):
        return None
    for id_type in dict.fromkeys((pa.large_string(), pa.int64() if id_field else pa.large_string())):
        types = [(name, id_type if name == id_field else pa.large_string()) for name in names]
        try:
            table = pj.read_json(
                pa.BufferReader(block),
                pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
                pj.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore"),
            )
        except pa.ArrowInvalid:
            continue
        return table if table.num_rows == len(ends) else None
    return None


def _load(line: bytes, names: list[str], id_field: str | None) -> Any:
    """The value of a line, or the error that it is not JSON."""
    if line.startswith(TOO_LONG):
        return ValueError(f"a line of more than {LONGEST_LINE:,} bytes")
    try:
        # Bytes that are not UTF-8 pass as lone surrogates, and meet the policy if they are in the text.
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        # Arrow takes keys that nobody asked for in whatever depth and number of digits. What a line becomes must not
        # depend on its neighbours.
        table = _parse(line, names, id_field)
        return error if table is None else table.to_pylist()[0]
