"""Kind `tree`: one document per file, which is in memory at once, so that a very large one is left out."""

from collections.abc import Iterator

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import RawFile
from data_prep.ingest.records import LONGEST_DOCUMENT, Document, Rejected, clean

TOO_LARGE = f"over {LONGEST_DOCUMENT:,} bytes"


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    if file.size > LONGEST_DOCUMENT:
        yield Rejected(TOO_LARGE)
        return
    yield clean(file.read(), file.name, file.name, file.path, ingest, language=config.language)
