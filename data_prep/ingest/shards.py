"""Raw files -> text shards.

The files of a source are grouped into tasks by a hash of their relative names, into a power of two of groups, so that a
file that is added, changed or removed touches its own group alone. A file as large as a shard is a task by itself, or
several (split.py). A task holds a few batches of 16 MB of text, whatever it reads.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.config import ExtractConfig, IngestConfig, SourceConfig
from data_prep.documents import ROW_GROUP, text_schema
from data_prep.engine import Task, advance
from data_prep.ingest import extract as extraction
from data_prep.ingest.columns import regroup, table_of, text_bounds
from data_prep.ingest.files import RawFile
from data_prep.ingest.pages import Page
from data_prep.ingest.readers import PAGE_READERS, Read, find_files, read_documents
from data_prep.ingest.records import Document, Rejected
from data_prep.ingest.select import load_rules, rules_key
from data_prep.manifest import Folder, Record, make_key, writing
from maxlm.data.shards import document_hash
from maxlm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
# Rows are handed to parquet in batches of this much text, so that memory does not depend on the size of documents.
BATCH_BYTES = 2**24
# What repeats. Texts, ids and addresses do not: looking for it took a fifth of the time to write short texts.
DICTIONARIES = ["source", "language", "steps.key_value.key"]


def make_tasks(
    source: str,
    config: SourceConfig,
    ingest: IngestConfig,
    files: Sequence[RawFile] | None = None,
    extract: ExtractConfig | None = None,
) -> list[Task]:
    """The tasks that read a source; `files` are its files, or ranges of them, and are looked for by default."""
    files = find_files(source, config) if files is None else files
    extract = extract or ExtractConfig()
    settings = config.reading
    if config.select is not None:
        load_rules(config.select)
        settings["select"] = rules_key(config.select)
    if config.kind in PAGE_READERS:
        settings["extract"] = extraction.settings(extract)
    policy = ingest.model_dump(include={"on_invalid_utf8", "on_bad_record", "shard_bytes"})
    tasks = []
    for group in _group(files, ingest.shard_bytes):
        fingerprint = [file.fingerprint for file in group]
        key = make_key("ingest", VERSION, source, settings, policy, fingerprint)
        arguments = (source, group, config, ingest, extract)
        tasks.append(Task(key, write_shards, arguments, sum(file.work for file in group)))
    return tasks


def _group(files: Sequence[RawFile], shard_bytes: int) -> list[list[RawFile]]:
    groups: dict[Any, list[RawFile]] = {}
    small = [file for file in files if file.size < shard_bytes]
    buckets = 1
    while buckets * shard_bytes < sum(file.size for file in small):
        buckets *= 2
    for file in files:
        bucket = document_hash(file.name) % buckets if file.size < shard_bytes else (file.name, file.start)
        groups.setdefault(bucket, []).append(file)
    return list(groups.values())


def write_shards(
    folder: Folder,
    key: str,
    source: str,
    files: Sequence[RawFile],
    config: SourceConfig,
    ingest: IngestConfig,
    extract: ExtractConfig,
) -> Record:
    """Read files into text shards of at most about `shard_bytes` of text.

    `values` has documents, bytes, the counts of what was `dropped` and `noted` by reason, and the `shards`; where pages
    are read also `extract`, what `extracted` counts.
    """
    counts = {"documents": 0, "bytes": 0, "dropped": {}, "noted": {}, "shards": []}
    documents = _all_documents(source, files, config, ingest, extract)
    if config.kind in PAGE_READERS:
        counts["extract"] = {"pages": 0, "bytes": 0, "dropped": {}}
        documents = extraction.extracted(documents, extraction.child_of_worker(extract), counts["extract"])
    groups = regroup(_tables(documents, counts), ROW_GROUP, min(BATCH_BYTES, ingest.shard_bytes))
    names = []
    while (first := next(groups, None)) is not None:
        name = f"{len(names):05d}.parquet"
        with writing(folder.file(key, name)) as temporary:
            counts["shards"].append(_write_shard(temporary, source, first, groups, ingest.shard_bytes))
        names.append(name)
    counts["bytes"] = sum(shard["bytes"] for shard in counts["shards"])
    return folder.commit(key, names, counts)


def _all_documents(
    source: str, files: Sequence[RawFile], config: SourceConfig, ingest: IngestConfig, extract: ExtractConfig
) -> Iterator[Read | Page]:
    for file in files:
        try:
            if config.kind in PAGE_READERS:
                yield from PAGE_READERS[config.kind](file, config, ingest, extract)
            else:
                yield from read_documents(file, config, ingest)
        except OSError as error:
            # Without a number the error is a decompressor's.
            reason = error.strerror or f"{error}; damaged or cut off, fetch it again"
            raise DataError(f"{file.path}: cannot be read ({reason}); source '{source}'") from None
        advance(file.work)


def _tables(read: Iterable[Read], counts: dict) -> "Iterator[pa.Table]":
    """Pass on the documents as tables, count the others."""
    waiting: list[Document] = []
    waiting_bytes = 0
    for one in read:
        if isinstance(one, Rejected):
            counts["documents"] += one.count
            counts["dropped"][one.reason] = counts["dropped"].get(one.reason, 0) + one.count
        elif isinstance(one, Document):
            counts["documents"] += 1
            for note in one.notes:
                counts["noted"][note] = counts["noted"].get(note, 0) + 1
            waiting.append(one)
            waiting_bytes += len(one.text)
            if waiting_bytes >= BATCH_BYTES:
                yield table_of(waiting)
                waiting, waiting_bytes = [], 0
        else:
            counts["documents"] += one.num_rows
            if waiting:
                yield table_of(waiting)
                waiting, waiting_bytes = [], 0
            yield one
    if waiting:
        yield table_of(waiting)


def _write_shard(path: Path, source: str, first: "pa.Table", rest: "Iterator[pa.Table]", shard_bytes: int) -> dict:
    import pyarrow.parquet as pq

    total = documents = 0
    with pq.ParquetWriter(path, text_schema(), compression="zstd", use_dictionary=DICTIONARIES) as writer:
        group: pa.Table | None = first
        while group is not None:
            table = _finished(group, documents, source)
            writer.write_table(table)
            documents, total = documents + table.num_rows, total + int(table["bytes"].to_numpy().sum())
            group = next(rest, None) if total < shard_bytes else None
    return {"documents": documents, "bytes": total}


def _finished(documents: "pa.Table", first: int, source: str) -> "pa.Table":
    """Documents with all columns of a shard, from its row `first` on."""
    import pyarrow as pa

    count = documents.num_rows
    ids = [f"{source}/{one}" for one in documents["id"].to_pylist()]
    text = documents["text"].combine_chunks()
    data, bounds = text_bounds(text)
    digests = [sha256(data[start:stop]).digest()[:16] for start, stop in zip(bounds, bounds[1:], strict=False)]
    step = documents["step"].combine_chunks()
    names = pa.repeat(pa.scalar("ingest"), count)
    columns = {
        "row": pa.array(np.arange(first, first + count, dtype=np.uint32)),
        "id": ids,
        "id_hash": pa.array([document_hash(one) for one in ids], pa.uint64()),
        "hash": pa.array(digests, pa.binary(16)),
        "text": text,
        "source": pa.repeat(pa.scalar(source), count),
        "url": documents["url"],
        "language": documents["language"],
        "bytes": pa.array(np.diff(bounds)),
        "steps": pa.MapArray.from_arrays(np.arange(count + 1, dtype=np.int32), names, step),
    }
    return pa.table(columns, text_schema())
