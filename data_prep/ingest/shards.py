"""Raw files -> text shards.

The files of a source are grouped into tasks by a hash of their relative names, into a power of two of groups, so that a
file that is added, changed or removed touches its own group alone. A file as large as a shard is a task by itself.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.config import IngestConfig, SourceConfig
from data_prep.documents import ROW_GROUP, text_schema
from data_prep.engine import Task, advance
from data_prep.ingest.files import RawFile, find_files
from data_prep.ingest.readers import read_documents
from data_prep.ingest.records import Document, Rejected
from data_prep.manifest import Folder, Record, make_key, writing
from maxlm.data.shards import document_hash
from maxlm.errors import DataError

VERSION = 1
# Rows are handed to parquet in batches of this much text, so that memory does not depend on the size of documents.
BATCH_BYTES = 2**24


def make_tasks(source: str, config: SourceConfig, ingest: IngestConfig) -> list[Task]:
    files = find_files(source, config)
    settings = config.reading
    policy = ingest.model_dump(include={"on_invalid_utf8", "on_bad_record", "shard_bytes"})
    tasks = []
    for group in _group(files, ingest.shard_bytes):
        fingerprint = [[file.name, file.size, file.version] for file in group]
        key = make_key("ingest", VERSION, source, settings, policy, fingerprint)
        arguments = (source, group, config, ingest)
        tasks.append(Task(key, write_shards, arguments, sum(file.size for file in group)))
    return tasks


def _group(files: Sequence[RawFile], shard_bytes: int) -> list[list[RawFile]]:
    groups: dict[Any, list[RawFile]] = {}
    small = [file for file in files if file.size < shard_bytes]
    buckets = 1
    while buckets * shard_bytes < sum(file.size for file in small):
        buckets *= 2
    for file in files:
        bucket = document_hash(file.name) % buckets if file.size < shard_bytes else file.name
        groups.setdefault(bucket, []).append(file)
    return list(groups.values())


def write_shards(
    folder: Folder, key: str, source: str, files: Sequence[RawFile], config: SourceConfig, ingest: IngestConfig
) -> Record:
    """Read files into text shards of at most about `shard_bytes` of text.

    `values` has documents, bytes, the counts of what was `dropped` and `noted` by reason, and the `shards`.
    """
    counts = {"documents": 0, "bytes": 0, "dropped": {}, "noted": {}, "shards": []}
    rows = _keep(_all_documents(source, files, config, ingest), counts)
    names = []
    while (first := next(rows, None)) is not None:
        name = f"{len(names):05d}.parquet"
        with writing(folder.file(key, name)) as temporary:
            counts["shards"].append(_write_shard(temporary, source, first, rows, ingest.shard_bytes))
        names.append(name)
    return folder.commit(key, names, counts)


def _all_documents(
    source: str, files: Sequence[RawFile], config: SourceConfig, ingest: IngestConfig
) -> Iterator[Document | Rejected]:
    for file in files:
        try:
            yield from read_documents(file, config, ingest)
        except OSError as error:
            raise DataError(f"{file.path}: cannot be read ({error.strerror or error}); source '{source}'") from None
        advance(file.size)


def _keep(documents: Iterable[Document | Rejected], counts: dict) -> Iterator[Document]:
    """Pass on the documents, count the others."""
    for document in documents:
        counts["documents"] += 1
        if isinstance(document, Rejected):
            counts["dropped"][document.reason] = counts["dropped"].get(document.reason, 0) + 1
            continue
        for note in document.notes:
            counts["noted"][note] = counts["noted"].get(note, 0) + 1
        counts["bytes"] += len(document.text)
        yield document


def _write_shard(path: Path, source: str, first: Document, rest: Iterator[Document], shard_bytes: int) -> dict:
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = documents = 0
    batch, batch_bytes = [], 0
    with pq.ParquetWriter(path, text_schema(), compression="zstd") as writer:
        document: Document | None = first
        while document is not None:
            batch.append(_row(documents, source, document))
            documents, total = documents + 1, total + len(document.text)
            batch_bytes += len(document.text)
            document = next(rest, None) if total < shard_bytes else None
            if document is None or batch_bytes >= BATCH_BYTES or len(batch) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, text_schema()))
                batch, batch_bytes = [], 0
    return {"documents": documents, "bytes": total}


def _row(row: int, source: str, document: Document) -> dict:
    document_id = f"{source}/{document.id}"
    return {
        "row": row,
        "id": document_id,
        "id_hash": document_hash(document_id),
        "hash": hashlib.sha256(document.text).digest()[:16],
        "text": document.text.decode(),
        "source": source,
        "url": document.url,
        "language": document.language,
        "bytes": len(document.text),
        "steps": [("ingest", "; ".join([document.origin, *document.details, *document.notes]))],
    }
