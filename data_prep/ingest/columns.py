"""Documents as columns: readers of formats with records hand on whole tables where every record is a document.

Taking a record into Python and out again costs about 10 microseconds, which is 20 MB/s for texts of 200 bytes; columns
are checked and passed on in Arrow, at 80. A table with anything unusual in it (a record without text, invalid UTF-8) is
left to the way record by record, which gives the same documents and says what is wrong.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from data_prep.config import SourceConfig
from data_prep.ingest.records import EMPTY, Document, Rejected

if TYPE_CHECKING:
    import pyarrow as pa


@cache
def documents_schema() -> "pa.Schema":
    """Columns of a table of documents: as the fields of `Document`, `step` being its entry in the document's steps."""
    import pyarrow as pa

    text, short = pa.large_string(), pa.string()
    return pa.schema([("id", text), ("text", text), ("url", short), ("language", short), ("step", short)])


def wanted_columns(config: SourceConfig) -> list[str]:
    """The keys or columns that are read, that of the text first."""
    asked = (config.text_field or "text", config.id_field, config.url_field, config.language_field)
    return [*dict.fromkeys(name for name in asked if name is not None)]


def as_documents(
    records: "pa.RecordBatch | pa.Table", first: int, name: str, config: SourceConfig
) -> "list[pa.Table | Rejected] | None":
    """The documents of records with consecutive numbers from `first` in the file `name`; blank ones are left out.

    None where it takes Python to tell what a record is.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        text = _strings(records[config.text_field or "text"], pa.large_string())
        numbers = pa.array(np.arange(first, first + records.num_rows)).cast(pa.string())
        step = pc.binary_join_element_wise(pa.scalar(name), numbers, ":")
        ids = _strings(records[config.id_field], pa.large_string()) if config.id_field else step
        url, language = (
            pa.nulls(records.num_rows, pa.string()) if field is None else _strings(records[field], pa.string())
            for field in (config.url_field, config.language_field)
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError):
        return None
    if text.null_count or ids.null_count:
        return None
    if config.language is not None:
        language = pa.repeat(pa.scalar(config.language), records.num_rows)
    columns = [ids.cast(pa.large_string()), text, url, language, step]
    table = pa.Table.from_arrays(columns, schema=documents_schema())
    blank = _blank(text)
    if not blank.any():
        return [table]
    return [table.filter(pa.array(~blank)), Rejected(EMPTY, int(np.count_nonzero(blank)))]


def _strings(column: "pa.Array | pa.ChunkedArray", kind: "pa.DataType") -> "pa.Array":
    """A column as valid UTF-8, of strings or whole numbers; raises where it is something else.

    A parquet file does not promise that its strings are UTF-8: they are checked on their way through bytes.
    """
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_integer(array.type) or pa.types.is_null(array.type):
        return array.cast(kind)
    if not is_text(array.type):
        raise TypeError
    return array.cast(pa.large_binary()).cast(kind)


def is_text(kind: "pa.DataType") -> bool:
    """Whether a column's values are strings, or bytes that may be."""
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def text_bounds(text: "pa.Array") -> tuple[memoryview, list[int]]:
    """The bytes of a large_string array without nulls, and where each text ends there and the next begins."""
    _, offsets, data = text.buffers()
    bounds = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return memoryview(data if data is not None else b""), bounds.tolist()


def _blank(text: "pa.Array") -> np.ndarray:
    """Which texts have nothing but white space, bool [documents]; only a text that begins with some can be one."""
    import pyarrow.compute as pc

    blank = np.zeros(len(text), bool)
    begin = pc.utf8_slice_codeunits(text, 0, 1).to_pylist()
    for index in [i for i, character in enumerate(begin) if not character or character.isspace()]:
        blank[index] = not text[index].as_py().strip()
    return blank


def table_of(documents: Sequence[Document]) -> "pa.Table":
    import pyarrow as pa

    columns = {
        "id": [document.id for document in documents],
        # As bytes that are known to be UTF-8: from str they would be encoded once more.
        "text": pa.array([document.text for document in documents], pa.large_binary()).cast(pa.large_string()),
        "url": [document.url for document in documents],
        "language": [document.language for document in documents],
        "step": ["; ".join((document.origin, *document.details, *document.notes)) for document in documents],
    }
    return pa.table(columns, documents_schema())


def regroup(tables: "Iterable[pa.Table]", rows: int, size: int) -> "Iterator[pa.Table]":
    """The same documents in tables of at most `rows`, each ended by the document that makes its text `size` bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    waiting: list[pa.Table] = []
    waiting_rows = waiting_bytes = 0
    for table in tables:
        ends = np.cumsum(pc.binary_length(table["text"]).to_numpy())
        start = 0
        while start < table.num_rows:
            done = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, done + size - waiting_bytes)) + 1
            stop = min(stop, start + rows - waiting_rows, table.num_rows)
            waiting.append(table.slice(start, stop - start))
            waiting_rows, waiting_bytes = waiting_rows + stop - start, waiting_bytes + int(ends[stop - 1] - done)
            start = stop
            if waiting_rows == rows or waiting_bytes >= size:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, waiting_rows, waiting_bytes = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
