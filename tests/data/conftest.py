"""Small sources to read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from shard_files import documents_of_lengths, documents_of_random_lengths, write_directory

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
