"""Kind `tree`: one document per file, which is in memory at once."""

from collections.abc import Iterator

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import RawFile
from data_prep.ingest.records import Document, Rejected, clean


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    yield clean(file.read(), file.name, file.name, file.path, ingest, language=config.language)
