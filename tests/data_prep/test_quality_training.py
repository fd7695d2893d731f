"""`train-model`: from labelled sources to a directory of a model, its evaluation, and restarts."""

import json
import os
import random
import re
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from data_prep.config import QualityModel
from data_prep.engine import open_workers
from data_prep.pipeline import train_model
from data_prep.quality import models
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError

PROSE = "the river ran slowly past old houses where people sat and talked in the evening light"
MAIL = "wrote unsubscribe free click subject regards list http reply forwarded offer money sent"
WORDS = {
    "prose": PROSE.split(),
    "mail": MAIL.split(),
    "诗": list("明月松间照清泉石上流竹喧归浣女莲动下渔舟随意春芳歇王孙自可留"),
    "文": list("系统软件安装程序文件用户命令选项设置网络服务器数据版本更新目录"),
}


def make(kind, number):
    """Words of a kind, and one in four of any."""
    generator = random.Random(f"{kind} {number}")
    every = [word for words in WORDS.values() for word in words]
    words = [generator.choice(every if generator.random() < 0.25 else WORDS[kind]) for _ in range(30)]
    return ("" if len(WORDS[kind][0]) == 1 else " ").join(words)


@pytest.fixture
def config(tmp_path):
    """A model of two labels in two languages; sources of 120 documents, or those that are given by name."""

    def call(documents=(), work="work", seed=0, workers=1, dedup=None, shard_bytes=2**28, max_bytes=None, **training):
        sources = {}
        for name, (kind, language) in {
            "novels": ("prose", "en"), "poems": ("诗", "zh"), "letters": ("mail", "en"), "manuals": ("文", "zh")
        }.items():  # fmt: skip
            texts = dict(documents).get(name) or {f"{name}#{n}": make(kind, n) for n in range(120)}
            path = tmp_path / f"{name}.jsonl"
            lines = "".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items())
            if not path.exists() or path.read_text() != lines:
                path.write_text(lines)
            sources[name] = {"kind": "jsonl", "path": str(path), "id_field": "id", "language": language}
        labels = training.pop("labels", {"good": ["novels", "poems"], "bad": ["letters", "manuals"]})
        used = [name for names in labels.values() for name in names]
        ingest = {"sources": {name: sources[name] for name in used}, "shard_bytes": shard_bytes}
        limits = {} if max_bytes is None else {"max_bytes": max_bytes}
        values = {
            "name": "test",
            "output": str(tmp_path / work),
            "workers": workers,
            "seed": seed,
            "dedup": dedup,
            "ingest": ingest,
            "classifier": {"labels": labels, "buckets": 2**12, "held_out": 0.4} | limits | training,
        }
        return validate(values, QualityModel, "test")

    return call


@pytest.fixture
def train(config):
    """The description of the model, and what was printed."""

    def call(*arguments, **options):
        made = config(*arguments, **options)
        with open(os.devnull, "w") as sink:
            console = Console(record=True, width=120, file=sink)
            directory = train_model(made, console, open_workers("native", made.workers))
        return json.loads((directory / "model.json").read_text()), console.export_text(), directory

    return call


def made(printed):
    """How many results of each stage were made."""
    lines = [line.partition(": ") for line in printed.splitlines() if re.match("(ingest|model).*up to date", line)]
    counts = {}
    for stage, _, text in lines:
        number = int(text.rpartition(", ")[2].split()[0]) if text.endswith(" made") else 0
        counts[stage] = counts.get(stage, 0) + number
    return counts


def test_a_model_tells_its_labels_in_every_source_and_language(train):
    values, printed, directory = train()
    assert values["kind"] == "classifier" and values["labels"] == ["good", "bad"] and values["name"] == "test"
    found = values["evaluation"]
    assert found["all"]["accuracy"] > 0.95 and found["all"]["auc"] > 0.98 and found["all"]["calibration_error"] < 0.1
    assert set(found["sources"]) == {"novels", "poems", "letters", "manuals"} and set(found["languages"]) == {
        "en",
        "zh",
    }
    assert sum(one["documents"] for one in found["sources"].values()) == found["all"]["documents"]
    counts = values["training"]["documents"]["good"]
    assert sum(counts.values()) == 240 and 0.4 < counts["trained"] / 240 < 0.8 and counts["left out as copies"] == 0
    for row in ("label good", "source poems", "language zh", "uncalibrated", "probability of good"):
        assert row in printed
    weights = np.load(directory / "weights.npy", allow_pickle=False)
    assert weights.shape == (2**12, 1) and weights.dtype == np.float32
    assert (directory / "calibration.svg").read_text().startswith("<svg")
    model = models.find(directory)
    assert model.labels == ("good", "bad") and not model.is_topic


def test_more_than_two_labels_are_topics(train):
    labels = {"river": ["novels"], "verse": ["poems"], "post": ["letters"], "system": ["manuals"]}
    values, printed, directory = train(labels=labels)
    assert values["evaluation"]["all"]["accuracy"] > 0.95 and models.find(directory).is_topic
    assert np.load(directory / "weights.npy").shape == (2**12, 3) and len(values["calibration"]["biases"]) == 4
    assert "probability of the likeliest label" in printed


def test_what_changed_is_made_again_and_no_more(train):
    first, printed, directory = train()
    assert made(printed) == {"ingest": 4, "model-examples": 4, "model": 1}
    before = (directory / "model.json").stat().st_mtime_ns
    again, printed, _ = train()
    assert again == first and not any(made(printed).values())
    assert (directory / "model.json").stat().st_mtime_ns == before, "a model that is the same is not written again"
    changed, printed, _ = train(epochs=1)
    assert made(printed) == {"ingest": 0, "model-examples": 0, "model": 1} and changed["files"] != first["files"]
    reseeded, printed, _ = train(seed=1)
    assert made(printed)["model"] == 1 and reseeded["files"] != first["files"]
    _, printed, _ = train(ngram=1)
    assert made(printed) == {"ingest": 0, "model-examples": 4, "model": 1}
    assert train()[0] == first


def test_workers_and_shards_do_not_change_a_byte(train, contents):
    found = []
    for work, options in {"a": {"workers": 1}, "b": {"workers": 2}}.items():
        _, _, directory = train(work=work, shard_bytes=3000, **options)
        found.append(contents(directory))
    assert found[0] == found[1] and set(found[0]) == {"model.json", "weights.npy", "calibration.svg"}


def test_copies_do_not_stand_on_both_sides(train):
    texts = {f"n{number}": make("prose", number % 40) for number in range(120)}
    documents = [("novels", texts)]
    values, printed, _ = train(documents)
    assert values["training"]["documents"]["good"]["left out as copies"] > 10 and "are copies of trained" in printed
    values, printed, _ = train(documents, dedup={"exact": True})
    counts = values["training"]["documents"]["good"]
    assert counts["left out as copies"] == 0 and sum(counts.values()) == 160 and "are copies" not in printed


def test_a_group_is_on_one_side(train, tmp_path):
    texts = {f"file{number // 6}#{number}": make("prose", number) for number in range(120)}
    poems = {f"poem{number}": make("诗", number) for number in range(120)}
    labels = {"river": ["novels"], "verse": ["poems"]}
    train([("novels", texts), ("poems", poems)], group="^[^#]+", held_out=0.5, labels=labels)
    groups = {}
    for path in (tmp_path / "work" / ".work" / "test" / "model-examples").glob("*/documents.parquet"):
        table = pq.read_table(path)
        for one, group in zip(table["id"].to_pylist(), table["group"].to_pylist(), strict=True):
            groups.setdefault(group, []).append(one)
    assert sorted(map(len, groups.values())) == [1] * 120 + [6] * 20


@pytest.mark.parametrize("labels", [{"good": ["novels", "poems"], "bad": ["letters", "manuals"]}])
def test_a_label_has_at_most_max_bytes(train, labels):
    values, _, _ = train(max_bytes=12000, labels=labels)
    for counts in values["training"]["documents"].values():
        assert 12000 / 260 < sum(counts.values()) < 12000 / 80
    larger, _, _ = train(max_bytes=16000, labels=labels)
    assert larger["training"]["documents"]["good"]["trained"] > values["training"]["documents"]["good"]["trained"]


def test_too_few_documents_are_an_error(train):
    documents = [("poems", {f"p{number}": make("诗", number) for number in range(20)})]
    with pytest.raises(DataError, match=r"label 'verse': \d documents to calibrate with of 20, expected 10 or more"):
        train(documents, labels={"river": ["novels"], "verse": ["poems"]})


def test_a_label_whose_documents_were_all_dropped_is_an_error(config):
    values = config().model_dump() | {"language": {"keep": {"en": 0.5}}}
    values["classifier"]["labels"] = {"river": ["novels", "letters"], "verse": ["poems", "manuals"]}
    with open(os.devnull, "w") as sink, pytest.raises(DataError, match="label 'verse': no document of poems, manuals"):
        train_model(validate(values, QualityModel, "test"), Console(file=sink))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": {"a": ["novels"], "b": ["novels"]}}, "'novels' stands twice in labels"),
        ({"buckets": 3000}, "expected a power of two such as 2048, found 3000"),
        ({"group": "("}, "is not a regular expression"),
        ({"ngram": 4}, "less than or equal to 3"),
    ],
)
def test_settings_that_cannot_work_are_named(config, change, message):
    with pytest.raises(ConfigError, match=message):
        config(**change)


def test_a_model_is_of_one_kind_and_uses_its_sources(config):
    values = config().model_dump()
    sources = values["ingest"]["sources"]
    for change, message in (
        ({"classifier": None}, "one of the sections classifier and perplexity"),
        ({"perplexity": {}}, "one of the sections classifier and perplexity"),
        ({"ingest": {"sources": {"novels": sources["novels"]}}}, "the source 'poems' is not in ingest.sources"),
        ({"ingest": {"sources": sources | {"more": sources["poems"]}}}, "the source 'more' would be read for nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(values | change, QualityModel, "test")


def test_a_directory_that_is_no_model_is_left_alone(train, tmp_path):
    other = tmp_path / "work" / "test"
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is no model; move it away, or set output or name"):
        train()
    assert (other / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(other)
    assert train()[2] == other


def test_the_command_prints_the_directory(config, command, tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(config().model_dump(mode="json")))
    done = command("train-model", path, "classifier.epochs=1")
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'work' / 'test'}\n" and "held out" in done.stderr
    done = command("train-model", path, "classifier.labels.good=[nothing]")
    assert done.returncode == 2 and "the source 'nothing' is not in ingest.sources" in done.stderr
    assert command("schema", "model").returncode == 0


def test_near_duplicates_that_are_kept_are_on_one_side(train, tmp_path):
    texts = {f"n{number}": f"{make('prose', number // 4)} {number}" for number in range(240)}
    keep = {"fuzzy": {"ngram": 1, "drop": False}}
    train([("novels", texts)], dedup=keep, labels={"river": ["novels"], "verse": ["poems"]})
    groups = Counter()
    for path in (tmp_path / "work" / ".work" / "test" / "model-examples").glob("*/documents.parquet"):
        groups.update(pq.read_table(path)["group"].to_pylist())
    assert sum(count == 4 for count in groups.values()) > 20
