"""Raw files of every kind become the same documents, and bad input is counted or refused as the pipeline says."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import find_files
from data_prep.ingest.shards import make_tasks
from data_prep.manifest import Folder
from maxlm.errors import DataError


def ingest(folder, path, policy=None, **source):
    """The rows of all shards, and the records of the tasks."""
    config = SourceConfig(path=str(path), **source)
    settings = IngestConfig(sources={"web": config}, **(policy or {}))
    tasks = make_tasks("web", config, settings)
    records = [task.function(Folder(folder), task.key, *task.arguments) for task in tasks]
    rows = []
    for record in records:
        for name in record.files:
            rows += pq.read_table(Folder(folder).file(record.key, name)).to_pylist()
    return sorted(rows, key=lambda row: row["id"]), records


def dropped(records):
    return {reason: count for record in records for reason, count in record.values["dropped"].items()}


def write_jsonl(path, texts, opener=open):
    with opener(path, "wb") as file:
        for number, text in enumerate(texts):
            file.write(
                json.dumps({"key": f"k{number:03d}", "body": text, "where": f"http://{number}"}).encode() + b"\n"
            )


@pytest.fixture
def formats(tmp_path, texts):
    """The same documents in every format that has records."""
    write_jsonl(tmp_path / "a.jsonl", texts)
    write_jsonl(tmp_path / "a.jsonl.gz", texts, gzip.open)
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write((tmp_path / "a.jsonl").read_bytes())
    keys, places = [f"k{i:03d}" for i in range(len(texts))], [f"http://{i}" for i in range(len(texts))]
    pq.write_table(pa.table({"key": keys, "body": texts, "where": places}), tmp_path / "a.parquet", row_group_size=50)
    return {"jsonl": ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"], "parquet": ["a.parquet"]}


def test_all_formats_give_the_same_documents(tmp_path, formats, texts):
    fields = {"text_field": "body", "id_field": "key", "url_field": "where"}
    for kind, names in formats.items():
        for name in names:
            rows, _ = ingest(tmp_path / "work", tmp_path / name, kind=kind, **fields)
            assert [row["text"] for row in rows] == texts, name
            assert [row["id"] for row in rows] == [f"web/k{i:03d}" for i in range(len(texts))]
            assert rows[7]["url"] == "http://7" and rows[7]["bytes"] == len(texts[7].encode())


def test_ids_without_an_id_field_name_the_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "one"}\n\n{"text": "two"}\n')
    rows, _ = ingest(tmp_path / "work", tmp_path, kind="jsonl")
    assert [row["id"] for row in rows] == ["web/a.jsonl:1", "web/a.jsonl:3"]
    assert dict(rows[1]["steps"]) == {"ingest": "a.jsonl:3"}


def test_tree_patterns_choose_files_by_name_and_by_path(tmp_path):
    for name in ("a.py", "a.txt", "test/b.py", "lib/test/c.py", "lib/d.py", "lib/tests.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(**patterns):
        config = SourceConfig(kind="tree", path=str(tmp_path), **patterns)
        return [file.name for file in find_files("web", config)]

    assert found(include=["*.py"], exclude=["test"]) == ["a.py", "lib/d.py", "lib/tests.py"]
    assert found(include=["*.py"], exclude=["lib/test"]) == ["a.py", "lib/d.py", "lib/tests.py", "test/b.py"]
    assert found(include=["lib/*.py"]) == ["lib/d.py", "lib/test/c.py", "lib/tests.py"]
    assert [f.name for f in find_files("web", SourceConfig(kind="tree", path=str(tmp_path / "**/*.py")))] == [
        "a.py", "lib/d.py", "lib/test/c.py", "lib/tests.py", "test/b.py",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["tree", "jsonl", "parquet"])
def test_invalid_utf8_is_replaced_skipped_or_refused(tmp_path, kind):
    bad = b"caf\xe9 \xe2\x82 end"
    if kind == "tree":
        (tmp_path / "bad.txt").write_bytes(bad)
    elif kind == "jsonl":
        (tmp_path / "bad.jsonl").write_bytes(b'{"text": "' + bad + b'"}\n')
    else:
        pq.write_table(pa.table({"text": pa.array([bad], pa.binary())}), tmp_path / "bad.parquet")
    rows, records = ingest(tmp_path / "work", tmp_path, kind=kind, include=["bad.*"])
    assert rows[0]["text"] == bad.decode("utf-8", "replace")
    assert records[0].values["noted"] == {"invalid UTF-8 replaced": 1}
    assert "invalid UTF-8 replaced" in dict(rows[0]["steps"])["ingest"]
    rows, records = ingest(tmp_path / "work", tmp_path, {"on_invalid_utf8": "skip"}, kind=kind, include=["bad.*"])
    assert rows == [] and dropped(records) == {"invalid UTF-8": 1}
    with pytest.raises(DataError, match="bad.*not UTF-8"):
        ingest(tmp_path / "work", tmp_path, {"on_invalid_utf8": "fail"}, kind=kind, include=["bad.*"])


def test_an_escaped_lone_surrogate_meets_the_policy_of_invalid_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud800y"}\n{"text": "\\ud83d\\ude00"}\n')
    rows, records = ingest(tmp_path / "work", tmp_path, kind="jsonl")
    assert [row["text"] for row in rows] == ["x\ufffdy", "😀"]
    assert records[0].values["noted"] == {"invalid UTF-8 replaced": 1}


def test_blank_documents_are_dropped_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " \\n\\t"}\n{"text": "x"}\n')
    rows, records = ingest(tmp_path / "work", tmp_path, kind="jsonl")
    assert [row["text"] for row in rows] == ["x"]
    assert dropped(records) == {"empty": 2} and records[0].values["documents"] == 3


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{", "not JSON"),
        ("[1]", "found a list"),
        ('{"body": "x"}', "no text in 'text'.*body"),
        ('{"text": 3}', "no text"),
    ],
)
def test_a_bad_record_is_refused_by_file_and_line_or_counted(tmp_path, line, problem):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + '\n{"text": "also"}\n')
    with pytest.raises(DataError, match=f"a.jsonl:2: .*{problem}"):
        ingest(tmp_path / "work", tmp_path, kind="jsonl")
    rows, records = ingest(tmp_path / "work", tmp_path, {"on_bad_record": "skip"}, kind="jsonl")
    assert [row["text"] for row in rows] == ["good", "also"] and dropped(records) == {"bad record": 1}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_truncated_file_is_named(tmp_path, formats, name):
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    kind = "parquet" if name.endswith("parquet") else "jsonl"
    with pytest.raises(DataError, match=name):
        ingest(tmp_path / "work", tmp_path / name, kind=kind, text_field="body")


def test_missing_columns_and_empty_corpora_are_named(tmp_path, formats):
    with pytest.raises(DataError, match="no column 'text'; it has key, body, where"):
        ingest(tmp_path / "work", tmp_path / "a.parquet", kind="parquet")
    with pytest.raises(DataError, match="nowhere: no such file"):
        ingest(tmp_path / "work", tmp_path / "nowhere", kind="tree")
    with pytest.raises(DataError, match="empty corpus"):
        ingest(tmp_path / "work", tmp_path, kind="tree", include=["*.rs"])


def test_shards_are_cut_by_bytes_and_lose_nothing(tmp_path, texts, formats):
    rows, records = ingest(
        tmp_path / "work", tmp_path / "a.jsonl", {"shard_bytes": 5000}, kind="jsonl", text_field="body"
    )
    (record,) = records
    assert len(record.files) > 5 and sorted(row["text"] for row in rows) == sorted(texts)
    assert all(shard["bytes"] < 5000 + 2000 for shard in record.values["shards"])


def test_an_added_file_changes_the_key_of_one_task(tmp_path, tree):
    config = SourceConfig(kind="tree", path=str(tree))
    settings = IngestConfig(sources={"web": config}, shard_bytes=8000)
    before = {task.key for task in make_tasks("web", config, settings)}
    (tree / "b" / "0.txt").write_text("between the others by name")
    after = {task.key for task in make_tasks("web", config, settings)}
    assert len(before) > 4 and len(after - before) == 1
