"""Raw files -> text shards.

The files of a source are grouped into tasks by a hash of their relative names, into a power of two of groups, so that a
file that is added, changed or removed touches its own group alone. A file as large as a shard is a task by itself.
"""

import fnmatch
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.config import IngestConfig, SourceConfig
from data_prep.documents import ROW_GROUP, text_schema
from data_prep.engine import Task, advance
from data_prep.ingest.readers import Document, Rejected, read_documents
from data_prep.manifest import Folder, Record, make_key, writing
from maxlm.data.shards import document_hash
from maxlm.errors import DataError

VERSION = 1
DEFAULT_INCLUDE = {"tree": ["*"], "jsonl": ["*.jsonl", "*.jsonl.gz", "*.jsonl.zst"], "parquet": ["*.parquet"]}
# Rows are handed to parquet in batches of this much text, so that memory does not depend on the size of documents.
BATCH_BYTES = 2**24


@dataclass(frozen=True)
class RawFile:
    """A file of a source; `name` is its path below the source's path, in UTF-8, and enters the documents' ids."""

    path: Path
    name: str
    size: int
    mtime_ns: int


def find_files(source: str, config: SourceConfig) -> list[RawFile]:
    """The files of a source, sorted by name; raises `DataError` naming a path that is missing or gives no file."""
    include = config.include or DEFAULT_INCLUDE[config.kind]
    files: dict[str, RawFile] = {}
    for pattern in config.paths:
        for path, name in _expand(source, pattern, include, config.exclude):
            name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if name in files and files[name].path != path:
                raise DataError(
                    f"source '{source}': {files[name].path} and {path} have the same relative name; give them a common "
                    "parent as path, or a source each"
                )
            stat = path.stat()
            files[name] = RawFile(path, name, stat.st_size, stat.st_mtime_ns)
    if not files:
        raise DataError(
            f"source '{source}': empty corpus: no file in {', '.join(config.paths)} matches include {include}"
            + (f" without exclude {config.exclude}" if config.exclude else "")
        )
    return [files[name] for name in sorted(files)]


def _expand(source: str, pattern: str, include: Sequence[str], exclude: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Files and their names below a path: a file, a directory, or a glob of either."""
    path = Path(pattern).expanduser()
    if path.is_file():
        yield path, path.name
    elif path.is_dir():
        yield from _walk(path, "", include, exclude)
    elif glob.has_magic(pattern):
        fixed = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
        root = Path(*fixed)
        for match in sorted(map(Path, glob.glob(str(path), recursive=True))):
            name = match.relative_to(root).as_posix()
            if match.is_file() and not _matches(name, exclude):
                yield match, name
            elif match.is_dir() and "**" not in pattern and not _matches(name, exclude):
                yield from _walk(match, f"{name}/", include, exclude)
    else:
        raise DataError(f"source '{source}': {pattern}: no such file or directory; set ingest.sources.{source}.path")


def _walk(directory: Path, prefix: str, include: Sequence[str], exclude: Sequence[str]) -> Iterator[tuple[Path, str]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{directory}: cannot be read ({error.strerror})") from None
    for entry in entries:
        name = prefix + entry.name
        if _matches(name, exclude):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/", include, exclude)
        elif entry.is_file() and _matches(name, include):
            yield Path(entry.path), name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a relative name matches a pattern: by its last part, or as a whole where the pattern has a slash."""
    last = name.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name if "/" in pattern else last, pattern) for pattern in patterns)


def make_tasks(source: str, config: SourceConfig, ingest: IngestConfig) -> list[Task]:
    files = find_files(source, config)
    settings = config.model_dump(include={"kind", "text_field", "id_field", "url_field", "language_field", "language"})
    policy = ingest.model_dump(include={"on_invalid_utf8", "on_bad_record", "shard_bytes"})
    tasks = []
    for group in _group(files, ingest.shard_bytes):
        fingerprint = [[file.name, file.size, file.mtime_ns] for file in group]
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
            yield from read_documents(file.path, file.name, config, ingest)
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
        "steps": [("ingest", "; ".join([document.origin, *document.notes]))],
    }
