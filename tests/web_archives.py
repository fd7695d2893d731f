"""Web archives made record by record, and what ingest makes of a source, for the tests of web archives."""

import gzip
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.config import ExtractConfig, IngestConfig, SourceConfig
from data_prep.engine.workers import make_here
from data_prep.ingest.shards import make_tasks
from data_prep.manifest import Folder

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"


def html(text: str) -> bytes:
    return f"<!DOCTYPE html><html><body><main><p>{text}</p></main></body></html>".encode()


def warc_record(
    body: bytes,
    number: int = 0,
    kind: str = "response",
    http: bytes | None = OK,
    url: str | None = None,
    length: int | None = None,
    **headers: str,
) -> bytes:
    """An uncompressed record; `length` is the Content-Length that it states, where it lies."""
    block = body if http is None else http + b"\r\n" + body
    fields = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{number:08d}>",
        "WARC-Date": "2024-05-01T00:00:00Z",
        "WARC-Target-URI": url or f"http://www.example.org/{number}",
        "Content-Type": "text/plain" if http is None else "application/http; msgtype=response",
        **{name.replace("_", "-"): value for name, value in headers.items()},
        "Content-Length": str(len(block) if length is None else length),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + block + b"\r\n\r\n"


def members(records: list[bytes]) -> list[bytes]:
    return [gzip.compress(record, 6, mtime=0) for record in records]


def ingest(
    folder: Path, path: Path, policy: dict | None = None, extract: dict | None = None, **source: object
) -> tuple[list[dict], dict]:
    """The rows of all shards by id, and the counts of the tasks: dropped of ingest, and of extract."""
    config = SourceConfig(path=str(path), **source)
    settings = IngestConfig(sources={"web": config}, **(policy or {}))
    tasks = make_tasks("web", config, settings, extract=ExtractConfig(**(extract or {})))
    rows, dropped = [], {}
    for record in make_here(Folder(folder), tasks, lambda done: None).values():
        for name in record.files:
            rows += pq.read_table(Folder(folder).file(record.key, name)).to_pylist()
        failed = {reason: pages for reason, (pages, _) in record.values.get("extract", {}).get("dropped", {}).items()}
        for reason, count in [*record.values["dropped"].items(), *failed.items()]:
            dropped[reason] = dropped.get(reason, 0) + count
    return sorted(rows, key=lambda row: row["id"]), dropped
