"""Duplicates and limits: which documents stay, and what is recorded of those that go."""

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import limit, lists
from data_prep.documents import LIMIT_SALT, Part, iterate, mix
from data_prep.engine import queries
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder
from data_prep.pipeline import SELECTING
from maxlm.data.shards import document_hash
from maxlm.errors import DataError


def source(path, texts, **fields):
    with open(path, "w") as file:
        for key, text in texts.items():
            file.write(json.dumps({"id": key, "text": text}) + "\n")
    return {"kind": "jsonl", "path": str(path), "id_field": "id"} | fields


def kept(prepared, name):
    return sorted(row["id"] for row in prepared.documents(name))


def test_the_first_of_equal_texts_is_kept_by_source_and_id(tmp_path, prepare):
    # By name `aaa` comes first, by the order of the sources `zzz` does.
    sources = {
        "zzz": source(tmp_path / "z.jsonl", {"9": "same text", "5": "same text", "7": "only in z"}),
        "aaa": source(tmp_path / "a.jsonl", {"1": "same text", "2": "only in a", "3": "Same text"}),
    }
    prepared = prepare(ingest={"sources": sources}, dedup={"exact": True})
    assert kept(prepared, "zzz") == ["zzz/5", "zzz/7"]
    assert kept(prepared, "aaa") == ["aaa/2", "aaa/3"]
    steps = {row["id"]: dict(row["steps"]) for row in prepared.documents("zzz")}
    assert steps["zzz/5"]["exact"] == "3 copies" and "exact" not in steps["zzz/7"]
    assert re.search(r"duplicate +-2 ", prepared.printed)


def test_without_dedup_all_copies_stay(tmp_path, prepare):
    sources = {"web": source(tmp_path / "z.jsonl", {"9": "same text", "5": "same text"})}
    assert kept(prepare(ingest={"sources": sources}), "web") == ["web/5", "web/9"]


def test_a_repeated_id_is_refused_unless_its_copies_are_duplicates(tmp_path, prepare):
    lines = [{"id": 1, "text": "x y"}, {"id": 1, "text": "x y"}, {"id": 2, "text": "other"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ingest = {"sources": {"web": {"kind": "jsonl", "path": str(path), "id_field": "id"}}}
    assert kept(prepare(ingest=ingest, dedup={"exact": True}), "web") == ["web/1", "web/2"]
    with pytest.raises(DataError, match="source 'web'.*id 'web/1'"):
        prepare(ingest=ingest)


def test_an_id_of_two_texts_is_refused_where_one_of_them_has_a_copy(tmp_path, prepare):
    lines = [{"id": 1, "text": "x y"}, {"id": 1, "text": "z"}, {"id": "a", "text": "x y"}, {"id": "d", "text": "only"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ingest = {"sources": {"web": {"kind": "jsonl", "path": str(path), "id_field": "id"}}}
    with pytest.raises(DataError, match="source 'web'.*id 'web/1'"):
        prepare(ingest=ingest)
    # By its id the copy that bears the repeated id stays, unless another source has that text first.
    with pytest.raises(DataError, match="source 'web'.*id 'web/1'"):
        prepare(ingest=ingest, dedup={"exact": True})
    first = {"one": source(tmp_path / "b.jsonl", {"0": "x y"})}
    prepared = prepare(ingest={"sources": first | ingest["sources"]}, dedup={"exact": True})
    assert kept(prepared, "web") == ["web/1", "web/d"]


def cut_tags(folder, key, part):
    """Takes what stands in brackets out of the texts."""
    marks = Marks()
    for table in iterate(part, ("row", "text")):
        for row, text in zip(table["row"].to_pylist(), table["text"].to_pylist(), strict=True):
            edits = [(*match.span(), "") for match in re.finditer(r"\[\w+\]", text)]
            if edits:
                marks.edit(row, edits, "cut", "cut")
    return commit(folder, key, {part.name: marks})


def test_texts_are_compared_as_earlier_stages_left_them(tmp_path, prepare, monkeypatch):
    """The hash of such a text, which later data sets are compared by, is that of what is left of it."""
    read, texts = [], {"1": "[a]same text", "2": "same text", "3": "same[b] text", "4": "[a]other"}

    def keep_hashes(this, parts):
        read.extend(row for part in parts for table in iterate(part, ("id", "hash")) for row in table.to_pylist())
        return parts

    monkeypatch.setitem(
        SELECTING,
        "language",
        lambda this, parts: this.apply("language", parts, this.map_parts("language", parts, cut_tags, 1)),
    )
    monkeypatch.setitem(SELECTING, "rules", keep_hashes)
    prepared = prepare(ingest={"sources": {"web": source(tmp_path / "a.jsonl", texts)}}, dedup={"exact": True})
    assert kept(prepared, "web") == ["web/1", "web/4"]
    expected = {"web/1": "same text", "web/4": "other"}
    assert {row["id"]: row["hash"] for row in read} == {
        key: hashlib.sha256(text.encode()).digest()[:16] for key, text in expected.items()
    }


def test_an_interrupted_search_goes_on_with_the_next_range(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(queries, "RANGE_ROWS", 20)
    texts = {f"{i:03d}": f"text {i % 60}" for i in range(100)}
    sections = {"ingest": {"sources": {"web": source(tmp_path / "a.jsonl", texts)}}, "dedup": {"exact": True}}
    real, seen = queries.shared, []

    def stop(*arguments):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(queries, "shared", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(**sections)
    assert kept(prepare(**sections), "web") == [f"web/{i:03d}" for i in range(60)]
    # Five ranges of texts, of which three were done, and five of ids.
    assert len(seen) == 4 + 2 + 5


def test_a_stage_that_found_nothing_says_so(prepare):
    assert "no duplicate among 120 documents" in prepare(dedup={"exact": True}).printed
    with pytest.raises(DataError, match="expect_matches"):
        prepare(dedup={"exact": True, "expect_matches": True})


def test_max_bytes_keeps_a_stable_choice_below_the_limit(tmp_path, prepare):
    documents = {f"{i:03d}": f"document {i:03d} " * 10 for i in range(100)}

    def choose(limit):
        sources = {"web": source(tmp_path / "z.jsonl", documents, max_bytes=limit)}
        prepared = prepare(ingest={"sources": sources})
        assert limit - 140 < prepared.manifests["web"].bytes <= limit
        return kept(prepared, "web")

    some, more = choose(2000), choose(7000)
    assert set(some) < set(more), "a larger limit keeps what the smaller kept"
    assert some != sorted(f"web/{key}" for key in documents)[: len(some)], "the choice is not alphabetical"


@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=60), share=st.floats(0.001, 0.999))
def test_the_limit_is_exact_whatever_the_sizes(tmp_path, sizes, share):
    """What is kept is the longest prefix, in the order of the hash, that fits."""
    folder, parts = Folder(tmp_path / str(abs(hash((*sizes, share))))), []
    hashes = np.array([document_hash(f"web/{number}") for number in range(len(sizes))], np.uint64)
    for number, rows in enumerate(np.array_split(np.arange(len(sizes)), 3)):
        path = folder.path / "part" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {
            "row": np.arange(len(rows), dtype=np.uint32),
            "id_hash": hashes[rows],
            "bytes": np.array(sizes)[rows],
        }
        pq.write_table(pa.table(columns), path)
        parts.append(Part(path, str(number), "web", len(rows), len(rows), sum(columns["bytes"].tolist())))
    max_bytes = int(sum(sizes) * share)
    first = limit.find_limit(folder, "limit", parts, max_bytes).values["first"]
    order = mix(hashes, LIMIT_SALT)
    kept = order < first
    assert (
        sum(np.array(sizes)[kept])
        <= max_bytes
        < sum(np.array(sizes)[kept]) + sizes[int(np.flatnonzero(order == first)[0])]
    )
    marked = [limit.mark_excess(folder, f"mark{part.key}", part, first) for part in parts]
    assert lists.total(marked, "dropped")["over max_bytes"][0] == np.count_nonzero(~kept)
