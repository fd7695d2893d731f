"""Fetching ahead of the reader, and what the cache keeps for it."""

import fcntl
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from object_server import ObjectServer
from shard_files import documents_of_lengths, write_directory

from maxlm.data.cache import LEASE, Cache, Full
from maxlm.data.read_ahead import ReadAhead
from maxlm.data.shards import Shards, index_name, tokens_name
from maxlm.errors import DataError

MIB = 2**20
CHUNK = MIB // 4  # tokens of uint32
STEPS = 12


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Shards:
    """A source of one shard of twelve chunks; step k of the reader below reads chunk k."""
    lengths = [CHUNK // 64] * 64 * STEPS
    return write_directory(tmp_path_factory.mktemp("long") / "web", documents_of_lengths(lengths), 1, "uint32")


@pytest.fixture
def server(server: ObjectServer, long: Shards) -> ObjectServer:
    server.folder = long.directory.parent
    return server


@pytest.fixture
def open_reader(server: ObjectServer, make_cache):
    """open_reader(chunks=..., read_ahead=...) -> the source by its URL and a `ReadAhead` over its twelve steps."""
    opened = []

    def reader(chunks: float = 64, **settings) -> tuple[Shards, ReadAhead]:
        cache = make_cache(chunks, **settings)
        shards = Shards(f"{server.url}/web", cache)
        ahead = ReadAhead(Spans(shards), STEPS, cache)
        opened.append(ahead)
        return shards, ahead

    yield reader
    for ahead in opened:
        ahead.close()


def chunks_asked(server: ObjectServer) -> list[int]:
    return [request.range[0] // MIB for request in server.asked(tokens_name(0))]


def eventually(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.005)


def bytes_below(folder: Path) -> int:
    """Bytes that a cache holds at one moment.

    Its lock keeps others from writing and deleting; a file that is renamed meanwhile counts once.
    """
    sizes = {}
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and path.name != "lock":
                    sizes[path.stat().st_ino] = path.stat().st_size
    return sum(sizes.values())


def quiet(server: ObjectServer) -> None:
    """Wait until no request came for a while."""
    seen = -1
    while len(server.requests) != seen:
        seen = len(server.requests)
        time.sleep(0.15)


def read(shards: Shards, long: Shards, step: int) -> None:
    start, stop = step * CHUNK, (step + 1) * CHUNK
    assert np.array_equal(shards.read(start, stop), long.read(start, stop))
    assert np.array_equal(shards.ends(start, stop), long.ends(start, stop))


def test_steps_ahead_are_fetched_in_the_order_of_need_and_no_further(open_reader, server, long):
    shards, ahead = open_reader(read_ahead=3, threads=1)
    ahead.at(0)
    quiet(server)
    assert [request.name for request in server.requests[1:3]] == [f"web/{tokens_name(0)}", f"web/{index_name(0)}"]
    assert chunks_asked(server) == [0, 1, 2, 3]
    for step in range(STEPS):
        ahead.at(step)
        expected = list(range(min(step + 4, STEPS)))
        eventually(lambda expected=expected: chunks_asked(server) == expected)
        quiet(server)
        before = len(server.requests)
        read(shards, long, step)
        assert len(server.requests) == before  # all of it was there
    assert chunks_asked(server) == list(range(STEPS)) and len(server.asked(".idx")) == 1


def test_the_reader_is_not_held_up_and_waits_for_what_is_on_its_way(open_reader, server, long):
    shards, ahead = open_reader(read_ahead=4, threads=2)
    server.gate.clear()
    ahead.at(0)  # comes back although nothing is answered
    eventually(lambda: server.asked(tokens_name(0)) and server.asked(index_name(0)))
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read, shards, long, 0)
        quiet(server)
        assert not reader.done() and chunks_asked(server) == [0]
        server.gate.set()
        reader.result()
    for step in range(1, 5):
        read(shards, long, step)
    assert sorted(chunks_asked(server)) == [0, 1, 2, 3, 4] and len(server.asked(".idx")) == 1


def test_fetches_run_side_by_side(open_reader, server):
    _, ahead = open_reader(read_ahead=8, threads=6)
    server.gate.clear()
    ahead.at(0)
    eventually(lambda: server.most_at_once == 6)
    server.gate.set()


def test_errors_come_to_the_reader_when_it_comes_to_them(open_reader, server, long):
    shards, ahead = open_reader(read_ahead=8, threads=2)
    server.fail(tokens_name(0), 404, times=1000, begin=3 * MIB)
    for step in range(3):
        ahead.at(step)
        read(shards, long, step)
    eventually(lambda: {3, 4, 5} <= set(chunks_asked(server)))
    ahead.at(3)
    with pytest.raises(DataError, match=f"{tokens_name(0)}: missing"):
        read(shards, long, 3)


def test_a_fetch_that_failed_ahead_is_asked_for_again_by_the_reader(open_reader, server, long):
    shards, ahead = open_reader(read_ahead=1, attempts=1, threads=1)
    server.fail(tokens_name(0), 503, times=2)
    ahead.at(0)
    quiet(server)
    assert chunks_asked(server) == [0, 1]  # both failed
    for step in range(2):
        read(shards, long, step)
    assert chunks_asked(server) == [0, 1, 0, 1]


def test_no_more_is_fetched_ahead_than_half_of_the_cache_holds(open_reader, server, long):
    """And nothing that is to be read is deleted: each chunk is fetched once, though the cache holds half of them."""
    shards, ahead = open_reader(chunks=6.5, read_ahead=STEPS, threads=3)
    ahead.at(0)
    quiet(server)
    assert sorted(chunks_asked(server)) == [0, 1, 2]
    for step in range(STEPS):
        ahead.at(step)
        read(shards, long, step)
        assert bytes_below(shards._folder._cache.directory) <= 6.5 * MIB
    assert sorted(chunks_asked(server)) == list(range(STEPS))


def test_a_reader_may_jump(open_reader, server, long):
    shards, ahead = open_reader(read_ahead=1, threads=1)
    for step in (9, 2, 11, 0):
        ahead.at(step)
        read(shards, long, step)
    quiet(server)
    assert {9, 2, 11, 0} <= set(chunks_asked(server)) <= {9, 10, 2, 3, 11, 0, 1}
    assert len(set(chunks_asked(server))) == len(chunks_asked(server))


def test_what_was_passed_is_not_kept(open_reader, server):
    """Leases end when the reader has passed, also of what it passed before it was fetched."""
    shards, ahead = open_reader(read_ahead=2, threads=1)
    server.latency = 0.05
    ahead.at(0)
    ahead.at(8)
    eventually(lambda: {8, 9, 10} <= set(chunks_asked(server)))
    quiet(server)
    files = {path.name.split(".")[-1]: path for path in shards._folder._cache.directory.rglob("*.bin.*")}
    leased = {int(name.split("-")[0]) // MIB for name, path in files.items() if path.stat().st_mtime > time.time() + 60}
    assert leased == {8, 9, 10}
    ahead.close()
    assert not [path for path in files.values() if path.stat().st_mtime > time.time() + 60]


def threads() -> int:
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


def test_the_threads_end_when_it_is_closed_or_forgotten(open_reader, server):
    shards, ahead = open_reader(read_ahead=2, threads=3)
    eventually(lambda: threads() == 0)  # of the tests before
    ahead.at(0)
    assert threads() == 3
    ahead.close()
    ahead.close()
    eventually(lambda: threads() == 0)
    ahead = ReadAhead(Spans(shards), STEPS, shards._folder._config)
    ahead.at(0)
    assert threads() == 3
    del ahead
    eventually(lambda: threads() == 0)


def test_a_copy_begins_anew(open_reader, server, long):
    shards, _ = open_reader(read_ahead=2)
    ahead = ReadAhead(Spans(shards), STEPS, shards._folder._config)
    ahead.at(0)
    copy = pickle.loads(pickle.dumps(ahead))
    copy.at(5)
    eventually(lambda: {0, 1, 2, 5, 6, 7} == set(chunks_asked(server)))
    copy.close()


class Spans:
    def __init__(self, shards: Shards):
        self.shards = shards

    def __call__(self, step: int) -> list:
        return [(self.shards, step * CHUNK, (step + 1) * CHUNK)]


def test_sources_on_the_disk_need_no_threads(large, make_cache):
    eventually(lambda: threads() == 0)
    ahead = ReadAhead(lambda step: [(large, step, step + 10)], STEPS, make_cache())
    for step in range(STEPS):
        ahead.at(step)
    assert threads() == 0


# --- leases --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path) -> Cache:
    """A cache of ten bytes."""
    return Cache(tmp_path / "cache", 10)


def put(cache: Cache, name: str, ahead: bool = False, size: int = 3) -> None:
    cache.fetch(name, size, lambda: [b"x" * size], ahead)


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.directory.iterdir()} - {"lock"}


def used(cache: Cache, name: str, ago: float) -> None:
    os.utime(cache.directory / name, (time.time() - ago,) * 2)


def test_what_was_not_used_for_the_longest_time_is_deleted_first(cache):
    for ago, name in ((100, "a"), (300, "b"), (200, "c")):
        put(cache, name)
        used(cache, name, ago)
    cache.open("b", 3).close()
    put(cache, "d")
    assert names(cache) == {"a", "b", "d"}


def test_what_has_a_lease_outlives_what_was_used(cache):
    put(cache, "a", ahead=True)
    put(cache, "b")
    put(cache, "c", ahead=True)
    put(cache, "d")
    assert names(cache) == {"a", "c", "d"}
    cache.open("c", 3).close()  # reading does not end a lease
    put(cache, "e", ahead=True)
    assert names(cache) == {"a", "c", "e"}
    fetched = []
    with pytest.raises(Full):
        cache.fetch("f", 3, lambda: fetched.append("f") or [b"xxx"], ahead=True)
    assert names(cache) == {"a", "c", "e"} and not fetched
    put(cache, "f")  # somebody waits for it: what is needed last makes room
    assert names(cache) == {"a", "c", "f"}
    cache.release("a")
    used(cache, "a", 10)
    put(cache, "g", ahead=True)
    assert names(cache) == {"c", "f", "g"}


def test_a_lease_ends_by_itself(cache):
    for name in ("a", "b", "c"):
        put(cache, name, ahead=True)
        used(cache, name, 1)  # as after so many seconds
    put(cache, "d", ahead=True)
    assert "d" in names(cache) and len(names(cache)) == 3
    assert (cache.directory / "d").stat().st_mtime == pytest.approx(time.time() + LEASE, abs=60)


@pytest.mark.parametrize("text", ["", "nonsense", "0", "7", "10", "999"])
def test_the_number_of_bytes_held_is_found_again(cache, text):
    """Somebody died in between, deleted files by hand, or wrote nonsense."""
    put(cache, "a")
    (cache.directory / "lock").write_text(text)
    for name in ("b", "c", "d", "e"):
        put(cache, name)
        assert name in names(cache)
    # Of a number that is too small nobody knows until the next look through the folder.
    assert bytes_below(cache.directory) <= 10 + (3 if text == "0" else 0)
    assert len(names(cache)) >= 2


def test_a_file_that_could_not_be_read_leaves_nothing(cache):
    def broken():
        yield b"x"
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        cache.fetch("a", 3, broken)
    assert names(cache) == set()
    put(cache, "a")
    assert cache.open("a", 3).read() == b"xxx"
