"""Tokenizers give every text back, are the same for the same text, and are refused where they lose something."""

import json
import pickle

import pytest

from data_prep.tokenize.lossless import BOS, EOS, probes
from maxlm.data.shards import read_manifest
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError, DataError

ALGORITHMS = {"byte_bpe": 300, "wordpiece": 600, "sentencepiece_bpe": 400, "sentencepiece_unigram": 400}


@pytest.fixture(params=ALGORITHMS)
def trained(request, prepare):
    """A prepared corpus for each algorithm."""
    return prepare(tokenizer={"algorithm": request.param, "vocab_size": ALGORITHMS[request.param]})


def test_every_text_comes_back(trained, texts):
    manifest = trained.manifests["web"]
    tokenizer = Tokenizer(trained.directories["web"] / "tokenizer", manifest.tokenizer)
    for text in [*probes(), *texts]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert max(ids, default=0) < manifest.tokenizer.vocab_size
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids), "special tokens in a text are ordinary text"
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


def test_the_token_stream_decodes_to_the_documents(trained, texts):
    rows = trained.documents("web")
    assert sorted(row["text"] for row in rows) == sorted(texts)
    assert sum(len(row["text"].encode()) for row in rows) == trained.manifests["web"].bytes
    assert all(row["bytes"] == len(row["text"].encode()) for row in rows)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_text_gives_the_same_tokenizer(tmp_path, prepare, algorithm):
    def train(name):
        config = {"algorithm": algorithm, "vocab_size": ALGORITHMS[algorithm]}
        return prepare(tokenizer=config, output=str(tmp_path / name)).manifests["web"].tokenizer.hash

    assert train("one") == train("two")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens_are_in_the_vocabulary_and_no_text_becomes_one(prepare, tree, algorithm):
    special = ["<fim_prefix>", "<fim_suffix>", "<fim,middle>"]
    (tree / "odd.txt").write_text(f"def {special[0]}: x{special[1]}{special[2]}\n" * 9)
    config = {"algorithm": algorithm, "vocab_size": ALGORITHMS[algorithm], "special_tokens": special}
    prepared = prepare(tokenizer=config)
    manifest = prepared.manifests["web"]
    tokenizer = Tokenizer(prepared.directories["web"] / "tokenizer", manifest.tokenizer)
    ids = [tokenizer.token_id(text) for text in special]
    assert len({*ids, tokenizer.bos_id, tokenizer.eos_id}) == 5
    assert manifest.tokenizer.vocab_size == ALGORITHMS[algorithm] and max(ids) < ALGORITHMS[algorithm]
    assert {*special, BOS, EOS} <= set(tokenizer.special_tokens())
    text = "".join(special) + BOS
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert copy.decode(copy.encode(text)) == text and not set(ids) & set(copy.encode(text))
        assert copy.decode([ids[0], *copy.encode("a b"), ids[2]]) == "a b"
    texts = [row["text"] for row in prepared.documents("web")]  # which looks at every document's end
    assert any(special[2] in text for text in texts)
    assert (tokenizer.token_id("<fim_nothing>"), tokenizer.token_id(EOS)) == (None, tokenizer.eos_id)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"path": "x", "special_tokens": ["<a>"]}, "special_tokens is for a tokenizer that is trained"),
        ({"algorithm": "byte_bpe", "vocab_size": 300, "special_tokens": ["<a>"] * 2}, "names a token twice, found <a>"),
        ({"algorithm": "byte_bpe", "vocab_size": 260, "special_tokens": ["<a>", "<b>"]}, "at least 261 with these"),
        ({"algorithm": "byte_bpe", "vocab_size": 300, "special_tokens": ["a b"]}, "special_tokens.* found 'a b'"),
    ],
)
def test_special_tokens_that_cannot_be_are_configuration_errors(pipeline, tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(tokenizer=tokenizer)


def test_digits_are_split_in_groups_of_three(prepare):
    prepared = prepare()
    tokenizer = Tokenizer(prepared.directories["web"] / "tokenizer", prepared.manifests["web"].tokenizer)
    assert len(tokenizer.encode("12345" * 3)) >= 5


def test_an_existing_tokenizer_is_taken_from_a_file_or_from_shards(tmp_path, prepare):
    first = prepare()
    file = first.directories["web"] / "tokenizer" / "tokenizer.json"
    shared = prepare(output=str(tmp_path / "b"), tokenizer={"path": str(first.directories["web"])})
    plain = prepare(output=str(tmp_path / "c"), tokenizer={"path": str(file), "eos": EOS})
    assert shared.manifests["web"].tokenizer == first.manifests["web"].tokenizer
    assert plain.manifests["web"].tokenizer.bos_id is None
    assert plain.manifests["web"].tokens == first.manifests["web"].tokens - first.manifests["web"].documents
    with pytest.raises(ConfigError, match=f"'</s>' is not in.*{BOS[2:-2]}"):
        prepare(output=str(tmp_path / "d"), tokenizer={"path": str(file), "eos": "</s>"})


@pytest.fixture
def lossy_file(tmp_path, prepare):
    """A tokenizer that folds case."""
    manifest = prepare(output=str(tmp_path / "first")).directories["web"]
    definition = json.loads((manifest / "tokenizer" / "tokenizer.json").read_text())
    definition["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "lossy.json").write_text(json.dumps(definition))
    return tmp_path / "lossy.json"


def test_a_lossy_tokenizer_is_refused_with_the_first_difference(lossy_file, prepare, tmp_path):
    with pytest.raises(DataError, match="does not give its text back: 'A' becomes 'a'"):
        prepare(tokenizer={"path": str(lossy_file)})
    prepared = prepare(tokenizer={"path": str(lossy_file), "allow_lossy": True})
    assert "warning" in prepared.printed and read_manifest(tmp_path / "out" / "web").documents == 120


def test_a_document_that_does_not_come_back_is_refused_although_the_probes_did(tmp_path, prepare):
    """The check covers every document: such neighbours are in none of the probes."""
    (tmp_path / "raw" / "odd.txt").write_text("x \U0001d54f\U0001d54e y")
    definition = json.loads((prepare().directories["web"] / "tokenizer" / "tokenizer.json").read_text())
    definition["normalizer"] = {"type": "Replace", "pattern": {"String": "\U0001d54f\U0001d54e"}, "content": "X"}
    (tmp_path / "odd.json").write_text(json.dumps(definition))
    split = {"fraction": 1e-9}
    with pytest.raises(DataError, match="U0001d54e y' becomes 'X y' after 'x '"):
        prepare(tokenizer={"path": str(tmp_path / "odd.json")}, validation=split)


def test_gigatoken_and_tokenizers_write_the_same_shards(tmp_path, prepare, contents):
    config = {"algorithm": "byte_bpe", "vocab_size": 300}
    fast = prepare(tokenizer=config, output=str(tmp_path / "fast"))
    slow = prepare(tokenizer=config | {"fast": False}, output=str(tmp_path / "slow"))
    assert fast.manifests["web"].hash == slow.manifests["web"].hash


def test_a_vocabulary_that_the_text_cannot_fill_is_a_configuration_error(prepare):
    with pytest.raises(ConfigError, match="sentencepiece cannot train 50000 pieces: .*50000"):
        prepare(tokenizer={"algorithm": "sentencepiece_unigram", "vocab_size": 50000})


def test_held_out_documents_do_not_train_the_tokenizer(tmp_path, prepare):
    """Words of the held-out documents alone cannot become tokens, whatever their number."""
    split = {"fraction": 0.5}
    held = {row["id"] for row in prepare(validation=split).documents("web-val")}
    for path in (tmp_path / "raw").rglob("*.txt"):
        if f"web/{path.relative_to(tmp_path / 'raw')}" in held:
            path.write_text("quixotry " * 1000 + path.name)
    prepared = prepare(validation=split)
    assert {row["id"] for row in prepared.documents("web-val")} == held
    vocabulary = json.loads((prepared.directories["web"] / "tokenizer" / "tokenizer.json").read_text())["model"][
        "vocab"
    ]
    assert not any("quix" in token for token in vocabulary)
