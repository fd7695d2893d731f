"""An extended tokenizer keeps every old id and merge, loses nothing, and says what its new pieces are made of."""

import json
import random

import numpy as np
import pytest

from data_prep.tokenize.lossless import BOS, EOS, probes
from maxlm.data.shards import EXTENSION, read_manifest
from maxlm.data.tokenizer import Tokenizer, read_extension
from maxlm.errors import ConfigError, DataError

PIECES = 60
WORDS = ["学习", "语言", "模型", "数据", "训练", "我们", "文字", "很大", "的", "是", "在", "一个"]


def chinese(number: int) -> str:
    generator = random.Random(number)
    return f"{number}。" + "，".join("".join(generator.choices(WORDS, k=6)) for _ in range(20)) + "。"


@pytest.fixture
def sources(tmp_path, tree):
    """English-like text and Chinese; what the tokenizer is extended by is the latter."""
    (tmp_path / "zh").mkdir()
    for number in range(80):
        (tmp_path / "zh" / f"{number}.txt").write_text(chinese(number))
    return {
        "web": {"kind": "tree", "path": str(tree)},
        "zh": {"kind": "tree", "path": str(tmp_path / "zh"), "language": "zh"},
    }


@pytest.fixture
def old(tmp_path, prepare):
    """Byte-level BPE that was trained without Chinese; its special tokens lie outside the vocabulary of the model."""
    directory = prepare(output=str(tmp_path / "old")).directories["web"] / "tokenizer"
    definition = json.loads((directory / "tokenizer.json").read_text())
    added = [token | {"id": 300 + number} for number, token in enumerate(definition["added_tokens"])]
    vocabulary = definition["model"]["vocab"]
    del vocabulary[BOS], vocabulary[EOS]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    definition["added_tokens"] = [token | {"id": 298 + number} for number, token in enumerate(added)]
    definition["model"]["vocab"] = numbers
    (tmp_path / "old.json").write_text(json.dumps(definition))
    return tmp_path / "old.json"


@pytest.fixture
def extend(tmp_path, prepare, sources, old):
    def call(output="extended", path=old, tokenizer=None, **options):
        section = {"path": str(path), "extend": {"pieces": PIECES, "sources": ["zh"]} | options}
        section |= {"bos": BOS, "eos": EOS} if str(path).endswith(".json") else {}
        return prepare(
            output=str(tmp_path / output),
            ingest={"sources": sources},
            validation={"fraction": 0.2},
            tokenizer=section | (tokenizer or {}),
        )

    return call


def merges_of(definition):
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]


def test_old_ids_and_merges_stay_and_new_ones_stand_behind(extend, old):
    prepared = extend()
    directory, entry = prepared.directories["zh"] / "tokenizer", prepared.manifests["zh"].tokenizer
    before, after = (json.loads(file.read_text()) for file in (old, directory / "tokenizer.json"))
    old_ids = before["model"]["vocab"] | {token["content"]: token["id"] for token in before["added_tokens"]}
    new_ids = after["model"]["vocab"]
    assert {piece: new_ids[piece] for piece in old_ids} == old_ids and after["added_tokens"] == before["added_tokens"]
    assert sorted(set(new_ids.values()) - set(old_ids.values())) == [*range(300, 300 + PIECES)]
    merges = merges_of(before)
    assert merges_of(after)[: len(merges)] == merges and len(merges_of(after)) >= len(merges) + PIECES
    tokenizer = Tokenizer(directory, entry)
    assert (entry.vocab_size, tokenizer.token_id(BOS), tokenizer.eos_id) == (300 + PIECES, 298, 299)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in probes())
    assert not {298, 299} & set(tokenizer.encode(f"{BOS}x{EOS}"))


def test_chinese_becomes_short_and_other_text_stays_what_it_was(extend, old, texts):
    prepared = extend()
    found = prepared.manifests["zh"].tokenizer
    entry = found.model_copy(update={"vocab_size": 300, "files": {}})
    before, after = Tokenizer(old, entry), Tokenizer(prepared.directories["zh"] / "tokenizer", found)
    held_out = chinese(1000)
    assert len(before.encode(held_out)) > 2 * len(after.encode(held_out))
    plain = [text for text in texts if text.isascii()]
    assert plain and all(before.encode(text) == after.encode(text) for text in plain)
    assert [row["text"] for row in prepared.documents("zh-val")]


def test_text_in_ascii_gets_pieces_where_it_is_wanted(extend, sources, texts, old):
    """Of a source in both, the pieces are those of other characters alone where ASCII is to stay."""
    plain = " ".join(text for text in texts if text.isascii())
    sizes = {}
    for keep in (True, False):
        prepared = extend(f"ascii{keep}", sources=["web"], pieces=5, keep_ascii=keep)
        tokenizer = Tokenizer(prepared.directories["zh"] / "tokenizer", prepared.manifests["zh"].tokenizer)
        sizes[keep] = len(tokenizer.encode(plain))
    before = Tokenizer(old, tokenizer.entry.model_copy(update={"vocab_size": 300, "files": {}}))
    assert sizes[False] < sizes[True] == len(before.encode(plain))


def test_new_pieces_have_the_text_of_their_old_ids(extend, old):
    prepared = extend()
    directory, entry = prepared.directories["web"] / "tokenizer", prepared.manifests["web"].tokenizer
    found, old_entry = read_extension(directory), entry.model_copy(update={"vocab_size": 300, "files": {}})
    before, after = Tokenizer(old, old_entry), Tokenizer(directory, entry)
    assert (found.old_vocab_size, found.vocab_size) == (300, 300 + PIECES) == (300, entry.vocab_size)
    assert (found.ids.dtype, found.bounds.dtype, len(found.bounds)) == (np.int32, np.int64, PIECES + 1)
    whole = 0
    for piece in range(PIECES):
        ids = found.ids[found.bounds[piece] : found.bounds[piece + 1]]
        text = after.decode([300 + piece])
        assert len(ids) > 1 and before.decode(ids) == text
        if "\ufffd" not in text:
            whole += 1
            assert before.encode(text) == ids.tolist()
    assert whole > 10


def test_the_extension_lies_in_every_output_and_is_no_part_of_the_tokenizers_identity(extend, prepare, tmp_path):
    prepared = extend()
    manifest = prepared.manifests["web-val"]
    assert {EXTENSION, "tokenizer.json"} == set(manifest.tokenizer.files)
    assert f"tokenizer/{EXTENSION}" in manifest.files, "which `maxlm-prep verify` reads"
    file = prepared.directories["web"] / "tokenizer" / "tokenizer.json"
    # Taken from the shards, from the file, and from a copy of the file alone: the same tokens, the same tokenizer.
    (tmp_path / "copy.json").write_bytes(file.read_bytes())
    taken = [
        prepare(output=str(tmp_path / name), tokenizer={"path": str(path)} | end).manifests["web"]
        for name, path, end in (
            ("shards", prepared.directories["web"], {}),
            ("file", file, {"bos": BOS, "eos": EOS}),
            ("copy", tmp_path / "copy.json", {"bos": BOS, "eos": EOS}),
        )
    ]
    assert len({found.tokenizer.hash for found in [manifest, *taken]}) == 1
    assert len({found.hash for found in taken}) == 1
    assert [EXTENSION in found.tokenizer.files for found in taken] == [True, True, False]


def test_an_extended_tokenizer_can_be_extended_again(extend):
    first = extend().directories["web"]
    second = extend("again", first, pieces=5, sources=["web"], keep_ascii=False)
    found = read_extension(second.directories["web"] / "tokenizer")
    assert (found.old_vocab_size, found.vocab_size) == (300 + PIECES, 305 + PIECES)
    assert found.old_hash == read_manifest(first).tokenizer.hash


def test_other_sources_do_not_extend_it_anew(extend, tree):
    assert "1 made" in extend().printed.split("tokenizers up to date")[1].splitlines()[0]
    (tree / "more.txt").write_text("more of the other source")
    printed = extend().printed
    assert "tokenizer: 1 of 1 tokenizers up to date\n" in printed
    assert "1 made" in extend(pieces=PIECES - 1).printed.split("tokenizers up to date")[1].splitlines()[0]


def test_figures_before_and_after_are_printed(extend):
    printed = extend().printed
    assert f"tokenizers, {300 + PIECES} tokens, the 300 of " in printed and f"{PIECES} learnt from" in printed
    assert "before extension" in printed
    assert "every probe and all " in printed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sources": ["zh", "nowhere"]}, ConfigError, "no source is called nowhere; there are web, zh"),
        ({"pieces": 50_000}, ConfigError, r"pieces is 50000, but [\d,]+ bytes of text in \d+ documents give \d+; give"),
        ({"languages": ["en"]}, ConfigError, r"pieces is 60, but 0 bytes of text in 0 documents give 0"),
    ],
)
def test_an_extension_that_cannot_be_is_one_line(extend, options, error, message):
    with pytest.raises(error, match=message):
        extend(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "WordPiece"}, "WordPiece cannot be extended, it has no merges; .*byte-level BPE"),
        ({"type": "Unigram"}, "Unigram cannot be extended, it has no merges"),
        ({"byte_fallback": True}, "BPE over characters cannot be extended, its bytes cannot be merged"),
        ({"end_of_word_suffix": "</w>"}, "BPE with marks inside words or with dropout cannot be extended"),
    ],
)
def test_a_kind_that_cannot_be_extended_is_refused_before_anything_runs(extend, old, tmp_path, change, message):
    definition = json.loads(old.read_text())
    definition["model"] |= change
    (tmp_path / "other.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match=message):
        extend(path=tmp_path / "other.json")
    assert not (tmp_path / "extended" / ".work" / "test" / "ingest").exists()


def test_sentencepiece_cannot_be_extended(extend, tmp_path):
    (tmp_path / "some.model").write_bytes(b"")
    with pytest.raises(ConfigError, match="sentencepiece cannot be extended"):
        extend(path=tmp_path / "some.model")


def test_a_special_token_that_a_text_would_become_is_refused(extend, old, tmp_path):
    """A tokenizer that takes whole words from its vocabulary, and a special token that is a whole word."""
    text = old.read_text().replace(EOS, "theend")
    definition = json.loads(text)
    definition["model"]["ignore_merges"] = True
    (tmp_path / "words.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match="the text 'theend' would become the special token"):
        extend(path=tmp_path / "words.json", tokenizer={"eos": "theend"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"algorithm": "byte_bpe", "vocab_size": 300, "extend": {"pieces": 1, "sources": ["a"]}}, "extend is for the"),
        ({"path": "x", "vocab_size": 300, "extend": {"pieces": 1, "sources": ["a"]}}, "vocab_size is for a tokenizer"),
        ({"path": "x", "extend": {"pieces": 1, "sources": []}}, "extend.sources"),
    ],
)
def test_sections_that_contradict_each_other(pipeline, section, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(tokenizer=section)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": "maxlm-extension", "version": 2, "old_vocab_size": 3, "old_hash": "a", "pieces": [[1, 2]]}',
        '{"format": "maxlm-extension", "version": 1, "old_vocab_size": 3, "old_hash": "a", "pieces": [[1, 3]]}',
        '{"format": "maxlm-extension", "version": 1, "old_vocab_size": 3, "old_hash": "a", "pieces": [[]]}',
        '{"format": "maxlm-extension", "version": 1, "old_vocab_size": 3, "old_hash": "a", "pieces": [["x"]]}',
    ],
)
def test_a_damaged_extension_is_one_line(tmp_path, content):
    assert read_extension(tmp_path) is None
    (tmp_path / EXTENSION).write_text(content)
    with pytest.raises(DataError, match=EXTENSION):
        read_extension(tmp_path)


def test_the_mean_of_old_rows_is_what_the_arrays_are_for(tmp_path):
    """As a model that goes on would start its new rows."""
    content = {"format": "maxlm-extension", "version": 1, "old_vocab_size": 3, "old_hash": "a", "pieces": [[0, 2], [1]]}
    (tmp_path / EXTENSION).write_text(json.dumps(content))
    found, rows = read_extension(tmp_path), np.array([[1.0, 2], [5, 6], [3, 4]])
    means = np.add.reduceat(rows[found.ids], found.bounds[:-1]) / np.diff(found.bounds)[:, None]
    assert means.tolist() == [[2, 3], [5, 6]]
