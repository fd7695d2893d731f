"""Documents by their id, and what is written down of them."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maxlm.data import records
from maxlm.data.shards import HASH_DTYPE, HASHES, documents_name
from maxlm.errors import DataError


@pytest.fixture
def shards(two_sources):
    return two_sources["web"]  # ids are SHARD/ROW


def test_every_document_is_found_by_its_id(shards):
    for shard, entry in enumerate(shards.manifest.shards):
        for row in range(entry.documents):
            assert records.find(shards, f"{shard}/{row}") == [(shard, row)]
    assert records.find(shards, "3/0") == records.find(shards, "") == []


def test_documents_whose_hashes_collide_are_told_apart_by_their_ids(shards):
    table = np.fromfile(shards.directory / HASHES, HASH_DTYPE)
    number = 57
    table["hash"][number - 2 : number + 2] = table["hash"][number]
    table.tofile(shards.directory / HASHES)
    place = tuple(int(part) for part in table[["shard", "row"]][number])
    assert records.find(shards, "{}/{}".format(*place)) == [place]


def test_rows_come_in_the_order_asked_for_and_twice_where_asked_twice(shards):
    places = [(2, 5), (0, 39), (2, 0), (2, 5)]
    rows = records.read(shards, places)
    assert [row["id"] for row in rows] == ["2/5", "0/39", "2/0", "2/5"]
    assert set(rows[0]) == {"id", "bytes"}
    assert records.read(shards, places, ["bytes"])[1].keys() == {"bytes"}
    assert records.read(shards, []) == []
    assert records.some_ids(shards, 3) == ["0/0", "0/1", "0/2"] and len(records.some_ids(shards, 99)) == 40


def test_only_the_row_groups_asked_for_are_read(shards, monkeypatch):
    path = shards.directory / documents_name(1)
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    read, groups = pq.ParquetFile.read_row_group, []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, *a, **k: groups.append(group) or read(self, group, *a, **k),
    )
    rows = [6, 7, 13, 39]
    assert [row["id"] for row in records.read(shards, [(1, row) for row in rows])] == [f"1/{row}" for row in rows]
    assert groups == [0, 1, 5]


def test_values_of_any_type_are_what_json_has(shards):
    path = shards.directory / documents_name(0)
    rows = pq.read_table(path).num_rows
    columns = {
        "id": pa.array([f"0/{row}" for row in range(rows)], pa.large_string()),
        "steps": pa.array([[("ingest", "a:1"), ("dedup", "kept")]] * rows, pa.map_(pa.string(), pa.string())),
        "score": pa.array([float("nan"), 0.5] * (rows // 2)),
        "when": pa.array([datetime(2024, 5, 1, tzinfo=UTC)] * rows),
        "tags": pa.array([["a", "b"]] * rows),
        "kept": pa.array([True] * rows),
        "url": pa.array([None] * rows, pa.string()),
    }
    pq.write_table(pa.table(columns), path)
    first, second = records.read(shards, [(0, 0), (0, 1)])
    assert first["steps"] == [("ingest", "a:1"), ("dedup", "kept")] and first["tags"] == ["a", "b"]
    assert (first["score"], second["score"], first["url"], first["kept"]) == (None, 0.5, None, True)
    assert first["when"] == "2024-05-01 00:00:00+00:00"


def test_damaged_tables_are_named(shards):
    path = shards.directory / documents_name(1)
    whole = pq.read_table(path)
    pq.write_table(whole.slice(0, 5), path)
    with pytest.raises(DataError, match="documents-00001.parquet: has 5 rows; expected 40"):
        records.read(shards, [(1, 5)])
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="documents-00001.parquet: cannot be read"):
        records.read(shards, [(1, 0)])
    path.unlink()
    with pytest.raises(DataError, match="documents-00001.parquet: cannot be read"):
        records.find(shards, "1/0")
    (shards.directory / HASHES).write_bytes(b"")
    with pytest.raises(DataError, match="documents.hash: cannot be read .* expected 120 entries"):
        records.find(shards, "0/0")
