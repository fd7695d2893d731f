"""Bulk encoding gives the ids of `tokenizers`, whatever the documents, and proves that none loses anything."""

import json

import numpy as np
import pytest

from data_prep.text.texts import Texts
from data_prep.tokenize import encode, runs, shards
from data_prep.tokenize.encode import Encoder, Fast
from data_prep.tokenize.lossless import BOS, EOS, probes
from data_prep.tokenize.tokens import gather, spell
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError

LONG = "naïve 日本語文章、" * 60_000  # more than a batch
DOCUMENTS = ["", "a", "", f"{BOS}x{EOS}", "古池や 蛙飛びこむ", "\u2581 \0", *probes(), "", LONG, "the end", ""]


@pytest.fixture
def tokenizer(prepare) -> Tokenizer:
    prepared = prepare()
    return Tokenizer(prepared.directories["web"] / "tokenizer", prepared.manifests["web"].tokenizer)


def check(encoder: Encoder, texts: Texts, expected: list[list[int]]) -> None:
    ids, counts = encoder.encode(texts)
    assert ids.dtype == np.uint32 and counts.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [token for row in expected for token in row]


def test_ids_are_those_of_the_tokenizers_library(tokenizer):
    texts = Texts.from_strings(DOCUMENTS)
    expected = [tokenizer.encode(text) for text in DOCUMENTS]
    for fast in (Fast.load(tokenizer), None):
        encoder = Encoder(tokenizer, fast, True)
        check(encoder, texts, expected)
        # A piece of a larger buffer, as batches are; the last one has no text at all.
        for first, last in ((3, 9), (0, 1), (len(DOCUMENTS) - 2, len(DOCUMENTS)), (2, 3)):
            check(encoder, Texts(texts.data, texts.bounds[first : last + 1]), expected[first:last])
        check(encoder, Texts.from_strings([]), [])


def test_a_library_that_has_grown_is_loaded_anew_and_gives_the_same_ids(tokenizer, monkeypatch):
    texts = Texts.from_strings(DOCUMENTS)
    fast = Fast.load(tokenizer)
    first, library = fast.encode(texts), fast._library
    assert fast.encode(texts) and fast._library is library
    monkeypatch.setattr(encode, "CACHE_BYTES", -(2**40))
    again = fast.encode(texts)
    assert fast._library is not library
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_text_that_is_lost_is_found_wherever_it_is(tokenizer, monkeypatch):
    """The ids of one document are wrong: another token, one too few, one too many, or its neighbour's."""
    texts = Texts.from_strings(["one two", "", "three four", "five"])
    fast = Fast.load(tokenizer)
    ids, counts = Encoder(tokenizer, fast, True).encode(texts)
    assert fast.spells(ids, counts, texts)
    assert spell(ids, counts, fast._pieces, fast._edges, texts.data, texts.bounds), "without decoding"
    monkeypatch.setattr(encode, "CHECKED_DOCUMENTS", 0)
    other = ids.copy()
    other[counts[0]] = other[-1]
    moved = counts + [1, 0, -1, 0]
    for wrong in ((other, counts), (ids[:-1], counts - [0, 0, 0, 1]), (np.append(ids, ids[-1]), counts + [0, 0, 0, 1])):
        assert not fast.spells(*wrong, texts)
        monkeypatch.setattr(Fast, "encode", lambda self, texts, wrong=wrong: wrong)
        with pytest.raises(DataError, match="does not give its text back"):
            Encoder(tokenizer, fast, True).encode(texts)
    assert not spell(ids, moved, fast._pieces, fast._edges, texts.data, texts.bounds)
    # An id that the vocabulary does not have, where numba would read what lies behind it.
    assert not spell(ids + np.uint32(2**20), counts, fast._pieces, fast._edges, texts.data, texts.bounds)


def test_other_ids_for_the_same_text_are_found_in_the_first_documents(tokenizer, monkeypatch):
    """Bytes one by one spell the text as well, so that only the comparison sees it."""
    text = "the string"
    fast = Fast.load(tokenizer)
    table = {piece: number for number, piece in fast._library.vocab.items()}
    single = np.array([table[bytes([byte])] for byte in text.encode()], np.uint32)
    assert single.tolist() != tokenizer.encode(text)
    monkeypatch.setattr(Fast, "encode", lambda self, texts: (single, np.array([len(single)])))
    with pytest.raises(DataError, match="gigatoken gives other ids than tokenizers for 'the string'"):
        Encoder(tokenizer, fast, True).encode(Texts.from_strings([text]))


def test_documents_are_gathered_in_any_order():
    tokens = np.arange(10, dtype=np.uint16)
    result = np.empty(5, np.uint16)
    gather(tokens, np.array([7, 9, 0]), np.array([2, 0, 3]), result)
    assert result.tolist() == [7, 8, 0, 1, 2]


def test_shards_do_not_depend_on_the_size_of_batches(tmp_path, tree, prepare, contents, monkeypatch):
    """One document at a time or all together, within a run and over runs; some of the documents give no token."""
    sections = {
        "ingest": {"sources": {"web": {"kind": "tree", "path": str(tree)}}, "shard_bytes": 12000},
        "validation": {"fraction": 0.3},
        "shards": {"shard_tokens": 4000},
    }
    prepare(output=str(tmp_path / "large"), **sections)
    for module, name, value in (
        (runs, "BATCH_TOKENS", 100),
        (runs, "BATCH_DOCUMENTS", 7),
        (runs, "ROW_GROUP", 7),
        (shards, "ROW_GROUP", 7),
        (shards, "BATCH_TOKENS", 150),
    ):
        monkeypatch.setattr(module, name, value)
    prepare(output=str(tmp_path / "small"), **sections)
    large, small = contents(tmp_path / "large"), contents(tmp_path / "small")
    assert large == small and json.loads(large["web/manifest.json"])["documents"] > 50
