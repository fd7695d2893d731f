"""No near duplicate of a held-out document is trained on, whether copies are dropped or kept."""

import json
import random

import pyarrow.parquet as pq
import pytest
from near_copies import edited

from data_prep.tokenize.train import train
from maxlm.data.shards import document_hash, fingerprints_name
from maxlm.errors import ConfigError, DataError

DOCUMENTS, COPIES = 60, 3
FUZZY = {"ngram": 3}


def text_of(number):
    generator = random.Random(number)
    return " ".join(f"{generator.choice('abcdefgh')}{generator.randrange(500)}" for _ in range(150))


@pytest.fixture
def corpus(tmp_path):
    """60 texts, of every third three near copies, over two sources; the sections that read them."""
    generator, texts = random.Random(0), [text_of(number) for number in range(DOCUMENTS)]
    texts += [edited(texts[number], 0.01, generator) for number in range(0, DOCUMENTS, 3) for _ in range(COPIES)]
    generator.shuffle(texts)
    sources = {}
    for name, start in (("b", 0), ("a", 1)):
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"id": f"{number}", "text": text}) + "\n" for number, text in enumerate(texts[start::2])]
        path.write_text("".join(lines))
        sources[name] = {"kind": "jsonl", "path": str(path), "id_field": "id"}
    return {"ingest": {"sources": sources, "shard_bytes": 20_000}, "validation": {"fraction": 0.4}}


def rows_and_bands(prepared):
    """Documents by split with the set of their bands."""
    found = {"train": [], "validation": []}
    for name, directory in prepared.directories.items():
        split = "validation" if name.endswith("-val") else "train"
        prints = [pq.read_table(directory / fingerprints_name(i)) for i in range(len(prepared.manifests[name].shards))]
        bands = [band for table in prints for band in table["bands"].to_pylist()]
        found[split] += [(row, set(band)) for row, band in zip(prepared.documents(name), bands, strict=True)]
    return found


def crossing(found):
    """Documents of training that share a band with one that is held out."""
    held = set().union(*(bands for _, bands in found["validation"]))
    return [row["id"] for row, bands in found["train"] if bands & held]


def test_copies_that_are_kept_are_held_out_together(tmp_path, prepare, corpus):
    prepared = prepare(**corpus, dedup={"exact": True, "fuzzy": FUZZY | {"drop": False}})
    found = rows_and_bands(prepared)
    rows = [row for split in found.values() for row, _ in split]
    assert len(rows) == DOCUMENTS + COPIES * (DOCUMENTS // 3), "every copy is kept"
    sides = {}
    for split, documents in found.items():
        for row, _ in documents:
            sides.setdefault(row["cluster"], []).append(split)
    assert {len(set(side)) for side in sides.values()} == {1} and not crossing(found)
    sizes = {cluster: len(side) for cluster, side in sides.items()}
    assert all(row["cluster_size"] == sizes[row["cluster"]] for row in rows)
    assert sum(size > COPIES for size in sizes.values()) >= DOCUMENTS // 4
    assert 0.2 < len(found["validation"]) / len(rows) < 0.6
    hashes = {document_hash(row["id"]): row for row in rows}
    assert all(hashes[cluster]["cluster"] == cluster for cluster in sizes), "a cluster is called by one of its own"
    notes = {dict(row["steps"])["fuzzy"] for row in rows if row["cluster_size"] == 4}
    assert f"cluster {next(c for c, size in sizes.items() if size == 4):016x} of 4" in notes
    funnel = json.loads((tmp_path / "out" / ".work" / "test" / "funnel.json").read_text())
    (row,) = [row for row in funnel if row["stage"] == "fuzzy"]
    clustered = sum(size for size in sizes.values() if size > 1)
    assert row["dropped"] == {} and row["changed"] == {"in a cluster": {"documents": clustered, "bytes": 0}}
    assert "no near duplicate" not in prepared.printed


def test_the_best_of_each_cluster_stays_alone(prepare, corpus):
    prepared = prepare(**corpus, dedup={"exact": True, "fuzzy": FUZZY})
    found = rows_and_bands(prepared)
    assert not crossing(found) and "cluster" not in found["train"][0][0]
    # Without the stage copies are on both sides: the corpus can fail the test above.
    plain = prepare(**corpus, dedup={"exact": True})
    texts = {row["text"] for name in plain.manifests for row in plain.documents(name)}
    assert len(texts) == DOCUMENTS + COPIES * (DOCUMENTS // 3) > sum(map(len, found.values()))


def test_the_split_by_id_alone_would_cross(prepare, corpus, monkeypatch):
    monkeypatch.setattr("data_prep.documents.Part.split_by", "id_hash")
    prepared = prepare(**corpus, dedup={"exact": True, "fuzzy": FUZZY | {"drop": False}})
    assert crossing(rows_and_bands(prepared))


def test_the_tokenizer_trains_on_no_cluster_that_is_held_out(prepare, corpus, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "data_prep.tokenize.tokenizer.train",
        lambda config, texts: train(config, (seen.append(text) or text for text in texts)),
    )
    prepared = prepare(**corpus, dedup={"exact": True, "fuzzy": FUZZY | {"drop": False}})
    held = {row["text"] for name in ("a-val", "b-val") for row in prepared.documents(name)}
    assert len(seen) == sum(prepared.manifests[name].documents for name in "ab") and not held & set(seen)


def test_keeping_signs_nothing_again_and_workers_change_nothing(tmp_path, prepare, corpus, contents):
    prepare(**corpus, dedup={"exact": True, "fuzzy": FUZZY})
    kept = {"exact": True, "fuzzy": FUZZY | {"drop": False}}
    again = prepare(**corpus, dedup=kept)
    lines = [line for line in again.printed.splitlines() if line.startswith("fuzzy:")]
    assert [line.rpartition(", ")[2] for line in lines if "made" in line] == [f"{lines[-1].split()[3]} made"]
    one = contents(tmp_path / "out")
    prepare(**corpus, dedup=kept, workers=2, work_dir=str(tmp_path / "work"))
    assert contents(tmp_path / "out") == one


def test_copies_of_an_earlier_data_set_go_in_either_case(tmp_path, prepare, corpus):
    fuzzy = {"exact": True, "fuzzy": FUZZY | {"drop": False}}
    first = prepare(**corpus, dedup=fuzzy, output=str(tmp_path / "first"))
    (tmp_path / "new.jsonl").write_text(
        "".join(
            json.dumps({"id": name, "text": text}) + "\n"
            for name, text in {
                "old": edited(text_of(0), 0.01, random.Random(1)),
                "new": text_of(1000),
                "like": edited(text_of(1000), 0.01, random.Random(2)),
                "other": text_of(1001),
            }.items()
        )
    )
    against = [str(first.directories[name]) for name in ("a", "b", "a-val", "b-val")]
    second = prepare(
        ingest={"sources": {"new": {"kind": "jsonl", "path": str(tmp_path / "new.jsonl"), "id_field": "id"}}},
        dedup=fuzzy | {"against": against},
    )
    rows = {row["id"]: row for row in second.documents("new")}
    assert set(rows) == {"new/new", "new/like", "new/other"}
    assert rows["new/new"]["cluster"] == rows["new/like"]["cluster"] != rows["new/other"]["cluster"]
    assert (rows["new/new"]["cluster_size"], rows["new/other"]["cluster_size"]) == (2, 1)
    assert rows["new/other"]["cluster"] == document_hash("new/other")


def test_what_cannot_be_is_one_line(tmp_path, prepare, corpus, texts):
    with pytest.raises(ConfigError, match=r"normalised drops documents of the clusters that fuzzy\.drop false keeps"):
        prepare(**corpus, dedup={"normalised": True, "fuzzy": {"drop": False}})
    path = tmp_path / "alone.jsonl"
    path.write_text(
        json.dumps({"id": "1", "text": texts[50]}) + "\n" + json.dumps({"id": "2", "text": texts[51]}) + "\n"
    )
    alone = {"ingest": {"sources": {"web": {"kind": "jsonl", "path": str(path), "id_field": "id"}}}}
    assert "warning: fuzzy: no near duplicate" in prepare(**alone, dedup={"fuzzy": FUZZY | {"drop": False}}).printed
    with pytest.raises(DataError, match=r"no near duplicate .* dedup\.fuzzy\.expect_matches is set"):
        prepare(**alone, dedup={"fuzzy": FUZZY | {"drop": False, "expect_matches": True}})
