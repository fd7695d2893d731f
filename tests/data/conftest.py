"""Small sources to read."""

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from object_server import ObjectServer
from shard_files import documents_of_lengths, documents_of_random_lengths, write_directory

from maxlm.config import CacheConfig
from maxlm.data import store
from maxlm.data.shards import Shards


@pytest.fixture
def write_shards(tmp_path: Path) -> Callable[..., Shards]:
    """Write a directory of shards below the test's folder: write_shards(name, documents, shards=, dtype=, ...)."""
    return lambda name, documents, **options: write_directory(tmp_path / name, documents, **options)


@pytest.fixture
def documents_of() -> Callable[..., list[list[int]]]:
    return documents_of_lengths


@pytest.fixture
def random_documents() -> Callable[..., list[list[int]]]:
    return documents_of_random_lengths


@pytest.fixture
def two_sources(write_shards: Callable[..., Shards]) -> dict[str, Shards]:
    """Sources 'web' (several shards) and 'code' of random documents, in this order, which is not the sorted one."""
    return {
        "web": write_shards("web", documents_of_random_lengths(0, 120), shards=3),
        "code": write_shards("code", documents_of_random_lengths(1, 50, first=10_000), dtype="uint32"),
    }


@pytest.fixture
def started() -> Callable[[], list[BaseProcess]]:
    """The processes that this test has started and that live; those that an earlier one left are not its own."""
    before = multiprocessing.active_children()
    return lambda: [child for child in multiprocessing.active_children() if child not in before]


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """A source of two shards, each of two chunks of 1 MiB and a part of a third."""
    return write_directory(tmp_path_factory.mktemp("large") / "web", documents_of_lengths([700] * 2000), 2, "uint32")


@pytest.fixture
def server(large: Shards, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """Serves the folder of `large` on loopback; nobody pauses between attempts."""
    monkeypatch.setattr(store, "FIRST_PAUSE", 0.0)
    with ObjectServer(large.directory.parent) as running:
        yield running


@pytest.fixture
def make_cache(tmp_path: Path) -> Callable[..., CacheConfig]:
    """make_cache(chunks=4, ...): an empty cache of 64 chunks of 1 MiB, and its other settings."""

    def make(chunks: float = 64, **settings) -> CacheConfig:
        defaults = {"directory": str(tmp_path / "cache"), "chunk_mib": 1, "attempts": 4, "threads": 4}
        return CacheConfig(**defaults | settings, gib=chunks / 1024)

    return make
