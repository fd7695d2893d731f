"""The stage `quality`: scores, ranks and joined columns of every document, and what is dropped by them."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_prep.config import Pipeline, QualityModel
from data_prep.documents import iterate
from data_prep.engine import open_workers
from data_prep.ingest.stage import run as read_sources
from data_prep.pipeline import check, run, train_model
from data_prep.quality import features, models, ranks, stage
from data_prep.stages import Run
from data_prep.text.texts import Texts
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError

TOPICS = {"sea": "ship sail wave harbour tide", "sky": "cloud wing wind star moon", "wood": "tree leaf moss fox owl"}
TEXTS = {f"t{number}": f"{word} {number} and so it was " * (1 + number % 3)
         for number, word in enumerate(" ".join(TOPICS.values()).split() * 6)}  # fmt: skip


@pytest.fixture(scope="session")
def topics(tmp_path_factory):
    """The directory of a model of three topics."""
    folder, sources = tmp_path_factory.mktemp("topics"), {}
    for name, words in TOPICS.items():
        lines = [{"id": str(n), "text": f"{words.split()[n % 5]} {words.split()[n % 4]} {n}"} for n in range(90)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        sources[name] = {"kind": "jsonl", "path": str(folder / f"{name}.jsonl"), "id_field": "id"}
    training = {"labels": {name: [name] for name in TOPICS}, "buckets": 1024, "held_out": 0.5}
    values = {"name": "topics", "output": str(folder), "ingest": {"sources": sources}, "classifier": training}
    with open(os.devnull, "w") as sink:
        return train_model(validate(values | {"workers": 1}, QualityModel, "test"), Console(file=sink))


class Scored:
    """A run of the stage: the rows that are left, by id; what was printed; the funnel."""

    def __init__(self, config, names):
        check(config)
        with open(os.devnull, "w") as sink, open_workers("native", config.workers) as workers:
            console = Console(record=True, width=200, file=sink)
            this = Run(config, console, workers)
            before = read_sources(this)
            self.parts = stage.run(this, before)
            this.prune()
        self.printed, self.funnel, self.work = console.export_text(), this.funnel, config.work
        tables = [table for part in self.parts for table in iterate(part, ("id", *names))]
        self.types = dict(zip(tables[0].schema.names, tables[0].schema.types, strict=True)) if tables else {}
        self.rows = {row.pop("id"): row for table in tables for row in table.to_pylist()}

    def column(self, name):
        return {key: row[name] for key, row in self.rows.items()}

    def made(self, name):
        lines = [line for line in self.printed.splitlines() if line.startswith(f"{name}: ")]
        return sum(int(found[1]) for line in lines if (found := re.search(r"(\d+) made", line)))


@pytest.fixture
def score(tmp_path):
    """`languages` are declared in turn; two sources, web and books, have the texts."""

    def call(*names, texts=TEXTS, languages=("en",), workers=1, work="out", shard_bytes=1200, **quality):
        lines = [{"id": key, "text": text, "language": languages[number % len(languages)]}
                 for number, (key, text) in enumerate(texts.items())]  # fmt: skip
        path = tmp_path / "raw.jsonl"
        content = "".join(json.dumps(line) + "\n" for line in lines)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        source = {"kind": "jsonl", "path": str(path), "id_field": "id", "language_field": "language"}
        values = {
            "name": "test",
            "output": str(tmp_path / work),
            "workers": workers,
            "ingest": {"sources": {"web": source, "books": source}, "shard_bytes": shard_bytes},
            "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
            "quality": quality,
        }
        return Scored(validate(values, Pipeline, "test"), names)

    return call


def models_of(**paths):
    return {name: {"path": str(path)} for name, path in paths.items()}


def expected_ranks(scored, name):
    """By the definition: documents are ordered by score, then by hash, in each source and language."""
    from maxlm.data.shards import document_hash

    result = {}
    rows = scored.rows
    for group in {(key.partition("/")[0], row["language"]) for key, row in rows.items()}:
        inside = [key for key, row in rows.items()
                  if (key.partition("/")[0], row["language"]) == group and row[name] is not None]  # fmt: skip
        inside.sort(key=lambda key: (rows[key][name], document_hash(key)))
        result |= {key: place / len(inside) for place, key in enumerate(inside)}
    return result


def test_every_document_has_its_score_and_its_rank(score, quality_model):
    names = ("text", "language", "prose", "prose_rank")
    found = score(*names, languages=("en", "zh", None), models=models_of(prose=quality_model))
    assert len(found.parts) > 4 and len(found.rows) == 2 * len(TEXTS) and found.types["prose"] == pa.float32()
    known = models.find(quality_model)
    model = models.load(known.directory, known.key)
    for row in found.rows.values():
        logits = model.logits(features.hashed(Texts.from_strings([row["text"]])))[0]
        row["logit"] = np.float32(logits[0] - logits[1])
        assert row["prose"] == pytest.approx(1 / (1 + np.exp(logits[1] - logits[0])), rel=1e-6)
    expected = expected_ranks(found, "logit")
    assert found.column("prose_rank") == {key: np.float32(rank) for key, rank in expected.items()}
    assert {part.pedigree[-2:] == ["prose", "prose_rank"] for part in found.parts} == {True}
    assert len(found.funnel) == 1, "what only looks drops nothing"


def test_ranks_tell_documents_apart_whose_probability_is_1(score, quality_model, tmp_path):
    shutil.copytree(quality_model, tmp_path / "sure")
    values = json.loads((tmp_path / "sure" / "model.json").read_text())
    values["calibration"]["biases"][1] -= 100
    (tmp_path / "sure" / "model.json").write_text(json.dumps(values))
    found = score("prose", "prose_rank", models=models_of(prose=quality_model))
    sure = score("prose", "prose_rank", models=models_of(prose=tmp_path / "sure"))
    ranked = [list(run.column("prose_rank").values()) for run in (found, sure)]
    assert set(sure.column("prose").values()) == {1.0} and np.corrcoef(ranked)[0, 1] > 0.999


def test_a_topic_has_a_label_and_its_probability(score, topics):
    found = score("text", "topic", "topic_score", models=models_of(topic=topics))
    right = [row["topic"] == next(name for name, words in TOPICS.items() if row["text"].split()[0] in words)
             for row in found.rows.values()]  # fmt: skip
    assert np.mean(right) > 0.95 and found.types == {
        "id": pa.large_string(), "text": pa.large_string(), "topic": pa.string(), "topic_score": pa.float32()
    }  # fmt: skip
    assert all(1 / 3 < row["topic_score"] <= 1 for row in found.rows.values())


def test_limits_drop_documents_for_reasons_and_read_no_text_again(score, quality_model, topics):
    both = models_of(prose=quality_model, topic=topics)
    every = score("prose", "prose_rank", "topic", models=both)
    middle = float(np.median(list(every.column("prose").values())))
    limits = [
        {"score": "prose", "min": middle, "sources": ["web"]},
        {"score": "prose_rank", "max": 0.75},
        {"score": "topic", "labels": ["sea", "sky"]},
    ]
    found = score("prose", "prose_rank", "topic", models=both, select=limits)
    reasons = {"prose": f"prose below {middle:g}", "prose_rank": "prose_rank above 0.75", "topic": "topic wood"}
    expected = {reason: 0 for reason in reasons.values()}
    for key, row in every.rows.items():
        broken = [
            key.startswith("web/") and row["prose"] < np.float32(middle),
            row["prose_rank"] > 0.75,
            row["topic"] == "wood",
        ]
        assert (key in found.rows) == (not any(broken))
        if any(broken):
            expected[list(reasons.values())[broken.index(True)]] += 1
    assert {reason: amount.documents for reason, amount in found.funnel[-1].dropped.items()} == expected
    assert found.made("quality") > 0 == found.made("quality-scores") == found.made("quality-ranks")
    assert {key: row for key, row in every.rows.items() if key in found.rows} == found.rows


def test_a_changed_model_makes_its_own_column_again(score, quality_model, topics, tmp_path):
    one = tmp_path / "one"
    shutil.copytree(quality_model, one)
    config = models_of(prose=one, topic=topics)
    first = score("prose", "topic", models=config)
    times = {path: path.stat().st_mtime_ns for path in (first.work / "quality-scores").glob("*/columns.parquet")}
    assert len(times) == 2 * len(first.parts) == 2 * first.made("quality-scores")
    values = json.loads((one / "model.json").read_text())
    values["calibration"]["scale"] *= 0.5
    (one / "model.json").write_text(json.dumps(values))
    second = score("prose", "topic", models=config)
    assert second.column("topic") == first.column("topic") and second.column("prose") != first.column("prose")
    kept = {path for path in (first.work / "quality-scores").glob("*/columns.parquet") if path in times}
    assert len(kept) == len(first.parts) and all(path.stat().st_mtime_ns == times[path] for path in kept)
    assert second.made("quality-scores") == second.made("quality-ranks") - 2 == len(first.parts)
    third = score("prose", "topic", "other", models=config | models_of(other=one))
    assert third.made("quality-ranks") == len(first.parts) + 2, "a score that comes along changes no other"


def test_a_model_for_a_language_leaves_others_without_a_score(score, quality_model):
    only = {"prose": {"path": str(quality_model), "languages": ["zh"]}}
    languages = ("en", "zh-CN", None)
    found = score("language", "prose", "prose_rank", languages=languages, models=only)
    for row in found.rows.values():
        assert (row["prose"] is None) == (row["prose_rank"] is None) == (row["language"] != "zh-CN")
    limit = {"score": "prose", "min": 0.0}
    kept = score("prose", languages=languages, models=only, select=[limit | {"max": 1}])
    assert len(kept.rows) == len(found.rows) and "no limit concerns any of 180 documents" in kept.printed
    dropped = score("language", languages=languages, models=only, select=[limit | {"missing": "drop"}])
    assert dropped.funnel[-1].dropped["prose missing"].documents == 120 and len(dropped.rows) == 60
    english = score("language", languages=languages, models=only,
                    select=[limit | {"missing": "drop", "languages": ["en"]}])  # fmt: skip
    assert {row["language"] for row in english.rows.values()} == {"zh-CN", None}
    with pytest.raises(DataError, match="quality.expect_matches is set"):
        score(languages=languages, models=only, select=[limit], expect_matches=True)


def test_results_do_not_depend_on_the_workers(score, quality_model, topics, contents):
    found = []
    for workers in (1, 2):
        config = models_of(prose=quality_model, topic=topics)
        run = score("prose", models=config, workers=workers, work=f"out{workers}", shard_bytes=2500)
        found.append({name: contents(run.work / name) for name in ("quality-scores", "quality-ranks")})
    assert found[0] == found[1] and len(found[0]["quality-scores"]) > 8


# --- joined scores ----------------------------------------------------------------------------------------------------


def write_scores(path, rows, kind="float32"):
    pq.write_table(pa.table({"id": list(rows), "grade": pa.array(list(rows.values()), kind)}), path)


def test_scores_from_elsewhere_are_joined_by_id(score, tmp_path):
    grades = {f"web/t{number}": number / 7 for number in range(40)} | {"web/nothing": 1.0, "books/t3": None}
    write_scores(tmp_path / "grades.parquet", grades)
    join = {"grade": {"path": str(tmp_path / "grades.parquet"), "score": "grade"}}
    found = score("language", "grade", "grade_rank", join=join)
    assert found.types["grade"] == pa.float32() and "grade: 40 of 180 documents have a score" in found.printed
    for key, row in found.rows.items():
        value = grades.get(key)
        assert row["grade"] == (None if value is None else np.float32(value))
    ranked = {key: rank for key, rank in found.column("grade_rank").items() if rank is not None}
    assert ranked == {key: np.float32(rank) for key, rank in expected_ranks(found, "grade").items()}
    kept = score("grade", join=join, select=[{"score": "grade", "min": 2, "missing": "drop"}])
    assert sorted(kept.rows) == sorted(key for key, value in grades.items() if value and value >= 2)
    assert kept.made("quality-join") == 0


def test_lines_are_joined_and_ids_may_lack_their_source(score, tmp_path):
    path = tmp_path / "scores" / "part.jsonl.zst"
    path.parent.mkdir()
    rows = [{"name": "t1", "score": 3}, {"name": "t2", "score": 0.1}, {"name": "t2", "score": 9}, {"name": "t4"}]
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write("\n".join(map(json.dumps, rows)).encode())
    join = {"grade": {"path": str(path.parent), "id": "name", "source": "books"}}
    found = score("grade", join=join)
    values = {key: value for key, value in found.column("grade").items() if value is not None}
    assert values == {"books/t1": 3.0, "books/t2": 0.1} and found.types["grade"] == pa.float64()
    assert "1 rows have an id that came before" in found.printed


def test_ids_that_nothing_has_are_an_error(score, tmp_path):
    write_scores(tmp_path / "grades.parquet", {"t1": 1.0})
    with pytest.raises(
        DataError, match="none of 180 documents has a score; ids of documents are like 'web/t.*like 't1'"
    ):
        score(join={"grade": {"path": str(tmp_path / "grades.parquet"), "score": "grade"}})


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"id": "web/t1", "score": "good"}', r"bad.jsonl:1: expected an id and a number, found 'web/t1' and 'good'"),
        ('{"id": "web/t1", "score": true}', "found 'web/t1' and True"),
        ('\n{"score": 1}', "bad.jsonl:2: expected an object with the key 'id'"),
        ("[1", "bad.jsonl:1: not JSON"),
    ],
)
def test_a_bad_line_of_scores_is_named(score, tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        score(join={"grade": {"path": str(tmp_path / "bad.jsonl")}})


def test_a_bad_table_of_scores_is_named(score, tmp_path):
    path = tmp_path / "grades.parquet"
    join = {"grade": {"path": str(path), "score": "grade"}}
    with pytest.raises(
        DataError, match="quality.join.grade: .*grades.parquet: no such file or directory; set its path"
    ):
        score(join=join)
    write_scores(path, {"web/t1": "a"}, "string")
    with pytest.raises(DataError, match="the column 'grade' is of type string, expected a number"):
        score(join=join)
    with pytest.raises(DataError, match="no column 'score'; it has id, grade"):
        score(join={"grade": {"path": str(path)}})
    path.write_bytes(b"PAR1 and so on")
    with pytest.raises(DataError, match="not a parquet file that can be read"):
        score(join=join)


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_keys_are_in_the_order_of_scores_and_then_of_hashes():
    scores = np.array([-np.inf, -2.5, -0.0, 0.0, 1e-30, 0.3, 0.3, 7, np.inf])
    hashes = np.array([9, 9, 1, 2, 9, 4, 5, 9, 9], np.uint64) << np.uint64(60)
    keys = ranks.keys_of(scores, hashes)
    assert (np.diff(keys.astype(object)) > 0).all()


def test_ranks_are_exact_until_there_are_too_many_keys():
    generator = np.random.default_rng(3)
    keys = generator.integers(0, 2**63, 5000).astype(np.uint64)
    sketch = ranks.Quantiles(limit=8192)
    for piece in np.array_split(keys, 7):
        sketch.add(piece)
    found, weights = sketch.table()
    assert (found == np.sort(keys)).all() and (weights == 1).all()


@pytest.mark.parametrize("order", ["random", "ascending", "constant"])
def test_ranks_of_many_keys_are_off_by_less_than_the_bound(order):
    count, limit = 300_000, 2048
    keys = np.random.default_rng(4).integers(0, 2**63, count).astype(np.uint64)
    if order == "ascending":
        keys.sort()
    if order == "constant":
        keys[:] = 5
    sketch = ranks.Quantiles(limit=limit)
    for piece in np.array_split(keys, 97):
        sketch.add(piece)
    found, weights = sketch.table()
    assert weights.sum() == count == sketch.count and len(found) < 2 * limit + count / 97
    below = np.append(0, np.cumsum(weights))[np.searchsorted(found, keys)]
    exact = np.searchsorted(np.sort(keys), keys)
    assert np.abs(below - exact).max() / count < {"random": 0.02, "ascending": 0.002, "constant": 1e-9}[order]


# --- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"models": {"row": "prose"}}, "'row' would give the column 'row', which documents have"),
        ({"models": {"language": "topics"}}, "'language' would give the column 'language', which"),
        ({"models": {"a": "prose", "a_rank": "prose"}}, "'a_rank' would give the column 'a_rank', which another score"),
        ({"select": [{"score": "prose_rnk", "min": 0}]}, "no score is called 'prose_rnk'; the nearest is 'prose_rank'"),
        (
            {"select": [{"score": "prose", "min": 0, "sources": ["wob"]}]},
            "no source is called 'wob'; the nearest is 'web'",
        ),
        ({"select": [{"score": "topic", "labels": ["see"]}]}, "no label is called 'see'; the nearest is 'sea'"),
        ({"select": [{"score": "topic", "min": 0}]}, "'topic' is a label: set labels, not min or max"),
        ({"select": [{"score": "prose", "labels": ["sea"]}]}, "'prose' is a number: set min or max, not labels"),
        ({"select": [{"score": "prose"}]}, "neither min nor max nor labels"),
        ({"select": [{"score": "prose", "min": 1, "max": 0}]}, "min 1.* above max 0"),
        ({"models": {}}, "neither models nor join"),
        ({"models": {"a-b": "prose"}}, "should match pattern"),
        ({"join": {"prose": {"path": "x"}}}, "'prose' is the name of a model and of a join"),
        ({"models": {"a": "missing"}}, r"model.json: not found; a model's directory is what `maxlm-prep train-model`"),
    ],
)
def test_a_configuration_that_cannot_work_is_told_before_anything_runs(
    score, quality_model, topics, tmp_path, change, message
):
    known = {"prose": quality_model, "topics": topics, "missing": tmp_path / "missing"}
    wanted = change.get("models", {"prose": "prose", "topic": "topics"})
    with pytest.raises(ConfigError, match=message):
        score(**change | {"models": models_of(**{name: known[path] for name, path in wanted.items()})})
    assert not (tmp_path / "out").exists()


def test_a_score_does_not_take_the_place_of_another_stage_s_column(quality_model, pipeline):
    quality = {"models": models_of(script=quality_model)}
    config = pipeline(language={}, quality=quality)
    check(config)
    with open(os.devnull, "w") as sink, pytest.raises(ConfigError, match="the column 'script', which documents have"):
        run(config, Console(file=sink), until="quality")


def test_a_model_that_is_damaged_or_of_another_version_is_told(score, quality_model, tmp_path):
    directory = tmp_path / "model"
    config = models_of(prose=directory)

    def broken(change):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(quality_model, directory)
        values = json.loads((directory / "model.json").read_text())
        change(values)
        (directory / "model.json").write_text(json.dumps(values))
        return pytest.raises(DataError)

    with broken(lambda values: values.update(version=0)) as caught:
        score(models=config)
    assert "made by version 0, this program has 1; train the model again" in str(caught.value)
    with broken(lambda values: values["features"].append("more")):
        score(models=config)
    with broken(lambda values: values.pop("features")) as caught:
        score(models=config)
    assert "model.json: has no 'features'; train the model again" in str(caught.value)
    perplexity = {"kind": "perplexity", "version": 1, "splitter": ["unicode", 0]}
    with broken(lambda values: values.update(perplexity)) as caught:
        score(models=config)
    assert 'made by version ["unicode", 0]' in str(caught.value)
    with broken(lambda values: values.update(kind="oracle")) as caught:
        score(models=config)
    assert "the kind of the model is 'oracle', expected classifier or perplexity" in str(caught.value)
    with broken(lambda values: values.pop("files")):
        score(models=config)
    weights = directory / "weights.npy"
    with broken(lambda values: None) as caught:
        weights.write_bytes(weights.read_bytes()[:-4])
        score(models=config)
    assert "weights.npy: 4220 bytes, expected 4224" in str(caught.value)
    with broken(lambda values: None) as caught:
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        score(models=config)
    assert "weights.npy: not the file that was written" in str(caught.value)


def test_the_columns_are_in_the_output(prepare, quality_model, topics):
    made = prepare(quality={"models": models_of(prose=quality_model, topic=topics)})
    rows = made.documents("web")
    assert rows and all({"prose", "prose_rank", "topic", "topic_score"} <= set(row) for row in rows)
    assert len({row["prose"] for row in rows}) > 100 and sorted(row["prose_rank"] for row in rows)[0] == 0
