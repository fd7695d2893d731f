"""Sources in object stores, hubs and web servers: the documents of the disk, whatever the server does."""

import gzip
import json
import random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_server import ObjectServer

from data_prep.config import IngestConfig, Pipeline, SourceConfig
from data_prep.ingest import remote
from data_prep.ingest.files import find_files
from data_prep.ingest.readers import read_documents
from data_prep.ingest.shards import make_tasks
from data_prep.manifest import Folder
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError

STORES = {"http": "aiohttp", "memory": None, "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
LINES = b"".join(json.dumps({"text": f"document {i} " + "word " * 60}).encode() + b"\n" for i in range(400))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "served" / "pub" / "raw"
    for name, data in {
        "a.jsonl": LINES,
        "deep/b.json.gz": gzip.compress(LINES[: LINES.index(b"\n", 2000)]),
        "deep/c.jsonl": b'{"text": "c"}\n',
        "deep/note.txt": b"no records",
        "left/d.jsonl": b'{"text": "d"}\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(1000)]}), root / "rows.parquet", row_group_size=100)
    return root


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    with ObjectServer(folder.parents[1]) as running:
        yield running


@pytest.fixture
def url_of(server, folder, monkeypatch):
    """The URL of the folder in a store of a kind."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google's control plane

    def url(kind):
        if STORES[kind]:
            pytest.importorskip(STORES[kind])
        options = {
            "s3": {"endpoint_url": server.url, "key": "key", "secret": "secret"},
            "gs": {"endpoint_url": server.url, "token": "anon"},
            "hf": {"endpoint": server.url, "token": False},
        }
        monkeypatch.setitem(fsspec.config.conf, kind, options.get(kind, {}))
        if kind == "memory":
            fsspec.filesystem("memory").store.clear()
            fsspec.filesystem("memory").put(str(folder), "/bucket/pub/raw", recursive=True)
        return {
            "http": f"{server.url}/pub/raw",
            "memory": "memory://bucket/pub/raw",
            "s3": "s3://bucket/pub/raw",
            "gs": "gs://bucket/pub/raw/",
            "hf": "hf://datasets/org/set/pub/raw",
        }[kind]

    return url


def texts(path, kind="jsonl", **options):
    """What the files of a source say: {name: texts}."""
    config = SourceConfig(kind=kind, path=path, **options)
    ingest = IngestConfig(sources={"web": config})
    found = {}
    for file in find_files("web", config):
        read = list(read_documents(file, config, ingest))
        found[file.name] = [text for table in read for text in table["text"].to_pylist()]
    return found


@pytest.mark.parametrize("kind", sorted(STORES.keys() - {"http"}))
def test_directories_and_globs_of_stores_are_those_of_the_disk(kind, url_of, folder):
    url = url_of(kind).rstrip("/")
    expected = texts(str(folder), exclude=["left"])
    assert set(expected) == {"a.jsonl", "deep/b.json.gz", "deep/c.jsonl"} and len(expected["a.jsonl"]) == 400
    assert texts(url, exclude=["left"]) == expected
    assert texts(url, "parquet") == texts(str(folder), "parquet")
    assert texts(f"{url}/a.jsonl") == {"a.jsonl": expected["a.jsonl"]}
    # The server on loopback has no directories in its S3 dialect.
    for pattern in ("*.jsonl", "**/*.jsonl", "*/c.jsonl", *(["d*"] if kind != "s3" else [])):
        assert texts(f"{url}/{pattern}") == texts(f"{folder}/{pattern}"), pattern


def test_single_files_of_a_web_server(server, folder):
    paths = [
        f"{server.url}/pub/raw/a.jsonl",
        f"{server.url}/pub/raw/deep/b.json.gz?signature=secret",
        folder.as_uri() + "/left",
    ]
    assert set(texts(paths)) == {"a.jsonl", "b.json.gz", "d.jsonl"}
    assert texts(f"{server.url}/pub/raw/rows.parquet", "parquet")["rows.parquet"][999] == "row 999"
    with pytest.raises(ConfigError, match="lists no files"):
        texts(f"{server.url}/pub/raw/*.jsonl")


def test_reads_are_large_and_the_next_is_on_its_way(server, folder, monkeypatch):
    monkeypatch.setattr("data_prep.ingest.files.BLOCK_BYTES", 2**14)
    monkeypatch.setattr("data_prep.ingest.jsonl.BLOCK_BYTES", 2**13)
    assert len(texts(f"{server.url}/pub/raw/a.jsonl")["a.jsonl"]) == 400
    spans = [request.range for request in server.asked("a.jsonl") if request.range]
    size = len(LINES)
    assert spans == [(start, min(start + 2**14, size) - 1) for start in range(0, size, 2**14)] and len(spans) > 5
    # With the jsonl reader held up, the block behind the one that it has is asked for all the same.
    server.requests.clear()
    (file,) = find_files("web", SourceConfig(kind="jsonl", path=f"{server.url}/pub/raw/a.jsonl"))
    with file.open() as stream:
        stream.read(2**14 + 1)
        stream.raw._ahead[1].result()
        assert [request.range[0] for request in server.asked("a.jsonl") if request.range] == [0, 2**14, 2**15]


def test_columns_of_a_large_row_group_come_in_blocks_and_once(server, folder, monkeypatch):
    monkeypatch.setattr("data_prep.ingest.files.BLOCK_BYTES", 2**14)
    generator = random.Random(0)
    columns = {name: [generator.randbytes(300).hex() for _ in range(1000)] for name in ("text", "id", "url")}
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 2**12, "write_batch_size": 5}
    pq.write_table(pa.table(columns), folder / "one.parquet", **options)
    found = texts(f"{server.url}/pub/raw/one.parquet", "parquet", id_field="id", url_field="url")
    assert found["one.parquet"] == columns["text"]
    sizes = [last - first + 1 for first, last in (request.range for request in server.asked("one.parquet"))]
    assert max(sizes) <= 2**16 and sum(sizes) < 1.2 * (folder / "one.parquet").stat().st_size and len(sizes) > 100


@pytest.mark.parametrize("kind", [429, 500, 503, 408, "reset", "short", "fewer", "shifted"])
def test_what_may_pass_is_tried_again(kind, server, folder):
    expected = texts(str(folder / "a.jsonl"))
    server.fail("a.jsonl", kind, times=2)
    assert texts(f"{server.url}/pub/raw/a.jsonl") == expected
    assert len(server.asked("a.jsonl")) >= 3


@pytest.mark.parametrize("kind", ["http", "s3", "gs", "hf"])
@pytest.mark.parametrize(
    "fault, message", [(404, "no such file"), (403, "access was refused.*check the credentials"), (503, "6 attempts")]
)
def test_what_does_not_pass_is_one_line_without_secrets(kind, fault, message, url_of, server, monkeypatch):
    if kind == "hf" and fault == 503:
        pytest.skip("the client of the Hugging Face Hub waits for minutes by itself")
    url = f"{url_of(kind).rstrip('/')}/a.jsonl"
    if kind == "http":
        url = url.replace("http://", "http://user:pass1word@") + "?token=s3cr3t"
    (file,) = find_files("web", SourceConfig(kind="jsonl", path=url))
    server.fail("a.jsonl", fault, times=1000)
    config = SourceConfig(kind="jsonl", path=url)
    with pytest.raises(DataError, match=message) as error:
        list(read_documents(file, config, IngestConfig(sources={"web": config})))
    assert "raw/a.jsonl" in str(error.value) and "\n" not in str(error.value)
    assert not any(secret in f"{error.value}{file}" for secret in ("s3cr3t", "pass1word"))


def test_a_reason_has_no_secrets_wherever_the_client_puts_them():
    place = remote.Place("https://me:pass1word@host/a?sig=a%2Fb%2Fc&expires=12345")
    error = OSError("no: https://me:pass1word@host/a?sig=a%2Fb%2Fc, signature a/b/c of\nme with pass1word until 12345")
    assert place._reason(error) == "OSError: no: https://host/a signature *** of me with *** until ***"


def test_missing_files_and_clients_are_named(url_of, server, monkeypatch):
    with pytest.raises(
        DataError, match="source 'web': memory://bucket/pub/raw/none: no such.*set ingest.sources.web.path"
    ):
        texts(url_of("memory") + "/none")
    with pytest.raises(DataError, match="source 'web': http://.*/raw/none.jsonl: no such"):
        texts(f"{server.url}/pub/raw/none.jsonl")
    with pytest.raises(ConfigError, match="nosuch://a/b: cannot be opened"):
        texts("nosuch://a/b")

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"s3://b/c: .*pip install 'maxlm\[s3\]'"):
        texts("s3://b/c")


def test_a_server_without_ranges_is_refused_before_the_file_is_read(server):
    server.fail("a.jsonl", "whole", times=100)
    (file,) = find_files("web", SourceConfig(kind="jsonl", path=f"{server.url}/pub/raw/a.jsonl"))
    with file.open() as stream, pytest.raises(DataError, match="whole files alone"):
        stream.seek(5)
        stream.read(7)


def test_the_version_of_a_file_is_in_the_key_and_its_signature_is_not(tmp_path, server, folder, monkeypatch):
    def key(url):
        config = SourceConfig(kind="jsonl", path=url)
        (task,) = make_tasks("web", config, IngestConfig(sources={"web": config}))
        return task.key

    url = f"{server.url}/pub/raw/a.jsonl"
    assert key(f"{url}?signature=one") == key(f"{url}?signature=two")
    before = key(url)
    memory = fsspec.filesystem("memory")
    memory.pipe("/versions/a.jsonl", b'{"text": "a"}\n')
    first = key("memory://versions")
    memory.pipe("/versions/a.jsonl", b'{"text": "b"}\n')
    assert key("memory://versions") != first
    monkeypatch.setattr("object_server.DATE", "Tue, 24 Nov 2026 00:00:01 GMT")
    assert key(url) == before  # the ETag is more certain than a time


def test_a_pipeline_is_written_down_without_secrets(tmp_path):
    values = {
        "name": "test",
        "ingest": {"sources": {"web": {"kind": "jsonl", "path": ["https://me:pass1word@host/a.jsonl?token=s3cr3t"]}}},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    config = validate(values, Pipeline, "test")
    assert config.ingest.sources["web"].paths == ["https://me:pass1word@host/a.jsonl?token=s3cr3t"]
    assert config.model_dump(mode="json")["ingest"]["sources"]["web"]["path"] == ["https://host/a.jsonl"]


def test_a_task_reads_a_store_in_its_own_process(tmp_path, url_of):
    config = SourceConfig(kind="jsonl", path=url_of("memory"), exclude=["*.gz"])
    tasks = make_tasks("web", config, IngestConfig(sources={"web": config}))
    records = [task.function(Folder(tmp_path / "work"), task.key, *task.arguments) for task in tasks]
    assert sum(record.values["documents"] for record in records) == 402
