"""Large files are read by several tasks, and the documents do not depend on where the files are cut."""

import json
import random
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import find_files
from data_prep.ingest.shards import make_tasks
from data_prep.ingest.split import number_lines, split
from data_prep.manifest import Folder


def read(work, path, shard_bytes, **options):
    """Rows of all shards in the order of the tasks, and the tasks."""
    config = SourceConfig(path=str(path), **options)
    ingest = IngestConfig(sources={"web": config}, shard_bytes=shard_bytes, on_bad_record="skip")

    def run(tasks):
        return [task.function(Folder(work / "lines"), task.key, *task.arguments) for task in tasks]

    files = number_lines(split(find_files("web", config), config.kind, shard_bytes), config.kind, run)
    tasks = make_tasks("web", config, ingest, files=files)
    rows = []
    for task in tasks:
        record = task.function(Folder(work / "shards"), task.key, *task.arguments)
        for name in record.files:
            rows += pq.read_table(Folder(work / "shards").file(record.key, name)).drop_columns("row").to_pylist()
    return rows, tasks


def random_lines(generator):
    kinds = [
        lambda i: json.dumps({"text": f"line {i} " + "a\u00e9\u6f22" * generator.randint(0, 60)}, ensure_ascii=False),
        lambda i: json.dumps({"text": f"line {i} " + "b" * 1500}),
        lambda i: "",
        lambda i: '{"text": 3}',
        lambda i: '{"text": " "}',
        lambda i: '{"text": "\\ud800"}',
    ]
    weights = [20, 1, 1, 1, 1, 1]
    return [generator.choices(kinds, weights)[0](i) for i in range(90)]


@pytest.mark.parametrize("seed, ending", [(0, "\n"), (1, ""), (2, "\r\n")])
def test_lines_are_the_same_however_the_file_is_cut(tmp_path, monkeypatch, seed, ending):
    monkeypatch.setattr("data_prep.ingest.jsonl.BLOCK_BYTES", 1000)
    lines = random_lines(random.Random(seed))
    path = tmp_path / "a.jsonl"
    end = "\r\n" if ending == "\r\n" else "\n"
    path.write_bytes(("\ufeff" + end.join(lines) + ending).encode())
    whole, tasks = read(tmp_path / "whole", path, 2**30, kind="jsonl")
    assert len(tasks) == 1 and len(whole) > 60
    numbers = [int(row["id"].rpartition(":")[2]) for row in whole]
    assert all(lines[number - 1].strip() for number in numbers) and numbers == sorted(numbers)
    for shard_bytes in (400, 1000, 5003):
        rows, tasks = read(tmp_path / str(shard_bytes), path, shard_bytes, kind="jsonl")
        assert len(tasks) == -(-path.stat().st_size // shard_bytes) > 1
        assert rows == whole


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.text("{}\n,\u00e9", max_size=60), count=st.integers(2, 70))
def test_every_line_begins_in_one_range(tmp_path_factory, data, count):
    folder = tmp_path_factory.mktemp("lines")
    path = folder / "a.jsonl"
    path.write_bytes(data.encode() + b"x")
    config = SourceConfig(kind="jsonl", path=str(path))
    shard_bytes = max(1, path.stat().st_size // count)
    ranges = split(find_files("web", config), "jsonl", shard_bytes)
    assert [file.stop for file in ranges[:-1]] == [file.start for file in ranges[1:]] or len(ranges) == 1

    def run(tasks):
        return [task.function(Folder(folder / "work"), task.key, *task.arguments) for task in tasks]

    from data_prep.ingest.jsonl import _blocks

    found = []
    for file in number_lines(ranges, "jsonl", run):
        with file.open() as stream:
            for first, block in _blocks(file, stream):
                found += list(enumerate(block.splitlines(keepends=True), first))
    assert found == list(enumerate((data + "x").encode().splitlines(keepends=True), 1))


def test_row_groups_are_the_same_however_the_file_is_cut(tmp_path):
    texts = [f"row {i} " + "word " * (i % 50) for i in range(1000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=70)
    whole, _ = read(tmp_path / "whole", path, 2**30, kind="parquet")
    assert [row["id"] for row in whole] == [f"web/a.parquet:{i}" for i in range(1000)]
    assert [row["text"] for row in whole] == texts
    for shard_bytes in (700, 2000):
        rows, tasks = read(tmp_path / str(shard_bytes), path, shard_bytes, kind="parquet")
        assert rows == whole and len(tasks) > 2


def test_a_compressed_file_is_one_task_and_several_shards(tmp_path):
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        for i in range(500):
            file.write(json.dumps({"text": f"{i} {random.Random(i).random()}" * 5}).encode() + b"\n")
    rows, tasks = read(tmp_path / "work", tmp_path / "a.jsonl.zst", 4000, kind="jsonl")
    assert len(tasks) == 1 and len(rows) == 500
    assert len(list((tmp_path / "work" / "shards" / tasks[0].key).glob("*.parquet"))) > 5


def test_a_range_is_a_key_of_its_own(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some text"}\n' * 100)
    config = SourceConfig(kind="jsonl", path=str(path))
    ranges = split(find_files("web", config), "jsonl", 300)
    keys = [
        task.key
        for task in make_tasks("web", config, IngestConfig(sources={"web": config}, shard_bytes=300), files=ranges)
    ]
    assert len(set(keys)) == len(ranges) > 5
    assert all(one.stop == other.start for one, other in pairwise(ranges)) and ranges[-1].stop == path.stat().st_size
