"""Sources in object stores, read from a server on loopback: the tokens of the disk, whatever it does."""

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from object_server import ObjectServer
from shard_files import documents_of_lengths, write_directory

from maxlm.config import CacheConfig
from maxlm.data import loader, records
from maxlm.data.shards import Shards, index_name, read_manifest, tokens_name
from maxlm.data.store import redact
from maxlm.errors import ConfigError, DataError

MIB = 2**20
CHUNK = MIB // 4  # tokens of uint32
STORES = {"http": None, "memory": None, "file": None, "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}


@pytest.fixture
def url_of(server: ObjectServer, large: Shards, monkeypatch):
    """The URL of `large` in a store of a kind."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google's control plane

    def url(kind: str) -> str:
        if STORES[kind]:
            pytest.importorskip(STORES[kind])
        options = {
            "s3": {"endpoint_url": server.url, "key": "key", "secret": "secret"},
            "gs": {"endpoint_url": server.url, "token": "anon"},
            "hf": {"endpoint": server.url, "token": False},
        }
        monkeypatch.setitem(fsspec.config.conf, kind, options.get(kind, {}))
        if kind == "memory":
            fsspec.filesystem("memory").put(str(large.directory), "/bucket/web", recursive=True)
        return {
            "http": f"{server.url}/web",
            "memory": "memory://bucket/web",
            "file": large.directory.as_uri(),
            "s3": "s3://bucket/web",
            "gs": "gs://bucket/web/",
            "hf": "hf://datasets/org/set/web",
        }[kind]

    return url


@pytest.fixture
def web(server: ObjectServer, make_cache) -> Shards:
    return Shards(f"{server.url}/web", make_cache())


def assert_same(one: Shards, other: Shards) -> None:
    assert np.array_equal(one.read(0, len(one)), other.read(0, len(other)))
    assert np.array_equal(one.ends(0, len(one)), other.ends(0, len(other)))


def files_of(cache: CacheConfig) -> dict[Path, int]:
    files = [path for path in Path(cache.directory).rglob("*") if path.is_file() and path.name != "lock"]
    return {path: path.stat().st_size for path in files}


@pytest.mark.parametrize("kind", STORES)
def test_tokens_are_those_of_the_disk(kind, url_of, large, make_cache):
    shards = Shards(url_of(kind), make_cache())
    assert_same(shards, large)
    rng = np.random.default_rng(0)
    for start, length in zip(rng.integers(0, len(large) - 9000, 50), rng.integers(1, 9000, 50), strict=True):
        assert np.array_equal(shards.read(start, start + length), large.read(start, start + length))
        assert np.array_equal(shards.ends(start, start + length), large.ends(start, start + length))
    for level in ("sizes", "checksums"):
        shards.verify(level)
    assert (shards.local_tokenizer() / "tokenizer.json").read_bytes() == b"one"
    assert shards.manifest == large.manifest and shards.remote == (kind != "file")


def test_batches_are_those_of_the_disk(web, large):
    options = {"seq_len": 4096, "sequences": 100, "batch_size": 4, "rows": [3, 1]}
    for read, expected in zip(loader.sequential(web, **options), loader.sequential(large, **options), strict=True):
        assert all(np.array_equal(read[name], expected[name]) for name in expected)


def test_documents_and_their_records_are_those_of_the_disk(web, large):
    start, stop = 700 * 900 + 3, 700 * 1103
    assert np.array_equal(web.documents(start, stop), large.documents(start, stop))
    assert web.span(1, 77) == large.span(1, 77)
    assert records.find(web, "1/77") == [(1, 77)]
    assert records.read(web, [(1, 77), (0, 3)]) == records.read(large, [(1, 77), (0, 3)])


def test_chunks_are_fetched_once_and_only_where_something_is_read(web, server, large):
    assert [(request.name, request.range) for request in server.requests] == [("web/manifest.json", None)]
    start = CHUNK + 1000
    for _ in range(3):
        web.read(start, start + 100)
    assert [request.range for request in server.asked(".bin")] == [(MIB, 2 * MIB - 1)]
    web.ends(start, start + 100)
    assert [request.name for request in server.asked(".idx")] == [f"web/{index_name(0)}"]
    assert_same(web, large)
    size = large.directory.joinpath(tokens_name(0)).stat().st_size
    chunks = [(first, min(first + MIB, size) - 1) for first in range(0, size, MIB)]
    assert len(chunks) == 3
    for shard in range(2):
        assert sorted(request.range for request in server.asked(tokens_name(shard))) == chunks
    assert len(server.asked(".idx")) == 2


def test_a_warm_cache_asks_for_the_manifest_alone(web, server, large):
    assert_same(web, large)
    web.local_tokenizer()
    server.requests.clear()
    again = Shards(f"{server.url}/web?signature=another", web._folder._config)
    assert_same(again, large)
    again.local_tokenizer()
    assert_same(pickle.loads(pickle.dumps(again)), large)
    assert [request.name for request in server.requests] == ["web/manifest.json"]


def test_data_prepared_anew_is_fetched_anew(tmp_path, make_cache, monkeypatch):
    with ObjectServer(tmp_path / "data") as server:
        for first in (1, 50):
            (tmp_path / "data").exists() and (tmp_path / "data").rename(tmp_path / "former")
            local = write_directory(tmp_path / "data" / "web", documents_of_lengths([40] * 20, first), 2)
            assert_same(Shards(f"{server.url}/web", make_cache()), local)


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [429, 500, 503, 408, "reset", "short", "fewer", "shifted", "hang"])
def test_what_may_pass_is_tried_again(kind, server, large, make_cache):
    shards = Shards(f"{server.url}/web", make_cache(timeout_seconds=0.5 if kind == "hang" else 10))
    server.fail(tokens_name(0), kind, times=2)
    server.fail(index_name(1), kind, times=1)
    assert_same(shards, large)
    asked = [request.range for request in server.asked(tokens_name(0))]
    # A connection that is reset while it was idle is tried again by the client itself.
    assert len(asked) == 5 or (kind == "reset" and 3 <= len(asked) <= 5)
    assert {first for first, _ in asked} == {0, MIB, 2 * MIB}


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_files_that_are_fetched_whole_are_tried_again(name, server, make_cache):
    for kind in (503, "reset"):
        server.fail(name, kind, ranges=False)
    Shards(f"{server.url}/web", make_cache()).local_tokenizer()
    assert len(server.asked(name)) >= 2


@pytest.mark.parametrize(
    ("kind", "attempts", "says"),
    [
        (503, 4, "could not be read in 4 attempts, at last: ClientResponseError: 503.*check the network"),
        ("short", 4, "could not be read in 4 attempts, at last: ClientPayloadError"),
        ("fewer", 4, "could not be read in 4 attempts.*bytes 0-1048574/"),
        ("shifted", 4, "could not be read in 4 attempts.*sent 'bytes 1-1048576/.*asked for bytes 0-1048575"),
        (404, 1, "missing; the manifest lists it, prepare the data again or restore"),
        (403, 1, "access was refused .*403.*check the credentials for http:// on this machine"),
        (401, 1, "access was refused .*401"),
        (400, 1, "cannot be read .*400"),
        ("whole", 1, r"cannot be read .*the server answers a range with the whole file \(status 200\)"),
    ],
)
def test_what_does_not_pass_is_one_error_with_the_address(kind, attempts, says, web, server):
    server.fail(tokens_name(0), kind, times=100)
    with pytest.raises(DataError, match=f"^{web.directory}/{tokens_name(0)}: {says}") as caught:
        web.read(0, 10)
    assert "\n" not in str(caught.value)
    assert len(server.asked(tokens_name(0))) == attempts
    server.faults.clear()
    web.read(0, 10)


def test_a_server_that_is_gone_is_named(server, make_cache):
    url = server.url
    server.__exit__()
    with pytest.raises(DataError, match=f"^{url}/web/manifest.json: could not be read in 2 attempts.*Cannot connect"):
        Shards(f"{url}/web", make_cache(attempts=2))


@pytest.mark.parametrize("kind", ["http", "memory", "s3", "gs", "hf"])
def test_a_folder_without_a_manifest_is_named(kind, url_of, make_cache):
    url = url_of(kind).rstrip("/") + "-nowhere"
    with pytest.raises(DataError, match=f"^{url}: the directory has no manifest.json; expected shards written by"):
        Shards(url, make_cache())


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        ("s3", 403, "access was refused .*403"),
        ("s3", 404, "missing"),
        ("s3", 503, "could not be read in 4 attempts.*503"),
        ("gs", 403, "access was refused .*Forbidden"),
        ("gs", 404, "missing"),
        ("hf", 403, "access was refused .*403"),
        ("hf", 404, "missing"),
    ],
)
def test_clients_of_stores_say_the_same_in_their_ways(kind, status, says, url_of, server, make_cache):
    shards = Shards(url_of(kind), make_cache())
    server.fail(tokens_name(0), status, times=100)
    with pytest.raises(DataError, match=f"^{shards.directory}/{tokens_name(0)}: {says}"):
        shards.read(0, 10)
    assert len(server.asked(tokens_name(0))) == (4 if status == 503 else 1)


def test_verify_names_what_differs(tmp_path, make_cache):
    local = write_directory(tmp_path / "data" / "web", documents_of_lengths([40] * 20), 2)
    path = local.directory / tokens_name(1)
    content = path.read_bytes()
    with ObjectServer(tmp_path / "data") as server:
        shards = Shards(f"{server.url}/web", make_cache())
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        shards.verify("sizes")
        assert not [request for request in server.requests[1:] if request.method != "HEAD"]
        with pytest.raises(DataError, match=f"^{server.url}/web/{tokens_name(1)}: .*altered"):
            shards.verify("checksums")
        for part in range(3):
            mine = sorted(shards.manifest.files).index(tokens_name(1)) % 3 == part
            server.requests.clear()
            try:
                shards.verify("checksums", part, 3)
                assert not mine
            except DataError:
                assert mine
            assert len(server.asked()) < len(shards.manifest.files)
        assert not files_of(make_cache())  # streamed, not kept
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match=f"^{server.url}/web/{tokens_name(1)}: has {len(content) - 1} bytes"):
            shards.verify("sizes")
        path.unlink()
        with pytest.raises(DataError, match=f"^{server.url}/web/{tokens_name(1)}: missing"):
            shards.verify("sizes")


def test_an_altered_index_is_refused_when_it_is_fetched(tmp_path, make_cache):
    local = write_directory(tmp_path / "data" / "web", documents_of_lengths([40] * 20), 2)
    path = local.directory / index_name(0)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with ObjectServer(tmp_path / "data") as server:
        shards = Shards(f"{server.url}/web", make_cache())
        with pytest.raises(DataError, match=f"{index_name(0)}: its contents differ from the manifest's checksum"):
            shards.ends(0, 10)
        assert not files_of(make_cache())


WITHOUT_PACKAGES = """
import sys
from maxlm.data.shards import Shards
from maxlm.errors import ConfigError
for url, package in (("s3://a/b", "s3fs"), ("gs://a/b", "gcsfs"), ("hf://datasets/a/b", "huggingface_hub"),
                     ("https://a/b", "aiohttp")):
    sys.modules[package] = None
    try:
        Shards(url)
    except ConfigError as error:
        print(error)
"""


def test_a_missing_package_is_named():
    """In a process of its own: fsspec remembers what it has imported."""
    printed = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGES], capture_output=True, text=True).stdout
    assert printed.splitlines() == [
        "s3://a/b: a package that reads s3:// is missing: pip install s3fs",
        "gs://a/b: a package that reads gs:// is missing: pip install gcsfs",
        "hf://datasets/a/b: a package that reads hf:// is missing: pip install huggingface_hub",
        "https://a/b: a package that reads https:// is missing: pip install aiohttp",
    ]


def test_an_unknown_kind_of_store_is_refused(make_cache):
    with pytest.raises(ConfigError, match=r"^ssss://bucket/web: cannot be opened .*gs://, s3://, hf://"):
        Shards("ssss://bucket/web", make_cache())


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p@host/a/b?sig=s3cr3t", "http://host/a/b"),
        ("https://token@host/a", "https://host/a"),
        ("at 'https://host/a?x=1&y=2', then http://h/b#f", "at 'https://host/a', then http://h/b"),
        ("s3://key:secret@bucket/a?versionId=3", "s3://bucket/a"),
        ("hf://datasets/org/set@main/a", "hf://datasets/org/set@main/a"),
        ("abfs://container@account/a?sas", "abfs://container@account/a"),
        ("no address: a@b?c", "no address: a@b?c"),
    ],
)
def test_addresses_are_shown_without_secrets(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize("kind", [404, 403, 503, "reset", "short", "whole", 416])
def test_secrets_reach_the_server_and_no_message(kind, server, make_cache, capfd):
    place = server.url.removeprefix("http://")
    url = f"http://user:passw0rd@{place}/web?sig=s3cr3t%2Fx%3D&e=12345"
    shards = Shards(url, make_cache())
    asked = server.asked("manifest.json")[0]
    assert "s3cr3t" in asked.query and asked.authorization.startswith("Basic ")
    server.fail(tokens_name(0), kind, times=100)
    with pytest.raises(DataError) as caught:
        shards.read(0, 10)
    server.folder = server.folder / "nothing"
    with pytest.raises(DataError) as gone:
        Shards(url, make_cache())
    said = f"{caught.value} {gone.value} {shards.directory} {caught.value.__cause__} {capfd.readouterr()}"
    assert f"{place}/web" in said
    for secret in ("user", "passw0rd", "s3cr3t", "12345", "sig="):
        assert secret not in said


# --- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_keeps_its_bound_and_what_was_read_last(server, large, make_cache):
    cache = make_cache(chunks=4)
    shards = Shards(f"{server.url}/web", cache)
    for start in range(0, len(large), 5000):
        stop = min(start + 5000, len(large))
        assert np.array_equal(shards.read(start, stop), large.read(start, stop))
        assert np.array_equal(shards.ends(start, stop), large.ends(start, stop))
        assert sum(files_of(cache).values()) <= 4 * MIB
    assert len(server.asked(".bin")) == 6
    server.requests.clear()
    fresh = Shards(f"{server.url}/web", cache)
    fresh.read(len(large) - CHUNK, len(large))
    assert not server.asked(".bin")
    fresh.read(0, 10)
    assert len(server.asked(".bin")) == 1


def test_what_others_keep_beside_it_is_left_alone(server, large, make_cache):
    """Packing indexes of sources in stores, which take hours to build, lie in the same directory."""
    cache = make_cache(chunks=4)
    index = Path(cache.directory) / "packing" / "index"
    index.parent.mkdir(parents=True)
    index.write_bytes(bytes(MIB))
    os.utime(index, (0, 0))
    assert_same(Shards(f"{server.url}/web", cache), large)
    assert index.exists() and len(server.asked(".bin")) == 6


def test_what_is_mapped_stays_readable_when_it_is_deleted(web, server, large):
    view = web.read(0, 1000)
    for path in files_of(web._folder._config):
        path.unlink()
    assert np.array_equal(view, large.read(0, 1000)) and np.array_equal(web.read(0, 1000), view)
    assert np.array_equal(Shards(f"{server.url}/web", web._folder._config).read(0, 1000), view)
    assert len(server.asked(tokens_name(0))) == 2


def test_a_damaged_or_unfinished_file_in_the_cache_is_fetched_again(web, server, large):
    web.read(0, 1000)
    (path,) = files_of(web._folder._config)
    path.write_bytes(path.read_bytes()[:-1])
    path.with_name(path.name.replace("0-1048576", "1048576-2097152.part")).write_bytes(b"rest of one who was killed")
    assert_same(Shards(f"{server.url}/web", web._folder._config), large)
    assert len(server.asked(tokens_name(0))) == 4
    assert not [path for path in files_of(web._folder._config) if path.suffix == ".part"]


def test_threads_wait_for_one_fetch(web, server, large):
    server.latency = 0.1
    barrier = threading.Barrier(8)

    def read(_: int) -> np.ndarray:
        barrier.wait()
        return web.read(0, 1000)

    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(read, large.read(0, 1000)) for read in pool.map(read, range(8)))
    assert len(server.asked(tokens_name(0))) == 1


READER = """
import sys
from maxlm.config import CacheConfig
from maxlm.data.shards import Shards
shards = Shards(sys.argv[1], CacheConfig(directory=sys.argv[2], gib=float(sys.argv[3]), chunk_mib=1))
for _ in range(2):
    print(int(shards.read(0, len(shards)).sum()), int(shards.ends(0, len(shards)).sum()))
"""


@pytest.mark.parametrize("chunks", [64, 4])
def test_processes_share_the_cache(chunks, server, large, make_cache):
    """Where everything fits it is fetched once for all of them; where it does not, they still read the right tokens."""
    server.latency = 0.02
    cache = make_cache(chunks)
    command = [sys.executable, "-c", READER, f"{server.url}/web", cache.directory, str(cache.gib)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    line = f"{large.read(0, len(large)).sum()} {large.ends(0, len(large)).sum()}"
    assert [reader.communicate(timeout=60)[0].splitlines() for reader in readers] == [[line, line]] * 3
    assert sum(files_of(cache).values()) <= chunks * MIB
    if chunks == 64:
        assert len(server.asked(".bin")) == 6 and len(server.asked(".idx")) == 2


def test_a_cache_that_cannot_be_written_is_named(server, make_cache, tmp_path):
    (tmp_path / "file").write_text("")
    shards = Shards(f"{server.url}/web", make_cache(directory=str(tmp_path / "file" / "cache")))
    with pytest.raises(DataError, match=r"file/cache/parts: the cache cannot be written .*data.cache.directory"):
        shards.read(0, 10)


def test_a_file_larger_than_the_cache_is_refused(server, make_cache):
    shards = Shards(f"{server.url}/web", make_cache(chunks=4))
    shards._folder._cache._limit = MIB // 2
    with pytest.raises(DataError, match=r"1048576 bytes do not fit.*set data.cache.gib higher"):
        shards.read(0, 10)
    assert not files_of(make_cache())


def test_unpickling_asks_for_nothing(web, server, large):
    server.requests.clear()
    copy = pickle.loads(pickle.dumps(web))
    assert not server.requests
    assert_same(copy, large)


def test_a_forked_process_reads_on(web, large):
    """With a client of its own: fsspec's threads do not come along."""
    web.read(0, 10)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(web.read(0, len(web)), large.read(0, len(large))) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_manifest_of_a_url_is_read_alone(server, large):
    assert read_manifest(f"{server.url}/web").hash == large.manifest.hash


@pytest.mark.parametrize("settings", [{"gib": 0.03, "chunk_mib": 8}, {"gib": 0}, {"attempts": 0}, {"read_ahead": -1}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CacheConfig(**settings)
