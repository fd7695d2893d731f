"""The shards that are written: split, shuffle, format, and what they do not depend on."""

import hashlib
import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import pipeline
from data_prep.documents import SHUFFLE_SALT, held_out, mix, read, write_columns
from data_prep.lists import Marks, commit
from data_prep.tokenize.runs import Encoding
from data_prep.tokenize.tokens import add_boundaries
from maxlm.config import CacheConfig
from maxlm.data.shards import HASH_DTYPE, Shards, TokenizerEntry, document_hash, fingerprints_name, read_manifest
from maxlm.errors import DataError, SaveError

SMALL = {"shard_bytes": 12000}
SPLIT = {"fraction": 0.3}


def ids(prepared, name):
    return [row["id"] for row in prepared.documents(name)]


def many_parts(tree):
    return {"sources": {"web": {"kind": "tree", "path": str(tree)}}, **SMALL}


def test_output_does_not_depend_on_the_number_of_workers(tmp_path, tree, prepare, contents):
    sections = {"ingest": many_parts(tree), "validation": SPLIT, "shards": {"shard_tokens": 4000}}
    for workers in (1, 3):
        prepare(workers=workers, output=str(tmp_path / f"out{workers}"), **sections)
    one, three = contents(tmp_path / "out1"), contents(tmp_path / "out3")
    assert one == three and len([name for name in one if name.endswith(".bin")]) > 4


def test_split_and_shuffle_hold_every_document_once(tree, prepare, texts):
    prepared = prepare(ingest=many_parts(tree), validation=SPLIT, shards={"shard_tokens": 4000})
    train, validation = prepared.documents("web"), prepared.documents("web-val")
    assert sorted(row["text"] for row in train + validation) == sorted(texts)
    assert 0.15 < len(validation) / len(texts) < 0.45
    hashes = np.array([document_hash(row["id"]) for row in validation], np.uint64)
    assert held_out(hashes, 0.3).all()


def test_split_of_a_document_is_stable_when_others_come(tree, prepare):
    before = prepare(validation=SPLIT)
    train, validation = set(ids(before, "web")), set(ids(before, "web-val"))
    for number in range(50):
        (tree / f"new{number}.txt").write_text(f"new {number}")
    after = prepare(validation=SPLIT, seed=9)
    assert train <= set(ids(after, "web")) and validation <= set(ids(after, "web-val"))


def test_shuffle_is_global_and_follows_the_seed(tree, prepare):
    """Neighbours in the output are as far apart in the input as chance puts them, across parts and output shards."""
    orders = []
    for seed in (0, 1):
        prepared = prepare(seed=seed, ingest=many_parts(tree), shards={"shard_tokens": 2000})
        assert len(prepared.manifests["web"].shards) > 3
        orders.append([int(Path(name).stem) for name in ids(prepared, "web")])
        keys = mix(np.array([document_hash(name) for name in ids(prepared, "web")], np.uint64), SHUFFLE_SALT + seed)
        assert (keys[1:] > keys[:-1]).all(), "one order over all output shards"
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    for order in orders:
        position = np.argsort(order)
        assert abs(np.corrcoef(np.arange(len(order)), position)[0, 1]) < 0.3
        assert abs(np.mean(np.abs(np.diff(position))) / len(order) - 1 / 3) < 0.08


def test_shuffle_keys_are_a_bijection_of_the_id_hashes():
    hashes = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mix(hashes, 5))) == len(hashes)
    assert not np.array_equal(mix(hashes, 5), mix(hashes, 6))


def test_hash_table_finds_every_document(prepare):
    prepared = prepare(shards={"shard_tokens": 2000})
    directory = prepared.directories["web"]
    table = np.fromfile(directory / "documents.hash", HASH_DTYPE)
    assert (np.diff(table["hash"].astype(object)) >= 0).all()
    places = {int(row["hash"]): (int(row["shard"]), int(row["row"])) for row in table}
    shards = prepared.manifests["web"].shards
    starts = np.cumsum([0] + [shard.documents for shard in shards])
    for number, name in enumerate(ids(prepared, "web")):
        shard, row = places[document_hash(name)]
        assert starts[shard] + row == number


def test_manifest_counts_and_checksums_are_those_of_the_files(prepare):
    prepared = prepare(shards={"shard_tokens": 2000})
    directory, manifest = prepared.directories["web"], prepared.manifests["web"]
    assert read_manifest(directory) == manifest
    on_disk = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert on_disk == set(manifest.files) | {"manifest.json"}
    for name, entry in manifest.files.items():
        data = (directory / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.sha256)
    assert manifest.dtype == "uint16" and manifest.documents == 120


def test_what_copies_are_found_by_lies_beside_the_documents(tmp_path, tree, prepare, monkeypatch):
    """Row for row, with what stages added; not among the documents, which have all other columns of stages."""

    def add(this, parts):
        after = []
        for part in parts:
            table = read(part, ("row", "id_hash"))
            number = table["id_hash"].to_numpy()
            columns = {
                "normalised": pa.array(number + np.uint64(1)),
                "bands": pa.array([[value, 7] for value in number.tolist()], pa.list_(pa.uint64())),
                "score": pa.array(np.arange(len(number)) * 0.5),
            }
            path = tmp_path / f"{part.name}.columns"
            write_columns(path, part, table["row"].to_numpy().astype(np.int64), columns)
            after.append(part.with_columns(path, list(columns), part.name))
        return after

    monkeypatch.setattr(pipeline, "SELECTING", pipeline.SELECTING | {"rules": add})
    prepared = prepare(ingest=many_parts(tree), shards={"shard_tokens": 4000})
    directory, rows, prints = prepared.directories["web"], prepared.documents("web"), []
    for number, shard in enumerate(prepared.manifests["web"].shards):
        assert fingerprints_name(number) in shard.files
        prints += pq.read_table(directory / fingerprints_name(number)).to_pylist()
    assert len(prints) == len(rows) == 120
    for row, found in zip(rows, prints, strict=True):
        number = document_hash(row["id"])
        assert found == {
            "hash": hashlib.sha256(row["text"].encode()).digest()[:16],
            "normalised": (number + 1) % 2**64,
            "bands": [number, 7],
        }
        assert "score" in row and not {"hash", "normalised", "bands", "id_hash"} & set(row)


def test_fingerprints_are_verified_in_a_store_and_fetched_by_no_reader(tmp_path, prepare):
    directory = prepare().directories["web"]
    store = fsspec.filesystem("memory")
    store.put(str(directory), "/prepared/web", recursive=True)
    cache = CacheConfig(directory=str(tmp_path / "cache"), chunk_mib=1)
    local, remote = Shards(directory), Shards("memory://prepared/web", cache)
    remote.verify("checksums")
    assert np.array_equal(local.read(0, len(local)), remote.read(0, len(remote)))
    assert np.array_equal(local.ends(0, len(local)), remote.ends(0, len(remote)))
    assert [remote.local_documents(0), remote.local_hashes(), remote.local_tokenizer()]
    fetched = {path.name.partition(".")[0] for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert {"tokens-00000", "documents-00000", "documents"} <= fetched and "fingerprints-00000" not in fetched
    name = f"/prepared/web/{fingerprints_name(0)}"
    store.pipe_file(name, store.cat_file(name)[:-1] + b"x")
    with pytest.raises(DataError, match="fingerprints-00000.parquet: its contents differ"):
        remote.verify("checksums")


def test_several_sources_share_a_tokenizer_and_have_a_directory_each(tree, prepare):
    sources = {name: {"kind": "tree", "path": str(tree / name)} for name in "abc"}
    prepared = prepare(ingest={"sources": sources}, validation=SPLIT)
    assert set(prepared.manifests) == {"a", "b", "c", "a-val", "b-val", "c-val"}
    assert len({manifest.tokenizer.hash for manifest in prepared.manifests.values()}) == 1
    assert {row["source"] for row in prepared.documents("b")} == {"b"}


def test_a_large_vocabulary_is_written_in_four_bytes():
    for size, dtype in ((2**16, "uint16"), (2**16 + 1, "uint32")):
        entry = TokenizerEntry(kind="tokenizers", vocab_size=size, bos_id=None, eos_id=0, files={})
        assert Encoding(Path("."), entry, True, True, 0, 0.0).dtype == dtype


def test_boundaries_surround_documents_with_tokens_and_no_others():
    tokens, lengths = add_boundaries(np.array([5, 6, 7], np.uint32), np.array([1, 0, 2]), 1, 2)
    assert tokens.tolist() == [1, 5, 2, 1, 6, 7, 2] and lengths.tolist() == [3, 0, 4]
    tokens, lengths = add_boundaries(np.array([5, 6, 7], np.uint32), np.array([0, 3, 0]), None, 2)
    assert tokens.tolist() == [5, 6, 7, 2] and lengths.tolist() == [0, 4, 0]


def test_documents_of_one_token_are_kept(tmp_path, tree, prepare):
    (tree / "one.txt").write_text("x")
    rows = {row["id"]: row for row in prepare().documents("web")}
    assert rows["web/one.txt"]["text"] == "x" and rows["web/one.txt"]["bytes"] == 1


def test_documents_that_lost_all_their_text_are_not_written(tmp_path, prepare, monkeypatch):
    def empty(this, parts):
        (part,) = parts
        marks = Marks()
        for row, size in zip((3, 50), read(part, ("bytes",))["bytes"].take([3, 50]).to_pylist(), strict=True):
            marks.edit(row, [(0, size, "")], "emptied", "emptied")
        return this.apply("rules", parts, [commit(this.folder("rules"), "key", {part.name: marks})])

    monkeypatch.setattr(pipeline, "SELECTING", pipeline.SELECTING | {"rules": empty})
    prepared = prepare()
    assert prepared.manifests["web"].documents == len(prepared.documents("web")) == 118
    assert all(row["text"] for row in prepared.documents("web"))
    funnel = json.loads((tmp_path / "out" / ".work" / "test" / "funnel.json").read_text())
    assert funnel[-1]["dropped"] == {"no tokens": {"documents": 2, "bytes": 0}}


def test_an_output_shard_without_documents_is_not_written(tmp_path, prepare):
    (tmp_path / "few").mkdir()
    for number in range(3):
        (tmp_path / "few" / f"{number}.txt").write_text("a b c " * 50 + str(number))
    sources = {"web": {"kind": "tree", "path": str(tmp_path / "few")}}
    prepared = prepare(ingest={"sources": sources}, shards={"shard_tokens": 10})
    assert 0 < len(prepared.manifests["web"].shards) <= 3 and len(ids(prepared, "web")) == 3


def test_a_corpus_that_is_all_blank_is_refused(tmp_path, prepare):
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="empty corpus"):
        prepare(ingest={"sources": {"web": {"kind": "tree", "path": str(tmp_path / "blank")}}})


def test_a_directory_that_is_not_shards_is_never_replaced(tmp_path, prepare):
    precious = tmp_path / "out" / "web" / "notes.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(SaveError, match="out/web"):
        prepare()
    assert precious.read_text() == "mine"
