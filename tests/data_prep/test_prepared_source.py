"""Prepared shards as a source: the same documents come back, and what a tokenizer lost is told."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import IngestConfig, Pipeline, SourceConfig
from data_prep.ingest.shards import make_tasks
from data_prep.manifest import Folder
from maxlm.config import validate
from maxlm.data.shards import Shards, documents_name, fingerprints_name
from maxlm.errors import ConfigError, DataError


def read(folder, paths, policy=None, **source):
    """The rows of all shards by id, and the records of the tasks."""
    config = SourceConfig(kind="shards", path=[str(path) for path in paths], **source)
    ingest = IngestConfig(sources={"old": config}, **(policy or {}))
    tasks = make_tasks("old", config, ingest)
    records = [task.function(Folder(folder), task.key, *task.arguments) for task in tasks]
    tables = [pq.read_table(Folder(folder).file(record.key, name)) for record in records for name in record.files]
    return {row["id"]: row for table in tables for row in table.to_pylist()}, records


def test_documents_come_back_with_what_is_known_of_them(tmp_path, tree, prepare, every_stage):
    prepared = prepare(**every_stage)
    rows, records = read(tmp_path / "work", prepared.directories.values())
    before = {row["id"]: row for name in prepared.directories for row in prepared.documents(name)}
    assert len(before) > 80 and len(prepared.directories) == 2
    assert rows.keys() == {f"old/{key}" for key in before}
    for key, row in before.items():
        now = rows[f"old/{key}"]
        assert (now["text"], now["url"], now["language"]) == (row["text"], row["url"], row["language"])
        step = dict(now["steps"])["ingest"]
        assert step.startswith(("web/tokens-0000", "web-val/tokens-0000"))
        assert all(f"{stage}: {note}" in step for stage, note in row["steps"])
    assert sum(record.values["documents"] for record in records) == len(before)
    assert all(row["source"] == "old" and row["bytes"] == len(row["text"].encode()) for row in rows.values())


def test_a_new_tokenizer_is_one_pipeline_over_the_old_shards(tmp_path, tree, prepare, texts):
    old = prepare()
    sources = {"web": {"kind": "shards", "path": str(old.directories["web"]), "language": "en"}}
    tokenizer = {"algorithm": "sentencepiece_unigram", "vocab_size": 400}
    new = prepare(output=str(tmp_path / "new"), ingest={"sources": sources}, tokenizer=tokenizer)
    assert sorted(row["text"] for row in new.documents("web")) == sorted(texts)
    assert {row["language"] for row in new.documents("web")} == {"en"}
    assert new.manifests["web"].tokenizer.kind == "sentencepiece"
    rows, _ = read(tmp_path / "work", new.directories.values())
    assert sorted(row["text"] for row in rows.values()) == sorted(texts)


def test_a_text_that_its_tokens_do_not_give_back_is_refused_or_left_out(tmp_path, tree, prepare, texts):
    directory = prepare().directories["web"]
    shards = Shards(directory)
    table = pq.read_table(directory / documents_name(0))
    sizes = table["bytes"].to_pylist()
    sizes[3] += 1
    place = table.schema.get_field_index("bytes")
    pq.write_table(table.set_column(place, "bytes", pa.array(sizes)), directory / documents_name(0))
    with pytest.raises(DataError, match=r"tokens-00000.bin: document web/.*do not give its text back \([\d,]+ bytes"):
        read(tmp_path / "work", [directory])
    rows, records = read(tmp_path / "work", [directory], {"on_bad_record": "skip"})
    assert len(rows) == len(texts) - 1 and records[0].values["dropped"] == {"bad record": 1}
    # A text of the right size is told by its hash.
    pq.write_table(table, directory / documents_name(0))
    hashes = pq.read_table(directory / fingerprints_name(0))
    digests = hashes["hash"].to_pylist()
    changed = hashes.set_column(0, hashes.schema.field(0), pa.array([b"\0" * 16, *digests[1:]], pa.binary(16)))
    pq.write_table(changed, directory / fingerprints_name(0))
    with pytest.raises(DataError, match="another hash"):
        read(tmp_path / "work", [directory])
    (directory / fingerprints_name(0)).unlink()
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["shards"][0]["files"][fingerprints_name(0)]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert len(read(tmp_path / "work", [directory])[0]) == len(texts) == shards.manifest.documents


def test_shards_in_a_store_are_read_by_way_of_its_cache(tmp_path, tree, prepare, texts, monkeypatch):
    import fsspec

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    directory = prepare().directories["web"]
    # The store is of the whole process: a name of its own, as a copy to one that exists would go below it.
    fsspec.filesystem("memory").put(str(directory), f"/{tmp_path.name}/web", recursive=True)
    rows, _ = read(tmp_path / "work", [f"memory://{tmp_path.name}/web"])
    assert sorted(row["text"] for row in rows.values()) == sorted(texts)


def test_what_cannot_be_a_source_of_shards_is_refused(tmp_path, tree, prepare, pipeline):
    with pytest.raises(DataError, match="no such directory; expected shards"):
        read(tmp_path / "work", [tmp_path / "none"])
    with pytest.raises(DataError, match="has no manifest.json"):
        read(tmp_path / "work", [tree])
    directory = prepare().directories["web"]
    with pytest.raises(DataError, match="two directories are called web"):
        read(tmp_path / "work", [directory, directory])
    with pytest.raises(DataError, match="empty corpus"):
        read(tmp_path / "work", [directory], include=["tokens-9*.bin"])
    values = pipeline().model_dump(mode="json")
    values["ingest"]["sources"]["web"] |= {"kind": "shards", "path": f"{directory.parent}/../out/web"}
    with pytest.raises(ConfigError, match="is read as a source and would be replaced"):
        validate(values, Pipeline, "test")
