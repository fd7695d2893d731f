"""The manifest in memory, and token files that are mapped a bounded number at a time."""

import hashlib
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from maxlm.data import maps, shards
from maxlm.data.shards import MANIFEST, Manifest, ShardEntry, Shards, read_manifest
from maxlm.errors import DataError


@pytest.fixture
def few_maps(monkeypatch) -> maps.Maps:
    """Five maps for the whole process."""
    few = maps.Maps(5)
    monkeypatch.setattr(shards, "MAPS", few)
    return few


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def test_hash_of_a_manifest_follows_from_its_json(two_sources):
    """Checkpoints hold it: the hash of what the file says, whatever keeps it in memory."""
    for source in two_sources.values():
        said = json.loads((source.directory / MANIFEST).read_text())
        tokenizer = digest({name: entry["sha256"] for name, entry in said["tokenizer"]["files"].items()})
        parts = {name: said[name] for name in ("version", "dtype", "shards")}
        assert source.manifest.hash == digest(parts | {"tokenizer": tokenizer})


def test_a_manifest_is_written_as_it_was_read(two_sources):
    path = two_sources["web"].directory / MANIFEST
    read = read_manifest(path.parent)
    assert read.model_dump_json() == path.read_text()
    again = Manifest.model_validate(read.model_dump())
    assert again == read and again.hash == read.hash
    other = read.model_dump()
    other["shards"][2]["files"]["tokens-00002.bin"]["sha256"] = "0" * 64
    assert Manifest.model_validate(other) != read


def test_entries_of_shards_are_what_the_file_says(two_sources):
    shards = two_sources["web"]
    said = json.loads((shards.directory / MANIFEST).read_text())
    entries = [ShardEntry.model_validate(entry) for entry in said["shards"]]
    table = shards.manifest.shards
    assert list(table) == entries and len(table) == 3
    assert [table[-1], table[0]] == [entries[2], entries[0]] and table[1:] == entries[1:]
    with pytest.raises(IndexError):
        table[3]
    assert shards.manifest.files.keys() == {
        "tokenizer/tokenizer.json",
        "documents.hash",
        *(name for entry in entries for name in entry.files),
    }


@pytest.mark.parametrize("digest", ["", "xyz", "A" * 64, "0" * 63])
def test_a_checksum_that_is_none_is_refused(two_sources, digest):
    path = two_sources["code"].directory / MANIFEST
    said = json.loads(path.read_text())
    said["shards"][0]["files"]["tokens-00000.bin"]["sha256"] = digest
    path.write_text(json.dumps(said))
    with pytest.raises(DataError, match=r"manifest.json: not a manifest.*shards\.0\.files.*sha256"):
        Shards(path.parent)


def test_maps_and_file_descriptors_are_bounded_over_all_sources(write_shards, random_documents, few_maps):
    documents = [random_documents(number, 40, 1 + 1000 * number) for number in range(4)]
    sources = [write_shards(str(number), part, shards=10) for number, part in enumerate(documents)]
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for source, part in zip(sources, documents, strict=True):
            ends = np.cumsum([len(document) for document in part]).tolist()
            for (start, stop), document in zip(pairwise([0, *ends]), part, strict=True):
                assert source.read(start, stop).tolist() == document
                assert source.ends(start, stop).tolist() == [stop]
                assert len(os.listdir("/proc/self/fd")) <= open_files + 5
            assert source.ends(0, len(source)).tolist() == ends
    assert len(few_maps) == 5


def test_what_is_being_read_stays_readable_when_its_map_is_let_go(write_shards, random_documents, few_maps):
    source = write_shards("one", random_documents(0, 60), shards=12)
    views = [source.read(start, start + 2) for start in range(0, len(source) - 2, 40)]
    copies = [view.copy() for view in views]
    assert len(views) > 20 and len(few_maps) == 5
    assert all(np.array_equal(view, copy) for view, copy in zip(views, copies, strict=True))
    assert not any(view.flags.writeable for view in views)


def test_the_limit_of_maps_leaves_half_of_the_open_files(monkeypatch):
    for soft, most in ((1024, 512), (256, 128), (1_000_000, 1024), (maps.resource.RLIM_INFINITY, 1024)):
        monkeypatch.setattr(maps.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert maps.most_maps() == most


def test_a_pickled_copy_opens_nothing_until_it_is_read(two_sources):
    for source in two_sources.values():
        everything = source.read(0, len(source)).copy()
        pickled = pickle.dumps(source)
        assert len(pickled) < 4096
        hidden = source.directory.rename(source.directory.with_suffix(".hidden"))
        copy = pickle.loads(pickled)
        assert (len(copy), copy.manifest, copy.directory) == (len(source), source.manifest, source.directory)
        with pytest.raises(DataError, match=r"tokens-00000.bin: cannot be read"):
            copy.read(0, 1)
        hidden.rename(source.directory)
        assert np.array_equal(copy.read(0, len(copy)), everything)


def test_data_prepared_anew_in_the_same_place_is_read_anew(write_shards, documents_of, tmp_path):
    former = write_shards("one", documents_of([9], first=1))
    assert former.read(0, 8).tolist() == list(range(1, 9))
    former.directory.rename(tmp_path / "former")
    assert write_shards("one", documents_of([9], first=100)).read(0, 8).tolist() == list(range(100, 108))
    assert former.read(0, 8).tolist() == list(range(1, 9))


def test_threads_read_the_right_tokens_while_maps_come_and_go(write_shards, random_documents, few_maps):
    source = write_shards("one", random_documents(0, 400), shards=20)
    everything = source.read(0, len(source)).copy()

    def read(seed: int) -> bool:
        starts = np.random.default_rng(seed).integers(0, len(source) - 50, 400).tolist()
        return all(np.array_equal(source.read(start, start + 50), everything[start : start + 50]) for start in starts)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    assert len(few_maps) == 5
