"""Kind `parquet`: one document per row.

Column chunks are streamed in blocks, so that memory does not grow with the row groups of a file, which may be GB.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.columns import as_documents, is_text, wanted_columns
from data_prep.ingest.files import RawFile
from data_prep.ingest.records import Document, Rejected, read_record
from maxlm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows are decoded in batches of about this much text, by the average of their row group, and of at most so many rows.
BATCH_BYTES, BATCH_ROWS = 2**23, 8192


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> "Iterator[Document | Rejected | pa.Table]":
    import pyarrow as pa

    try:
        for first, batch in _batches(file, config):
            documents = as_documents(batch, first, file.name, config)
            if documents is not None:
                yield from documents
                continue
            columns = [column.cast(pa.large_binary()) if is_text(column.type) else column for column in batch.columns]
            records = pa.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()
            for number, record in enumerate(records, first):
                yield read_record(record, number, file.path, file.name, config, ingest)
    except pa.ArrowException as error:
        raise DataError(f"{file.path}: not a parquet file that can be read ({error})") from None


def _batches(file: RawFile, config: SourceConfig) -> "Iterator[tuple[int, pa.RecordBatch]]":
    """Rows of the wanted columns, some MB at a time, with the number of the first, counted from 0.

    Of a range of the file, the rows of the row groups whose first page begins there.
    """
    import pyarrow.parquet as pq

    stream, size = file.open_anywhere()
    with stream:
        # Fetching column chunks ahead would hold them whole: over 300 MB more for a row group of 1 GB.
        table = pq.ParquetFile(stream, buffer_size=size, pre_buffer=False)
        names = wanted_columns(config)
        _check_columns(file, table, names, config)
        first = 0
        for group in range(table.num_row_groups):
            metadata = table.metadata.row_group(group)
            if file.stop is not None and not file.start <= _offset(metadata) < file.stop:
                first += metadata.num_rows
                continue
            for batch in table.iter_batches(
                batch_rows(metadata, names), row_groups=[group], columns=names, use_threads=False
            ):
                yield first, batch
                first += batch.num_rows


def _offset(group: "pq.RowGroupMetaData") -> int:
    """Where a row group begins in the file."""
    column = group.column(0)
    return column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset


def batch_rows(group: "pq.RowGroupMetaData", names: list[str]) -> int:
    """How many rows of a row group make about `BATCH_BYTES` of the wanted columns."""
    columns = [group.column(index) for index in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in names)
    return max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, size)))


def _check_columns(file: RawFile, table: "pq.ParquetFile", names: list[str], config: SourceConfig) -> None:
    schema = table.schema_arrow
    if missing := [name for name in names if name not in schema.names]:
        raise DataError(f"{file.path}: no column '{missing[0]}'; it has {', '.join(schema.names)}")
    kind = schema.field(names[0]).type
    if not is_text(getattr(kind, "value_type", kind) if "dictionary" in str(kind) else kind):
        raise DataError(f"{file.path}: the column '{names[0]}' is of type {kind}; expected strings: set text_field")
