"""Raw files of every kind become the same documents, and bad input is counted or refused as the pipeline says."""

import bz2
import gzip
import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest import jsonl
from data_prep.ingest.columns import table_of
from data_prep.ingest.files import find_files
from data_prep.ingest.records import Document, Rejected
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


LINES = b"".join(json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(500))


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress}


@pytest.mark.parametrize("ending", COMPRESS)
def test_streams_one_after_the_other_are_one_and_a_cut_one_is_named(tmp_path, ending):
    path = tmp_path / f"a.jsonl.{ending}"
    cut = LINES.index(b"\n", 4000) - 7
    data = COMPRESS[ending](LINES[:cut]) + COMPRESS[ending](LINES[cut:])
    path.write_bytes(data)
    assert len(ingest(tmp_path / "work", path, kind="jsonl")[0]) == 500
    for lost in (1, 9, len(data) // 4, len(data) // 2):
        path.write_bytes(data[:-lost])
        with pytest.raises(DataError, match=f"a.jsonl.{ending}: cannot be read.*fetch it again"):
            ingest(tmp_path / "work", path, kind="jsonl")
    path.write_bytes(LINES)
    with pytest.raises(DataError, match=f"a.jsonl.{ending}: cannot be read"):
        ingest(tmp_path / "work", path, kind="jsonl")


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "a.jsonl: looks like UTF-16.*iconv"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "a.jsonl: looks like UTF-16"),
        (
            "a.json.gz",
            gzip.compress('{"text": "a"}\n'.encode("utf-32"), mtime=0),
            "a.json.gz: looks like UTF-16 or UTF-32",
        ),
        ("a.jsonl", b'[\n {"text": "a"}\n]', "a.jsonl:1: not JSON"),
        ("a.jsonl", LINES[:-9], "a.jsonl:500: not JSON"),
        ("a.jsonl", LINES + b"\0" * 99, "a.jsonl:501: not JSON"),
        ("a.jsonl", LINES.replace(b'7"}', b'7\t"}'), "a.jsonl:8: not JSON"),
        ("a.jsonl", LINES + b'{"text": "a"} {"text": "b"}\n', "a.jsonl:501: not JSON"),
        ("a.jsonl", LINES + b'{"text":\n"a"}\n', "a.jsonl:501: not JSON"),
        ("a.jsonl", LINES + b'{"text": "a"}{"text":\n"b"}\n', "a.jsonl:501: not JSON"),
        ("a.parquet", b"", "a.parquet: not a parquet file"),
        ("a.parquet", LINES, "a.parquet: not a parquet file"),
        ("a.parquet", pa.table({"text": [1, 2]}), "a.parquet: the column 'text' is of type int64; expected strings"),
        ("a.parquet", pa.table({"text": [["a"]]}), "the column 'text' is of type list"),
        ("a.parquet", pa.table({"text": ["a", None]}), "a.parquet:1: no text in 'text'"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, message):
    if isinstance(data, pa.Table):
        pq.write_table(data, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        ingest(tmp_path / "work", tmp_path, kind="parquet" if name.endswith("parquet") else "jsonl")
    assert "\n" not in str(error.value)


def test_a_truncated_parquet_file_is_named(tmp_path, formats):
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="a.parquet: not a parquet file"):
        ingest(tmp_path / "work", tmp_path / "a.parquet", kind="parquet", text_field="body")


@pytest.mark.parametrize("block", [64, 2**23])
def test_a_line_that_is_too_long_is_a_bad_record(tmp_path, monkeypatch, block):
    monkeypatch.setattr("data_prep.ingest.jsonl.LONGEST_LINE", 1000)
    monkeypatch.setattr("data_prep.ingest.jsonl.BLOCK_BYTES", block)
    lines = [json.dumps({"text": text}) for text in ("one", "x" * 5000, "three", "y" * 5000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows, records = ingest(tmp_path / "work", tmp_path, {"on_bad_record": "skip"}, kind="jsonl")
    if block == 64:
        assert [(row["id"], row["text"]) for row in rows] == [("web/a.jsonl:1", "one"), ("web/a.jsonl:3", "three")]
        assert dropped(records) == {"bad record": 2}
        with pytest.raises(DataError, match="a.jsonl:2: not JSON .a line of more than 1,000 bytes"):
            ingest(tmp_path / "work", tmp_path, kind="jsonl")
    else:
        # A line that came in one block needs no gathering.
        assert len(rows) == 4


def test_a_file_that_is_too_large_for_memory_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.ingest.tree.LONGEST_DOCUMENT", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    (tmp_path / "b.txt").write_text("x" * 10)
    rows, records = ingest(tmp_path / "work", tmp_path, kind="tree")
    assert [row["id"] for row in rows] == ["web/b.txt"] and sum(dropped(records).values()) == 1


def test_kinds_of_columns_that_hold_text_or_ids(tmp_path):
    columns = {
        "string": pa.array(["a", "b"]),
        "large": pa.array(["a", "b"], pa.large_string()),
        "view": pa.array(["a", "b"], pa.string_view()),
        "binary": pa.array([b"a", b"b"]),
        "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns | {"id": pa.array([7, 8], pa.int32())}), tmp_path / "a.parquet")
    for name in columns:
        rows, _ = ingest(
            tmp_path / "work",
            tmp_path / "a.parquet",
            kind="parquet",
            text_field=name,
            id_field="id",
            url_field="string",
        )
        assert [(row["id"], row["text"], row["url"]) for row in rows] == [("web/7", "a", "a"), ("web/8", "b", "b")]
    for ids in (["x", 3], [3, 4], ["x", "y"]):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "t", "id": one}) + "\n" for one in ids))
        rows, _ = ingest(tmp_path / "work", tmp_path / "a.jsonl", kind="jsonl", id_field="id")
        assert sorted(row["id"] for row in rows) == sorted(f"web/{one}" for one in ids)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
records = st.fixed_dictionaries(
    {"text": st.text(max_size=12) | st.sampled_from([" ", "\u2003\n", "\x1f", "a\0b"])},
    optional={"id": st.integers(-5, 5) | st.text(max_size=3) | st.none(), "url": values, "other": values},
)
lines = st.lists(
    records.map(json.dumps)
    | records.map(partial(json.dumps, ensure_ascii=False))
    | st.sampled_from(["", "{", "[]", "3", '{"text": 1}', '{"text": "\\ud800"}'])
)


@pytest.mark.parametrize("options", [{}, {"id_field": "id", "url_field": "url"}])
@settings(derandomize=True, deadline=None, max_examples=150)
@given(lines=lines)
def test_columns_and_single_records_give_the_same_documents(tmp_path_factory, options, lines):
    path = tmp_path_factory.mktemp("same") / "a.jsonl"
    path.write_text("\n".join(lines))
    config = SourceConfig(kind="jsonl", path=str(path), **options)
    policy = IngestConfig(sources={"web": config}, on_bad_record="skip")
    (file,) = find_files("web", config)

    def read():
        found, rejected = [], []
        for one in jsonl.read(file, config, policy):
            if isinstance(one, Rejected):
                rejected += [one.reason] * one.count
            else:
                found += (table_of([one]) if isinstance(one, Document) else one).to_pylist()
        return found, sorted(rejected)

    with pytest.MonkeyPatch.context() as patch:
        fast = read()
        patch.setattr(jsonl, "as_documents", lambda *_: None)
        assert fast == read()


def test_records_deeper_than_python_reads_are_taken_alone_and_among_others(tmp_path):
    deep = b'{"text": "deep", "other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    for neighbours in (b"", LINES, b"\n"):
        (tmp_path / "a.jsonl").write_bytes(neighbours + deep)
        rows, _ = ingest(tmp_path / "work", tmp_path / "a.jsonl", kind="jsonl")
        assert "deep" in [row["text"] for row in rows]


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
