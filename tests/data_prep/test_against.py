"""Copies of documents of earlier data sets: found by fingerprints, without the earlier text."""

import json
import random
import shutil

import pyarrow.parquet as pq
import pytest

from maxlm.data.shards import MANIFEST, file_entry, fingerprints_name
from maxlm.errors import ConfigError, DataError

SIGNED = {"normalised": True, "fuzzy": {}}
TEXTS = {
    str(number): " ".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=400)) for number in range(9)
}


def source(path, texts):
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
    return {"kind": "jsonl", "path": str(path), "id_field": "id"}


@pytest.fixture
def earlier(tmp_path, prepare):
    """earlier("name", texts, dedup): a data set prepared before, with fingerprints beside its documents."""

    def make(name, texts, dedup):
        sources = {"web": source(tmp_path / f"{name}.jsonl", texts)}
        sections = {"ingest": {"sources": sources}, "dedup": dedup, "output": str(tmp_path / "made" / name)}
        prepared = prepare(**sections, shards={"shard_tokens": 3000})
        directory = tmp_path / name
        shutil.move(prepared.directories["web"], directory)
        return directory

    return make


def edit_manifest(directory, change):
    content = json.loads((directory / MANIFEST).read_text())
    change(content)
    (directory / MANIFEST).write_text(json.dumps(content))


def ids(prepared, name="web"):
    return sorted(row["id"] for row in prepared.documents(name))


def dropped(tmp_path, stage):
    rows = json.loads((tmp_path / "out" / ".work" / "test" / "funnel.json").read_text())
    return {
        reason: amount["documents"]
        for row in rows
        if row["stage"] == stage
        for reason, amount in row["dropped"].items()
    }


def test_exact_normalised_and_near_copies_of_earlier_documents_go(tmp_path, earlier, prepare):
    old = [
        earlier(f"old{number}", {key: TEXTS[key] for key in keys}, SIGNED) for number, keys in enumerate(("0123", "34"))
    ]
    new = {
        "a": TEXTS["0"],
        "b": TEXTS["1"].upper() + "!",
        "c": TEXTS["2"] + " more of it",
        "d": TEXTS["3"],
        "e": TEXTS["4"] + " x y",
        "f": TEXTS["5"],
        "g": TEXTS["5"] + " x y",
    }
    sections = {"ingest": {"sources": {"web": source(tmp_path / "new.jsonl", new)}}}
    against = [str(directory) for directory in old]
    assert ids(prepare(**sections, dedup=SIGNED | {"against": against})) == ["web/g"]
    # A document of both is counted with the first.
    assert dropped(tmp_path, "exact") == {f"in an earlier data set: {against[0]}": 2}
    assert dropped(tmp_path, "fuzzy") == {
        f"in an earlier data set: {against[0]}": 2,
        f"in an earlier data set: {against[1]}": 1,
        "near duplicate": 1,
    }
    assert ids(prepare(**sections, dedup={"against": against})) == [f"web/{key}" for key in "bcefg"]


def test_a_cluster_that_touches_an_earlier_document_goes(tmp_path, earlier, prepare):
    """The far end of a chain shares nothing with the earlier document; what is between connects them."""
    words = " ".join(random.Random(number).choice("abcdefgh") + str(number) for number in range(500)).split()
    chain = {f"{step}": " ".join(words[20 * step : 20 * step + 200]) for step in range(12)}
    dedup = {"fuzzy": {"buckets": 64, "rows": 4}}
    old = earlier("old", {"0": chain.pop("0")}, dedup)
    sources = {"web": source(tmp_path / "new.jsonl", chain | {"other": TEXTS["0"]})}
    prepared = prepare(ingest={"sources": sources}, dedup=dedup | {"against": [str(old)]})
    assert ids(prepared) == ["web/other"]


def test_an_earlier_data_set_that_changed_is_compared_again(tmp_path, earlier, prepare):
    sections = {"ingest": {"sources": {"web": source(tmp_path / "new.jsonl", TEXTS)}}}
    dedup = {"against": [str(tmp_path / "old")]}
    for keys in ("01", "234"):
        shutil.rmtree(tmp_path / "old", ignore_errors=True)
        earlier("old", {key: TEXTS[key] for key in keys}, {})
        assert ids(prepare(**sections, dedup=dedup)) == [f"web/{key}" for key in TEXTS if key not in keys]
    assert "exact: query up to date" in prepare(**sections, dedup=dedup).printed


@pytest.mark.parametrize(
    "old, new, message",
    [
        ({"fuzzy": {"seed": 1}}, {"fuzzy": {}}, "made with dedup.fuzzy.seed = 1, this pipeline has 0"),
        ({"fuzzy": {"ngram": 4}}, {"fuzzy": {}}, "made with dedup.fuzzy.ngram = 4, this pipeline has 5"),
        ({}, {"fuzzy": {}}, "made with dedup.fuzzy.unit = None, this pipeline has words"),
        ({"fuzzy": {}}, {"normalised": True}, "made without dedup.normalised"),
    ],
)
def test_signatures_that_cannot_be_compared_are_refused(tmp_path, earlier, prepare, old, new, message):
    directory = earlier("old", {"0": TEXTS["0"]}, old)
    sections = {"ingest": {"sources": {"web": source(tmp_path / "new.jsonl", TEXTS)}}}
    with pytest.raises(ConfigError, match=f"{directory} was {message}"):
        prepare(**sections, dedup=new | {"against": [str(directory)]})


def test_signatures_of_another_version_are_refused(tmp_path, earlier, prepare):
    directory = earlier("old", {"0": TEXTS["0"]}, SIGNED)
    edit_manifest(directory, lambda content: content["pipeline"]["dedup"].update(signatures="words of old"))
    sections = {"ingest": {"sources": {"web": source(tmp_path / "new.jsonl", TEXTS)}}}
    with pytest.raises(ConfigError, match="dedup.signatures = words of old, this pipeline has words unicode"):
        prepare(**sections, dedup=SIGNED | {"against": [str(directory)]})
    # Hashes of whole texts are the same in all versions.
    assert len(ids(prepare(**sections, dedup={"against": [str(directory)]}))) == len(TEXTS) - 1


def test_a_directory_without_fingerprints_is_refused(tmp_path, earlier, prepare):
    directory = earlier("old", {"0": TEXTS["0"]}, {"fuzzy": {}})
    sections = {"ingest": {"sources": {"web": source(tmp_path / "new.jsonl", TEXTS)}}}
    path = directory / fingerprints_name(0)

    def refused(message, **dedup):
        with pytest.raises(DataError, match=message):
            prepare(**sections, dedup={"against": [str(directory)]} | dedup)

    pq.write_table(pq.read_table(path).drop_columns(["bands"]), path)
    refused("is not the file of the manifest")
    edit_manifest(directory, lambda content: content["shards"][0]["files"][path.name].update(file_entry(path)))
    refused("has no column 'bands'", fuzzy={})
    path.unlink()
    refused("fingerprints-00000.parquet: cannot be read")
    edit_manifest(directory, lambda content: content["shards"][0]["files"].pop(path.name))
    refused("old: has no fingerprints-00000.parquet")
    shutil.rmtree(directory)
    refused("no such directory")


def test_an_output_is_no_earlier_data_set(tmp_path, prepare):
    sections = {"ingest": {"sources": {"web": source(tmp_path / "new.jsonl", TEXTS)}}}
    prepare(**sections)
    with pytest.raises(ConfigError, match="out/web is an output of this pipeline"):
        prepare(**sections, dedup={"against": [str(tmp_path / "out" / "web")]})
