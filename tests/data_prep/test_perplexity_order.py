"""The order of the documents: by a column in buckets, shuffled inside each, over all output shards."""

import json

import numpy as np
import pyarrow as pa
import pytest

from data_prep import pipeline as stages
from data_prep.config import OrderConfig
from data_prep.documents import read, write_columns
from data_prep.mix.rearrange import order_keys
from maxlm.errors import ConfigError, DataError


@pytest.fixture
def ranked(tmp_path, monkeypatch):
    """Ranks of all documents but every tenth, in a column that a stage before the tokenizer adds: by their length."""

    def add(this, parts):
        order = sorted(
            (bytes_, name) for part in parts for name, bytes_ in zip(*_columns(part, "id", "bytes"), strict=True)
        )
        place = {name: number / len(order) for number, (_, name) in enumerate(order)}
        after = []
        for part in parts:
            names, rows = _columns(part, "id", "row")
            ranks = [place[name] if int(name.split("/")[-1].split(".")[0]) % 10 else None for name in names]
            columns = {
                "length_rank": pa.array(ranks, pa.float32()),
                "length": pa.array([None if rank is None else rank * 100 for rank in ranks], pa.float32()),
            }
            path = tmp_path / f"{part.name}.ranks"
            write_columns(path, part, np.array(rows, np.int64), columns)
            after.append(part.with_columns(path, list(columns), f"{part.key}-ranked"))
        return after

    monkeypatch.setattr(stages, "SELECTING", stages.SELECTING | {"rules": add})


def _columns(part, *names):
    table = read(part, names)
    return [table[name].to_pylist() for name in names]


def bucket(row, buckets):
    return None if row["length_rank"] is None else int(row["length_rank"] * buckets)


@pytest.mark.parametrize("descending", [False, True])
def test_buckets_follow_each_other_and_are_shuffled_inside(tree, prepare, ranked, texts, descending):
    order = {"by": "length_rank", "buckets": 4, "descending": descending}
    ingest = {"sources": {"web": {"kind": "tree", "path": str(tree)}}, "shard_bytes": 12000}
    prepared = prepare(ingest=ingest, shards={"shard_tokens": 4000, "order": order}, validation={"fraction": 0.2})
    rows = prepared.documents("web")
    assert len(prepared.manifests["web"].shards) > 3
    assert sorted(row["text"] for row in rows + prepared.documents("web-val")) == sorted(texts)
    found = [bucket(row, 4) for row in rows]
    known = [one for one in found if one is not None]
    assert known == sorted(known, reverse=descending) and set(known) == {0, 1, 2, 3}
    places = np.array([row["length_rank"] for row in rows if row["length_rank"] is not None])
    for number in range(4):
        inside = places[np.array(known) == number]
        assert len(inside) > 10 and abs(np.corrcoef(np.arange(len(inside)), inside)[0, 1]) < 0.6
    unranked = [place for place, one in enumerate(found) if one is None]
    assert len(unranked) > 5 and min(unranked) < len(rows) / 3 and max(unranked) > len(rows) * 2 / 3
    assert f"{len(unranked)} of {len(rows)} documents have no length_rank; they lie anywhere" in prepared.printed
    held = [bucket(row, 4) for row in prepared.documents("web-val") if row["length_rank"] is not None]
    assert held != sorted(held) and held != sorted(held, reverse=True), "held-out documents stay shuffled"
    assert "copy" not in rows[0]


def test_another_order_tokenizes_nothing_and_does_not_depend_on_the_workers(tmp_path, tree, prepare, ranked, contents):
    sections = {"ingest": {"sources": {"web": {"kind": "tree", "path": str(tree)}}, "shard_bytes": 12000}}
    shards = {"shard_tokens": 4000}
    prepare(**sections, shards=shards, output=str(tmp_path / "one"))
    plain = contents(tmp_path / "one")
    ordered = shards | {"order": {"by": "length_rank", "buckets": 3}}
    again = prepare(**sections, shards=ordered, output=str(tmp_path / "one"))
    assert "tokenize: 9 of 9 shards up to date\nmix: 0 of 9 shards up to date, 9 made" in again.printed
    prepare(**sections, shards=ordered, output=str(tmp_path / "two"), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != plain
    prepare(**sections, shards=shards, output=str(tmp_path / "one"))
    assert {name: data for name, data in contents(tmp_path / "one").items() if name.endswith(".bin")} == {
        name: data for name, data in plain.items() if name.endswith(".bin")
    }


def test_sources_that_are_not_named_stay_shuffled(tree, prepare, ranked):
    sources = {name: {"kind": "tree", "path": str(tree / name)} for name in "ab"}
    shuffled = prepare(ingest={"sources": sources})
    plain = {name: [row["id"] for row in shuffled.documents(name)] for name in "ab"}
    order = {"by": "length_rank", "buckets": 2, "sources": ["b"]}
    prepared = prepare(ingest={"sources": sources}, shards={"order": order})
    assert [row["id"] for row in prepared.documents("a")] == plain["a"]
    ids = [row["id"] for row in prepared.documents("b")]
    assert ids != plain["b"] and sorted(ids) == sorted(plain["b"])


def test_keys_are_those_of_equal_parts_of_the_range():
    keys = np.random.default_rng(0).integers(0, 2**64, 30_000, np.uint64)
    keys[:2] = 0, 2**64 - 1
    ranks = np.linspace(0, 1, len(keys), endpoint=False)
    ranks[-1] = np.nextafter(1, 0)
    for buckets in (1, 3, 7, 16):
        ordered = order_keys(keys, ranks, OrderConfig(by="x", buckets=buckets))
        shards = np.array([int(key) * buckets >> 64 for key in ordered])
        assert (shards == np.minimum(ranks * buckets, buckets - 1).astype(int)).all()
        back = order_keys(keys, ranks, OrderConfig(by="x", buckets=buckets, descending=True))
        assert (np.array([int(key) * buckets >> 64 for key in back]) == buckets - 1 - shards).all()
    assert (order_keys(keys, np.full(len(keys), np.nan), OrderConfig(by="x")) == keys).all()


def test_a_column_that_is_no_rank_or_not_there_is_one_line(tree, prepare, ranked):
    with pytest.raises(DataError, match=r"'length' of web has values from .* to 99.*, expected a rank .* length_rank"):
        prepare(shards={"order": {"by": "length"}})
    with pytest.raises(DataError, match="shards.order.by: documents of 'web' have no column 'prose_rank'; .*length"):
        prepare(shards={"order": {"by": "prose_rank"}})
    with pytest.raises(DataError, match="'url' of 'web' has string, expected numbers"):
        prepare(shards={"order": {"by": "url"}})
    with pytest.raises(ConfigError, match="shards.order.sources names 'nothing', ingest.sources has web"):
        prepare(shards={"order": {"by": "length_rank", "sources": ["nothing"]}})


def test_a_file_says_the_same_as_sections(tmp_path, pipeline, command):
    import yaml

    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline().model_dump(mode="json", exclude_none=True)))
    done = command("run", path, "shards.order={by: prose_rank}")
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1 and "prose_rank" in done.stderr
    done = command("run", path, "shards.order={by: prose_rank, buckets: 0}")
    assert done.returncode == 2 and "shards.order.buckets" in done.stderr
    assert json.loads(command("schema").stdout)["$defs"]["OrderConfig"]
