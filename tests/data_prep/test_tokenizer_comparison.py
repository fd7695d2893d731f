"""Tokenizers are measured on held-out text, beside others, and what they lose of it is said."""

import json

import pytest

from data_prep.config import TokenizerConfig
from data_prep.tokenize import compare
from data_prep.tokenize.lossless import BOS, EOS, difference, probes
from data_prep.tokenize.tokenizer import describe
from data_prep.tokenize.train import train
from maxlm.data.tokenizer import FILE_NAMES, Tokenizer
from maxlm.errors import ConfigError, DataError

ENGLISH, CHINESE = "The 3 words, don't stop.", "我们在学习。 AI"


@pytest.fixture
def sources(tmp_path):
    for name, text in (("en", ENGLISH), ("zh", CHINESE)):
        (tmp_path / name).mkdir()
        for number in range(40):
            (tmp_path / name / f"{number}.txt").write_text(f"{text * 5}\n{'no' * number}")
    return {name: {"kind": "tree", "path": str(tmp_path / name), "language": name} for name in ("en", "zh")}


@pytest.fixture
def run(tmp_path, prepare, sources):
    def call(tokenizer=None, **sections):
        section = {"algorithm": "byte_bpe", "vocab_size": 300} | (tokenizer or {})
        return prepare(ingest={"sources": sources}, validation={"fraction": 0.4}, tokenizer=section, **sections)

    return call


@pytest.fixture
def other(tmp_path):
    """A sentencepiece model, which has bytes for Chinese."""
    config = TokenizerConfig(algorithm="sentencepiece_bpe", vocab_size=290)
    _, content = train(config, [ENGLISH] * 30)
    (tmp_path / "other.model").write_bytes(content)
    return tmp_path / "other.model"


def rows(tmp_path):
    found = json.loads((tmp_path / "out" / ".work" / "test" / compare.FILE).read_text())
    return {(row["tokenizer"], row["source"]): row for row in found}


def test_figures_are_those_that_are_counted_one_by_one(run, tmp_path, other):
    prepared = run({"compare": {"other": str(other)}})
    found = rows(tmp_path)
    assert [*found] == [(name, source) for name in (compare.OWN, "other") for source in ("en", "zh")]
    tokenizers = {
        compare.OWN: Tokenizer(prepared.directories["en"] / "tokenizer", prepared.manifests["en"].tokenizer),
        "other": Tokenizer(other, describe(other, "sentencepiece", None, None)),
    }
    for (name, source), row in found.items():
        documents = [document["text"] for document in prepared.documents(f"{source}-val")]
        ids = [tokenizers[name].encode(text) for text in documents]
        tokens, size = sum(map(len, ids)), sum(len(text.encode()) for text in documents)
        assert (row["language"], row["documents"], row["bytes"], row["tokens"]) == (source, len(ids), size, tokens)
        assert row["bytes_per_token"] == pytest.approx(size / tokens)
        counted = [text.count("The") * 7 + ("no" in text.split("\n")[1]) for text in documents]
        if source == "zh":
            counted = [5 * 5 for _ in documents]  # Han characters alone
        assert row["words"] == sum(counted) and row["fertility"] == pytest.approx(tokens / sum(counted))
        pieces = tokenizers[name].vocab_size - len(tokenizers[name].special_tokens())
        assert row["vocabulary_used"] == pytest.approx(len({i for row in ids for i in row}) / pieces)
        assert row["lost"] == 0
    assert found["other", "zh"]["byte_documents"] == found["other", "zh"]["documents"]
    assert found["other", "zh"]["byte_tokens"] == 3 * (5 + 1) * 5 * found["other", "zh"]["documents"]
    assert found["other", "en"]["byte_tokens"] == found[compare.OWN, "en"]["byte_tokens"] == 0


def test_the_table_and_the_proof_are_printed(run, other):
    printed = run({"compare": {"other": str(other)}}).printed
    assert "bytes/token" in printed and "fertility" in printed and "other" in printed
    assert (
        "comparison: every probe and all " in printed and "held-out documents that were measured come back" in printed
    )


def test_another_tokenizer_beside_it_trains_nothing_anew(run, other):
    run()
    printed = run({"compare": {"other": str(other)}}).printed
    assert "tokenizer: 1 of 1 tokenizers up to date\n" in printed
    assert "comparison: 0 of 1 comparisons up to date, 1 made" in printed
    assert "tokenize: 2 of 2 shards up to date\n" in printed
    assert "comparison: 1 of 1 comparisons up to date\n" in run({"compare": {"other": str(other)}}).printed


def test_only_a_sample_is_measured(run, tmp_path, monkeypatch):
    run()
    everything = rows(tmp_path)
    monkeypatch.setattr(compare, "MEASURED_BYTES", 1500)
    monkeypatch.setattr(compare, "VERSION", 10**6)
    run()
    for key, row in rows(tmp_path).items():
        assert 0 < row["bytes"] < everything[key]["bytes"] / 1.5


def test_without_held_out_documents_all_are_measured(prepare, sources, tmp_path):
    printed = prepare(ingest={"sources": sources}).printed
    assert sum(row["documents"] for row in rows(tmp_path).values()) == 80
    assert "all 80 documents that were measured come back" in printed


def test_held_out_text_that_is_lost_is_said_with_what_stands_before_it(run, tmp_path):
    """It is in no probe: two characters that stand beside each other in one source alone."""
    definition = json.loads((run().directories["en"] / "tokenizer" / "tokenizer.json").read_text())
    definition["normalizer"] = {"type": "Replace", "pattern": {"String": "学习"}, "content": "x"}
    (tmp_path / "lossy.json").write_text(json.dumps(definition))
    path = {"algorithm": None, "vocab_size": None, "path": str(tmp_path / "lossy.json"), "bos": BOS, "eos": EOS}
    with pytest.raises(DataError, match=r"'\\u5b66\\u4e60.*becomes 'x\\u3002.* after '\\u6211\\u4eec\\u5728'"):
        run(path)
    printed = run(path | {"allow_lossy": True}).printed
    found = rows(tmp_path)[compare.OWN, "zh"]
    assert found["lost"] == found["documents"] > 0 and rows(tmp_path)[compare.OWN, "en"]["lost"] == 0
    assert "warning: the tokenizer does not give every text back: '\\u5b66" in printed and "come back" not in printed


def test_a_tokenizer_to_compare_with_that_is_not_there_stops_the_run_at_once(run, tmp_path):
    with pytest.raises(DataError, match="nowhere: no tokenizer; expected"):
        run({"compare": {"other": str(tmp_path / "nowhere")}})
    assert not (tmp_path / "out" / ".work" / "test" / "ingest").exists()
    with pytest.raises(ConfigError, match="compare"):
        run({"compare": {"an other": "x"}})


def test_probes_have_every_byte_that_text_has_and_all_planes():
    found = "".join(probes())
    assert {bytes([byte]) for byte in range(0x80)} <= {text.encode() for text in probes()}
    assert set(found.encode()) == {*range(0xC0), *range(0xC2, 0xF5)}, "UTF-8 has no others"
    assert {ord(character) >> 16 for character in found} == {*range(17)}
    assert len(set(found)) > 130_000


def test_a_difference_is_where_it_begins():
    assert difference("abc def", "abc xef") == "'def' becomes 'xef' after 'abc '"
    assert difference("abc", "ab") == "'c' becomes '' after 'ab'"
    assert difference("é", "e") == "'\\xe9' becomes 'e'"
    assert difference("a" * 30 + "b" * 30, "a" * 30) == f"'{'b' * 20}'... becomes '' after '{'a' * 20}'"


@pytest.mark.parametrize("algorithm", ["byte_bpe", "wordpiece", "sentencepiece_bpe"])
def test_bytes_of_characters_are_known_in_every_kind(tmp_path, algorithm):
    size = {"byte_bpe": 262, "wordpiece": 520, "sentencepiece_bpe": 270}[algorithm]
    kind, content = train(TokenizerConfig(algorithm=algorithm, vocab_size=size), ["ac " * 20 + "ab" * 20] * 20)
    (tmp_path / FILE_NAMES[kind]).write_bytes(content)
    tokenizer = Tokenizer(tmp_path, describe(tmp_path / FILE_NAMES[kind], kind, BOS, EOS))
    partial = tokenizer.partial()
    # Every byte from 0x80 on makes no character alone; WordPiece has them twice.
    assert len(partial) == tokenizer.vocab_size and partial.sum() == 128 * (2 if algorithm == "wordpiece" else 1)
    assert partial[tokenizer.encode("語")].all() and not partial[tokenizer.encode("a\n")].any()
