"""The kinds of raw files, each with the function that reads one file of it.

A reader is `read(file, config, ingest)` and yields the file's documents, one by one or as tables (columns.py), and the
reasons why records are not one, with memory that does not grow with the file. It raises `DataError` where a policy of
`ingest` says so, or where a file is damaged; a failure to read (`OSError`) is named by who calls it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Union

from data_prep.config import ExtractConfig, IngestConfig, SourceConfig
from data_prep.ingest import code, files, jsonl, pages, parquet, prepared, synthetic, tree, warc, wiki
from data_prep.ingest.files import RawFile
from data_prep.ingest.records import Document, Rejected

if TYPE_CHECKING:
    import pyarrow as pa

Read = Union[Document, Rejected, "pa.Table"]
Reader = Callable[[RawFile, SourceConfig, IngestConfig], Iterator[Read]]
READERS: Mapping[str, Reader] = {
    "tree": tree.read,
    "jsonl": jsonl.read,
    "parquet": parquet.read,
    "wet": warc.read_texts,
    "wiki": wiki.read,
    "code": code.read,
    "shards": prepared.read,
    "synthetic": synthetic.read,
}
# Kinds that give pages, of which the extraction makes documents: `read(file, config, ingest, extract)`.
PageReader = Callable[[RawFile, SourceConfig, IngestConfig, ExtractConfig], Iterator[pages.Page | Rejected]]
PAGE_READERS: Mapping[str, PageReader] = {
    "warc": warc.read_pages,
    "html": pages.read_folder,
}

# Where a kind finds its files in another way than by patterns alone.
FINDERS: Mapping[str, Callable[[str, SourceConfig], list[RawFile]]] = {
    "code": code.find_files,
    "shards": prepared.find_files,
}


def find_files(source: str, config: SourceConfig) -> list[RawFile]:
    """The files of a source, sorted by name; raises `DataError` naming a path that is missing or gives no file."""
    return FINDERS.get(config.kind, files.find_files)(source, config)


def read_documents(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Read]:
    """All records of one file."""
    return READERS[config.kind](file, config, ingest)
