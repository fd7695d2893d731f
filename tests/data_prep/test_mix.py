"""Shares of tokens, epochs and copies: what is taken of each source, and which documents."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_text

from data_prep.config import MixConfig, UpsampleConfig
from data_prep.mix.copies import Copying
from data_prep.tokenize.runs import Run
from maxlm.config import validate
from maxlm.data import records
from maxlm.data.shards import Shards
from maxlm.errors import ConfigError, DataError

WORDS = {"a": 300, "b": 60, "c": 20}


@pytest.fixture
def sources(tmp_path):
    """Three sources of 300, 60 and 20 documents; of b, every third has near copies in it."""
    made = {}
    for number, (name, count) in enumerate(WORDS.items()):
        lines = [{"id": f"{name}{i}", "text": make_text(1000 * number + i), "score": i / count} for i in range(count)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        made[name] = {"kind": "jsonl", "path": str(path), "id_field": "id"}
    return {"sources": made, "shard_bytes": 20_000}


@pytest.fixture
def mixed(tmp_path, prepare, sources):
    """The documents of each source, {source: {id: number of copies}}, the rows of the table, and what was printed."""

    def call(mix, **sections):
        values = {"ingest": sources, "shards": {"shard_tokens": 4000}} | sections
        prepared = prepare(**values, mix=mix)
        counts = {}
        for name in (one for one in prepared.manifests if not one.endswith("-val")):
            rows = prepared.documents(name)
            counts[name] = Counter(row["id"] for row in rows)
            numbers = {}
            for row in rows:
                numbers.setdefault(row["id"], []).append(row["copy"])
            assert all(sorted(found) == list(range(len(found))) for found in numbers.values())
        report = json.loads((tmp_path / "out" / ".work" / "test" / "mix.json").read_text())
        table = {row["source"]: row for row in report["sources"]}
        for name, row in table.items():
            assert row["taken"] == (prepared.manifests[name].tokens if name in prepared.manifests else 0)
        return counts, table, prepared

    return call


def longest(prepared, name):
    shards = Shards(prepared.directories[name])
    return int(np.diff(shards.ends(0, len(shards)), prepend=0).max())


def test_shares_are_those_wanted_up_to_half_a_document(mixed):
    weights = {"a": 5, "b": 3, "c": 2}
    for tokens in (6000, 60_000):
        counts, table, prepared = mixed({"tokens": tokens, "weights": weights, "max_epochs": {"b": 9, "c": 9}})
        for name, weight in weights.items():
            row = table[name]
            assert row["wanted"] == tokens * weight / 10 and row["share_wanted"] == weight / 10
            assert abs(row["taken"] - row["wanted"]) <= longest(prepared, name) / 2
            assert row["epochs"] == pytest.approx(row["taken"] / row["available"])
        assert max(counts["a"].values()) == 1
        assert sum(row["share"] for row in table.values()) == pytest.approx(1)
    assert set(counts["c"].values()) <= {2, 3, 4} and len(counts["c"]) == WORDS["c"]


def test_a_larger_budget_contains_a_smaller_one_and_the_rest_follows_the_seed(mixed):
    mix = {"weights": {"a": 2, "b": 1, "c": 1}, "max_epochs": {"c": 4}}
    small, middle, large = (mixed(mix | {"tokens": tokens})[0] for tokens in (5000, 9000, 10_000))
    for name in WORDS:
        assert not small[name] - middle[name] and not middle[name] - large[name]
    assert sum(map(len, small.values())) < sum(map(len, large.values()))
    other = mixed(mix | {"tokens": 5000}, seed=7)[0]
    assert other["a"] != small["a"]


def test_as_much_as_the_sources_allow(mixed):
    counts, table, _ = mixed({"weights": {"a": 1, "b": 1, "c": 2}, "max_epochs": {"c": 3}})
    short = [name for name, row in table.items() if row["taken"] == row["available"] * {"c": 3}.get(name, 1)]
    assert len(short) == 1, "one source bounds the whole, and is used up"
    assert set(counts[short[0]].values()) == {3 if short == ["c"] else 1}
    assert len(counts[short[0]]) == WORDS[short[0]]


def test_without_weights_all_sources_give_the_same_share_of_their_documents(mixed):
    counts, table, _ = mixed({})
    assert {name: len(found) for name, found in counts.items()} == WORDS
    whole = sum(row["available"] for row in table.values())
    counts, table, _ = mixed({"tokens": whole // 3})
    for name, count in WORDS.items():
        assert abs(len(counts[name]) / count - 1 / 3) < 3 * (2 / 9 / count) ** 0.5
    assert sum(row["taken"] for row in table.values()) == pytest.approx(whole / 3, abs=500)


def test_a_group_has_one_weight_and_is_read_evenly(mixed):
    mix = {"weights": {"a": 1, "rest": 1}, "groups": {"rest": ["b", "c"]}, "max_epochs": {"rest": 3}, "tokens": 60_000}
    counts, table, prepared = mixed(mix)
    epochs = [table[name]["epochs"] for name in "bc"]
    assert min(epochs) > 1.3 and max(epochs) < min(epochs) + 0.6
    assert table["b"]["taken"] + table["c"]["taken"] == pytest.approx(30_000, abs=longest(prepared, "b"))
    assert "rest" in prepared.printed


def test_a_source_that_has_too_little_stops_or_shrinks_all(mixed, tmp_path):
    mix = {"tokens": 30_000, "weights": {"a": 1, "b": 1, "c": 1}, "max_epochs": {"b": 4, "c": 2}}
    with pytest.raises(DataError, match=r"'c' has [\d,]+ tokens in 2 epochs, and its share is 10,000 of 30,000; lower"):
        mixed(mix)
    counts, table, prepared = mixed(mix | {"exhausted": "shrink"})
    assert set(counts["c"].values()) == {2} and len(counts["c"]) == WORDS["c"]
    assert table["c"]["wanted"] == 10_000 > table["c"]["taken"]
    for name in "ab":
        assert table[name]["taken"] == pytest.approx(table["c"]["taken"], abs=longest(prepared, name))
    assert "warning: mix: 'c' has" in prepared.printed


def test_a_weight_of_nothing_leaves_a_source_out_and_held_out_documents_stay(mixed):
    counts, table, prepared = mixed({"weights": {"a": 1, "b": 0, "c": 1}}, validation={"fraction": 0.2})
    assert set(counts) == {"a", "c"} and table["b"]["taken"] == table["b"]["share"] == 0
    assert {"a-val", "b-val", "c-val"} < set(prepared.manifests)
    plain = {name: [row["id"] for row in prepared.documents(name)] for name in ("a-val", "b-val", "c-val")}
    _, _, again = mixed({"weights": {"a": 1, "b": 3, "c": 1}, "max_epochs": {"c": 8}}, validation={"fraction": 0.2})
    assert plain == {name: [row["id"] for row in again.documents(name)] for name in plain}
    assert "copy" not in again.documents("b-val")[0]


def test_copies_lie_apart_and_every_one_is_found_by_its_id(mixed):
    counts, _, prepared = mixed({"weights": {"a": 1, "b": 2, "c": 2}, "max_epochs": {"b": 4, "c": 12}})
    for name in "bc":
        shards, order = Shards(prepared.directories[name]), [row["id"] for row in prepared.documents(name)]
        starts = np.cumsum([0, *(shard.documents for shard in shards.manifest.shards)])
        for document, count in counts[name].items():
            places = sorted(starts[shard] + row for shard, row in records.find(shards, document))
            assert [order[place] for place in places] == [document] * count
        gaps = [b - a for one in set(order) for a, b in _pairs([i for i, name in enumerate(order) if name == one])]
        assert np.mean(gaps) > len(order) / (2 * max(counts[name].values()))
        first = [row["id"] for row in prepared.documents(name) if row["copy"] == 0]
        second = [row["id"] for row in prepared.documents(name) if row["copy"] == 1]
        assert first != second and len(set(first)) == len(first)


def _pairs(places):
    return zip(places, places[1:], strict=False)


def test_another_weight_tokenizes_nothing_and_workers_change_nothing(tmp_path, mixed, contents):
    mix = {"tokens": 9000, "weights": {"a": 2, "b": 1, "c": 1}, "max_epochs": {"c": 4}}
    mixed(mix)
    printed = mixed(mix | {"weights": {"a": 3, "b": 1, "c": 1}})[2].printed
    lines = [line for line in printed.splitlines() if line.startswith(("tokenize:", "mix:", "tokenizer:", "output:"))]
    assert [line for line in lines if " made" in line and not line.startswith("mix")] == []
    assert sum("counts up to date" in line and "made" not in line for line in lines) == 1
    assert "shards up to date, " in " ".join(line for line in lines if line.startswith("mix"))
    one = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "one")
    mixed(mix | {"weights": {"a": 3, "b": 1, "c": 1}}, workers=2)
    assert contents(tmp_path / "out") == one
    assert "output: 3 of 3 directories up to date" in mixed(mix | {"weights": {"a": 3, "b": 1, "c": 1}})[2].printed


def test_the_funnel_counts_copies_and_what_is_left_out(tmp_path, mixed):
    counts, _, prepared = mixed({"tokens": 30_000, "weights": {"a": 1, "b": 1, "c": 1}, "max_epochs": {"c": 6}})
    row = json.loads((tmp_path / "out" / ".work" / "test" / "funnel.json").read_text())[-1]
    assert row["stage"] == "mix"
    left = sum(WORDS.values()) - sum(map(len, counts.values()))
    repeated = sum(sum(found.values()) - len(found) for found in counts.values())
    assert row["dropped"]["not in the mixture"]["documents"] == left > 0
    assert row["changed"]["copies"]["documents"] == repeated > 0
    assert row["after"]["documents"] == row["before"]["documents"] - left + repeated
    assert row["after"]["bytes"] == sum(manifest.bytes for manifest in prepared.manifests.values())
    assert row["sources"]["c"]["documents"] == sum(counts["c"].values())


def upsampled(by="bytes"):
    return {
        "by": by,
        "buckets": [{"min": 0, "copies": 0.5}, {"min": 300, "copies": 1}, {"min": 600, "copies": 3}],
    }


def test_copies_follow_a_column(mixed, prepare, sources):
    sizes = {row["id"]: row["bytes"] for name in WORDS for row in prepare(ingest=sources).documents(name)}
    counts, table, prepared = mixed({"upsample": {"a": upsampled()}})
    few = [counts["a"][one] for one, size in sizes.items() if one.startswith("a/") and size < 300]
    assert set(few) == {0, 1} and abs(np.mean(few) - 0.5) < 0.15
    assert {counts["a"][one] for one, size in sizes.items() if one.startswith("a/") and 300 <= size < 600} == {1}
    assert {counts["a"][one] for one, size in sizes.items() if one.startswith("a/") and size >= 600} == {3}
    assert set(counts["b"].values()) == {1} and table["a"]["taken"] == table["a"]["epoch"] != table["a"]["available"]
    assert " sampled" in prepared.printed
    epochs = mixed({"upsample": {"a": upsampled()}, "weights": {"a": 9, "b": 0, "c": 0}, "max_epochs": {"a": 2}})[0]
    assert all(epochs["a"][one] == 2 * counts["a"][one] for one, size in sizes.items() if counts["a"][one] == 3)
    assert {epochs["a"][one] for one, size in sizes.items() if one.startswith("a/") and size < 300} == {1}


def test_copies_follow_a_label(mixed, sources):
    """The topics of Llama-3-SynE, for which a column of the file stands here."""
    path = Path(sources["sources"]["a"]["path"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    topics = ["science", "sport", "other", None]
    named = [line | {"topic": topics[i % 4]} for i, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in named))
    sources["sources"]["a"]["language_field"] = "topic"
    labels = {"by": "language", "labels": {"science": 2, "sport": 0.25}}
    counts, table, _ = mixed({"upsample": {"a": labels}})
    found = {topic: [counts["a"][f"a/{line['id']}"] for line in named if line["topic"] == topic] for topic in topics}
    assert set(found["science"]) == {2} and set(found["other"]) == set(found[None]) == {1}
    assert set(found["sport"]) == {0, 1} and abs(np.mean(found["sport"]) - 0.25) < 0.15
    with pytest.raises(DataError, match="the column 'bytes' has int64, expected labels"):
        mixed({"upsample": {"a": labels | {"by": "bytes"}}})


def test_clusters_decide_how_often_a_document_occurs(tmp_path, prepare, texts):
    """FineWeb-2: what was on many pages of the web is read more often."""
    popular = max(texts, key=len)
    lines = [{"id": str(i), "text": text} for i, text in enumerate([*texts, *(f"{popular} {w}" for w in ("ba", "ce"))])]
    path = tmp_path / "web.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepared = prepare(
        ingest={"sources": {"web": {"kind": "jsonl", "path": str(path), "id_field": "id"}}},
        dedup={"fuzzy": {"ngram": 2}},
        mix={
            "upsample": {"web": {"by": "cluster_size", "buckets": [{"min": 1, "copies": 1}, {"min": 3, "copies": 5}]}}
        },
    )
    counts = Counter(row["text"] for row in prepared.documents("web"))
    assert sorted(counts.values())[-2:] == [1, 5] and popular in max(counts, key=counts.get)


def run_of(tmp_path, keys, lengths):
    """A run with keys and lengths, and nothing else."""
    tmp_path.mkdir(exist_ok=True)
    run = Run(tmp_path, "train", "web", len(keys), 0, int(sum(lengths)))
    run.file("keys").write_bytes(np.array(keys, "<u8").tobytes())
    run.file("ends").write_bytes(np.cumsum(lengths).astype("<u8").tobytes())
    return run


@pytest.mark.parametrize("epochs", [0.25, 1, 2.5, 7])
def test_every_document_has_as_many_copies_as_its_line_says(tmp_path, monkeypatch, epochs):
    keys = np.random.default_rng(1).integers(0, 2**64, 20_000, np.uint64)
    wanted = np.random.default_rng(2).choice([0, 0.5, 1, 1.75, 3], len(keys))
    monkeypatch.setattr("data_prep.mix.copies.read_column", lambda *_: wanted)
    buckets = [{"min": copies, "copies": copies} for copies in (0, 0.5, 1, 1.75, 3)]
    upsample = validate({"by": "x", "buckets": buckets}, UpsampleConfig, "x")
    counts = np.zeros(len(keys), int)
    for _, rows, places in Copying(upsample, epochs).places(run_of(tmp_path, keys, np.ones(len(keys), int))):
        counts[rows] += 1
        assert len(np.unique(rows)) == len(rows) and places.min() > 0 and places.max() <= epochs
    exact = wanted * epochs
    assert (np.abs(counts - exact) < 1).all()
    for number in (0, 0.5, 1, 1.75, 3):
        assert counts[wanted == number].mean() == pytest.approx(number * epochs, abs=0.03)


def test_settings_that_say_nothing_sensible_are_one_line(mixed):
    for mix, message in (
        ({"weights": {"a": 1, "b": 1}}, "mix.weights: the source 'c' is not named; 0 leaves it out"),
        ({"weights": {"a": 1, "b": 1, "x": 1}}, "mix.weights names the source 'x', ingest.sources has a, b, c"),
        ({"weights": {"a": 0, "b": 0, "c": 0}}, "at least one must be above 0"),
        ({"weights": {"a": 1, "g": 1}, "groups": {"g": ["a", "b", "c"]}}, "the source 'a' is named 2 times"),
        ({"weights": {"a": 1, "b": 1, "c": 1}, "groups": {"g": ["a"]}}, "weights must name the group 'g'"),
        ({"weights": {"a": 1, "b": 1, "c": 1}, "max_epochs": {"d": 2}}, "max_epochs names 'd', which weights does not"),
        ({"tokens": 0}, "mix.tokens: found 0"),
        ({"upsample": {"x": upsampled()}}, "mix.upsample names the source 'x'"),
        ({"upsample": {"a": {"by": "x", "buckets": []}}}, "expected buckets, for a column of numbers, or labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            mixed(mix)


def test_columns_that_cannot_say_how_often_are_one_line(mixed):
    with pytest.raises(DataError, match=r"upsample.a.by: documents of 'a' have no column 'prose'; they have .*bytes"):
        mixed({"upsample": {"a": upsampled(by="prose")}})
    with pytest.raises(DataError, match="the column 'source' of 'a' has string, expected numbers"):
        mixed({"upsample": {"a": upsampled(by="source")}})
    with pytest.raises(DataError, match="documents have bytes .*, and the least bucket begins at 500; add one"):
        mixed({"upsample": {"a": {"by": "bytes", "buckets": [{"min": 500, "copies": 2}]}}})
    with pytest.raises(DataError, match="the share of 'c', 2 tokens, holds none of its documents"):
        mixed({"tokens": 9000, "weights": {"a": 1, "b": 1, "c": 0.0005}})


def test_the_mixture_is_a_command_that_prints_the_table(tmp_path, pipeline, command, sources):
    import yaml

    path = tmp_path / "pipeline.yaml"
    config = pipeline(ingest=sources, mix={"weights": {"a": 1, "b": 1, "c": 1}, "max_epochs": {"c": 2}})
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = command("mix", path)
    assert done.returncode == 0 and "available" in done.stdout and "33.33%" in done.stdout
    assert not (tmp_path / "out" / "a").exists()
    assert done.stdout.splitlines()[-1].startswith("next: shards;")
    done = command("mix", path, "mix.tokens=1e6")
    assert done.returncode == 3 and "lower mix.tokens to" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "did nothing" in command("mix", path, "mix=null").stdout


def test_weights_are_validated_without_sources():
    assert MixConfig().units(["a", "b"]) == {"all": ["a", "b"]}
