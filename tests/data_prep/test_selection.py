"""Duplicates and limits: which documents stay, and what is recorded of those that go."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import limit, lists
from data_prep.documents import LIMIT_SALT, Part, mix
from data_prep.manifest import Folder
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
