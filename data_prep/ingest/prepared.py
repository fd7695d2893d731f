"""Kind `shards`: the documents of directories that preparation wrote, decoded by their tokenizer.

A file of tokens is read document by document, with the rows of its table in batches of 2**14: memory holds those, and
one text. Each text is compared with what preparation wrote down of it, so that what a tokenizer lost is told, and not
passed on: its size always, its hash where no stage did anything to it (a stage may have edited it after it was hashed).
Of a document that a mixture repeated (column `copy`), the first copy is read.
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from data_prep.config import IngestConfig, SourceConfig
from data_prep.config.urls import redact
from data_prep.ingest.files import DEFAULT_INCLUDE, RawFile, matches
from data_prep.ingest.records import BAD_RECORD, Document, Rejected, clean
from data_prep.manifest import make_key
from maxlm.data.shards import Shards, tokens_name
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 2**14
COLUMNS, COPY = ("id", "url", "language", "bytes", "steps"), "copy"


def find_files(source: str, config: SourceConfig) -> list[RawFile]:
    """The token files of the directories; the size of each is that of its documents' text."""
    files: dict[str, RawFile] = {}
    include = config.include or DEFAULT_INCLUDE[config.kind]
    for path in config.paths:
        manifest = Shards(path).manifest
        for number, shard in enumerate(manifest.shards):
            name = f"{PurePosixPath(redact(path)).name}/{tokens_name(number)}"
            if not matches(name, include) or matches(name, config.exclude):
                continue
            if name in files:
                raise DataError(
                    f"source '{source}': two directories are called {name.partition('/')[0]}; a source each"
                )
            digests = {name: file.sha256 for name, file in shard.files.items()}
            version = make_key("prepared", 1, digests, manifest.tokenizer.hash)
            shown = f"{redact(path).rstrip('/')}/{tokens_name(number)}"
            # The path as it was given stays out of messages: a URL may have secrets.
            files[name] = RawFile(shown, name, shard.bytes, version, key=path)
    if not files:
        raise DataError(f"source '{source}': empty corpus: no token file matches include {include}")
    return [files[name] for name in sorted(files)]


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    import pyarrow.parquet as pq

    shards, tokenizer = _open(file.key, file.version)
    number = int(PurePosixPath(file.name).stem.rpartition("-")[2])
    with pq.ParquetFile(shards.local_documents(number)) as table:
        for row, (record, digest) in enumerate(zip(_records(table), _hashes(shards, number), strict=False)):
            if record.get(COPY):
                continue
            text = tokenizer.decode(shards.read(*shards.span(number, row)))
            if problem := _difference(text, record, digest):
                if ingest.on_bad_record == "fail":
                    raise DataError(
                        f"{file.path}: document {record['id']}: its tokens do not give its text back ({problem}), as "
                        "with a tokenizer that is not lossless; prepare its raw text, or set ingest.on_bad_record=skip"
                    )
                yield Rejected(BAD_RECORD)
            else:
                yield _document(file, config, ingest, row, text, record)


def _records(table: "pq.ParquetFile") -> Iterator[dict[str, Any]]:
    columns = [name for name in (*COLUMNS, COPY) if name in table.schema_arrow.names]
    for batch in table.iter_batches(BATCH_ROWS, columns=columns):
        yield from batch.to_pylist()


def _document(
    file: RawFile, config: SourceConfig, ingest: IngestConfig, row: int, text: str, record: dict[str, Any]
) -> Document | Rejected:
    details = tuple(f"{stage}: {note}" for stage, note in record["steps"])
    language = config.language or record["language"]
    origin, place = f"{file.name}:{row}", f"{file.path}:{row}"
    return clean(text, record["id"], origin, place, ingest, record["url"], language, details=details)


def _difference(text: str, record: dict[str, Any], digest: bytes | None) -> str | None:
    """How a text differs from what was written down of it, if it does."""
    data = text.encode()
    if len(data) != record["bytes"]:
        return f"{len(data):,} bytes, the text had {record['bytes']:,}"
    untouched = [stage for stage, _ in record["steps"]] == ["ingest"]
    if digest is not None and untouched and sha256(data).digest()[: len(digest)] != digest:
        return "another hash"
    return None


def _hashes(shards: Shards, number: int) -> "Iterator[bytes | None]":
    """The hashes of a shard's documents as far as there are any, then None."""
    import pyarrow.parquet as pq

    path = shards.local_fingerprints(number)
    if path is not None:
        with pq.ParquetFile(path) as table:
            batch: pa.RecordBatch
            for batch in table.iter_batches(BATCH_ROWS, columns=["hash"]):
                yield from batch["hash"].to_pylist()
    while True:
        yield None


@lru_cache(4)
def _open(directory: str, _version: str) -> tuple[Shards, Tokenizer]:
    shards = Shards(directory)
    return shards, Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)
