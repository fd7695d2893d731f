"""Kind `parquet`: one document per row."""

from collections.abc import Iterator
from typing import Any

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import RawFile
from data_prep.ingest.records import Document, Rejected, read_record
from maxlm.errors import DataError

BATCH = 1024


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    for number, record in _records(file, config):
        yield read_record(record, number, file.path, file.name, config, ingest)


def _records(file: RawFile, config: SourceConfig) -> Iterator[tuple[int, dict]]:
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
        for batch in table.iter_batches(BATCH, columns=names):
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
