"""Lists and columns over a shard: readers see what the stages left, in whatever order and however it is read."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest

from data_prep import documents
from data_prep.config import IngestConfig, SourceConfig
from data_prep.documents import Part, iterate, read, write_columns
from data_prep.ingest.shards import make_tasks
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder

TEXTS = [f"{i}: añb漢字c " * (1 + i % 5) for i in range(50)]


@pytest.fixture(params=[4096, 7])
def part(tmp_path, monkeypatch, request):
    """A part of 50 documents, in one row group or in several."""
    monkeypatch.setattr("data_prep.ingest.shards.ROW_GROUP", request.param)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source = SourceConfig(kind="jsonl", path=str(path))
    (task,) = make_tasks("web", source, IngestConfig(sources={"web": source}))
    record = task.function(Folder(tmp_path / "ingest"), task.key, *task.arguments)
    (counts,) = record.values["shards"]
    file = Folder(tmp_path / "ingest").file(task.key, "00000.parquet")
    return Part(file, "key", "web", counts["documents"], **counts)


def with_marks(part, folder, stage, marks):
    record = commit(folder, stage, {part.name: marks})
    entry = record.values["lists"][part.name]
    path = folder.file(stage, f"{part.name}.parquet")
    return part.with_list(stage, path, stage, entry["documents"], entry["bytes"]), entry


def random_edits(text, generator):
    """Up to three pieces of whole characters, each replaced by nothing, or by another text."""
    places = sorted(generator.sample(range(len(text) + 1), 2 * generator.randint(1, 3)))
    at = [len(text[:place].encode()) for place in places]
    return [(a, b, generator.choice(["", "", "新"])) for a, b in zip(at[::2], at[1::2], strict=True)]


def edited(text, edits):
    data = text.encode()
    for start, stop, new in reversed(edits):
        data = data[:start] + new.encode() + data[stop:]
    return data.decode()


def test_edits_of_several_stages_apply_one_after_the_other(tmp_path, part):
    generator, expected = random.Random(0), dict(enumerate(TEXTS))
    folder = Folder(tmp_path / "lists")
    for stage in ("first", "second", "third"):
        marks = Marks()
        for row in generator.sample(sorted(expected), 20):
            if generator.random() < 0.2:
                marks.drop(row, len(expected.pop(row).encode()), "bad")
            else:
                edits = random_edits(expected[row], generator)
                marks.edit(row, edits, f"{stage} cut", "cut")
                expected[row] = edited(expected[row], edits)
        part, entry = with_marks(part, folder, stage, marks)
        assert sum(count for count, _ in (entry["dropped"] | entry["changed"]).values()) == 20
    table = read(part, ("row", "text", "bytes", "steps"))
    assert table["row"].to_pylist() == sorted(expected)
    assert table["text"].to_pylist() == [expected[row] for row in sorted(expected)]
    assert table["bytes"].to_pylist() == [len(expected[row].encode()) for row in sorted(expected)]
    assert part.documents == len(expected) and part.bytes == sum(len(text.encode()) for text in expected.values())
    steps = dict(zip(table["row"].to_pylist(), map(dict, table["steps"].to_pylist()), strict=True))
    assert any({"first", "second"} <= set(one) for one in steps.values())
    assert all(one["ingest"] == f"a.jsonl:{row + 1}" for row, one in steps.items())


def test_added_columns_are_read_row_by_row_and_replace_those_of_the_shard(tmp_path, part):
    marks = Marks()
    for row in (0, 9, 30, 49):
        marks.drop(row, len(TEXTS[row].encode()), "bad")
    part, _ = with_marks(part, Folder(tmp_path / "lists"), "stage", marks)
    rows = read(part, ("row",))["row"].to_numpy().astype(np.int64)
    columns = {"language": pa.array([f"l{row}" for row in rows]), "score": pa.array(rows * 0.5)}
    write_columns(tmp_path / "columns.parquet", part, rows, columns)
    part = part.with_columns(tmp_path / "columns.parquet", list(columns), "other")
    assert "score" in part.pedigree and part.pedigree.count("language") == 1
    for table in (
        read(part, ("row", "score", "language")),
        pa.concat_tables(iterate(part, ("language", "row", "score"))),
    ):
        assert table["language"].to_pylist() == [f"l{row}" for row in table["row"].to_pylist()]
        assert table["score"].to_pylist() == [row * 0.5 for row in table["row"].to_pylist()]
        assert table.num_rows == 46


def test_a_list_is_known_by_its_content(tmp_path, part):
    """The same marks in another order are the same list; another note is another."""
    contents = set()
    for number, rows in enumerate([(3, 5, 8), (8, 5, 3), (3, 5, 9)]):
        marks = Marks()
        for row in rows:
            marks.note(row, "seen")
        _, entry = with_marks(part, Folder(tmp_path / "lists"), f"stage{number}", marks)
        contents.add(entry["content"])
    assert len(contents) == 2
    assert documents.read(part, ("row",)).num_rows == 50
