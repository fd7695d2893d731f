"""Fill-in-the-middle gives back what it rearranged, prefixes part what sees ahead from what is predicted."""

import functools
import os
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.config import FimConfig, PrefixConfig, validate
from maxlm.data import order
from maxlm.data.shards import Shards, TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.data.transforms import SHORTEST, Fim, example_keys, fill_in_the_middle, open_fim, prefix_mask
from maxlm.errors import ConfigError

EOS, BOS, PRE, SUF, MID, FIRST = 0, 1, 2, 3, 4, 10
SENTINELS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
CUT = "\ufffd"  # what decoding makes of a cut character
SEED, SOURCE = 3, order.source_id("code")


class Ids(NamedTuple):
    """All that the level of tokens asks of a tokenizer."""

    bos_id: int | None
    eos_id: int = EOS


def token_fim(bos: bool = True, **how: object) -> Fim:
    return Fim(FimConfig(**{"level": "token", "rate": 1.0} | how), PRE, SUF, MID, Ids(BOS if bos else None))


def make_window(lengths: list[int], begins: bool, finished: bool, bos: bool) -> tuple[np.ndarray, np.ndarray]:
    """Parts of the given lengths, whose other tokens count up: the first may go on, the last may not end."""
    ends = np.cumsum(lengths)
    text = np.arange(FIRST, FIRST + ends[-1], dtype=np.uint16)
    starts = np.concatenate([[0], ends[:-1]])[0 if begins else 1 :]
    if bos:
        text[starts] = BOS
    text[ends[: None if finished else -1] - 1] = EOS
    return text, ends[:-1].astype(np.int64)


def parts_of(text: np.ndarray, ends: np.ndarray) -> list[list[int]]:
    return [text[start:stop].tolist() for start, stop in pairwise([0, *ends.tolist(), len(text)])]


def core_of(part: list[int], ids) -> tuple[list[int], list[int], list[int]]:
    """BOS, tokens, EOS."""
    begin = part[:1] if part[:1] == [ids.bos_id] else []
    end = part[len(begin) :][-1:] if part[len(begin) :][-1:] == [ids.eos_id] else []
    return begin, part[len(begin) : len(part) - len(end)], end


def undo(core: list[int], fim: Fim) -> tuple[bool, list[int], list[int], list[int]]:
    """Whether the suffix came first; prefix and middle (together under SPM, where nothing parts them), suffix."""
    assert core[0] == fim.prefix_id
    suffix, middle = core.index(fim.suffix_id), core.index(fim.middle_id)
    return suffix == 1, core[1:suffix], core[middle + 1 :], core[suffix + 1 : middle]


lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(lengths=lengths_of, begins=st.booleans(), finished=st.booleans(), bos=st.booleans(), g=st.integers(0, 2**40))
def test_every_part_is_its_own_tokens_rearranged(lengths, begins, finished, bos, g) -> None:
    text, ends = make_window(lengths, begins, finished, bos)
    before, fim = text.copy(), token_fim(bos)
    filled = fill_in_the_middle(text, ends, example_keys(SEED, SOURCE, g), fim)
    np.testing.assert_array_equal(text, before)
    assert filled.text.dtype == text.dtype and filled.text.shape == text.shape
    transformed = 0
    for old, new in zip(parts_of(text, ends), parts_of(filled.text, ends), strict=True):
        begin, core, end = core_of(old, fim.tokenizer)
        if len(core) < SHORTEST:
            assert new == old
            continue
        transformed += 1
        new_begin, new_core, new_end = core_of(new, fim.tokenizer)
        assert (new_begin, new_end) == (begin, end)
        _, prefix, middle, suffix = undo(new_core, fim)
        # In the order of the document but for three tokens: the suffix's last, or, where there is none, the first.
        kept = prefix + middle + suffix
        place = core.index(kept[0])
        assert kept == core[place : place + len(core) - 3] and (place == 0 or not suffix)
    assert (filled.transformed, filled.displaced) == (transformed, 3 * transformed)


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_both_orders_are_those_of_the_paper(spm_rate: float) -> None:
    """Over all the places where a part of eight tokens is cut."""
    text, ends = make_window([10], True, True, True)
    fim, core, found = token_fim(spm_rate=spm_rate), list(range(FIRST + 1, FIRST + 9)), set()
    for key in example_keys(SEED, SOURCE, np.arange(2000)):
        new = fill_in_the_middle(text, ends, key, fim).text.tolist()
        assert new[0] == BOS and new[-1] == EOS
        found.add(tuple(new[1:-1]))
    wanted = set()
    for low in range(9):
        for high in range(low, min(8, low + 5) + 1):
            prefix, middle, suffix = core[:low], core[low:high], core[high:]
            prefix, suffix = prefix[max(0, 3 - len(suffix)) :], suffix[:-3]
            psm = [PRE, *prefix, SUF, *suffix, MID, *middle]
            wanted.add(tuple([PRE, SUF, *suffix, MID, *prefix, *middle] if spm_rate else psm))
    assert found == wanted


def test_rate_0_is_the_identity() -> None:
    text, ends = make_window([30, 40, 20], True, False, True)
    for key in example_keys(SEED, SOURCE, np.arange(50)):
        assert fill_in_the_middle(text, ends, key, token_fim(rate=0.0)).text is text


def test_an_example_depends_on_its_key_alone_and_a_part_on_its_number() -> None:
    text, ends = make_window([300, 400, 200], True, False, True)
    fill = functools.partial(fill_in_the_middle, fim=token_fim(rate=0.5))
    keys = example_keys(SEED, SOURCE, np.arange(20))
    together = [fill(text, ends, key).text.tolist() for key in keys]
    assert together == [fill(text, ends, example_keys(SEED, SOURCE, g)).text.tolist() for g in range(20)]
    assert len({tuple(row) for row in together}) > 15
    for other in (example_keys(SEED + 1, SOURCE, 5), example_keys(SEED, order.source_id("web"), 5)):
        assert fill(text, ends, other).text.tolist() != together[5]
    # Another text and other ends behind it leave a part as it was.
    for row, key in zip(together, keys, strict=True):
        other = np.concatenate([text[:300], text[:300]])
        assert fill(other, np.array([300, 350]), key).text[:300].tolist() == row[:300]


def within_bounds(count: int, trials: int, rate: float) -> bool:
    """Four standard deviations of the binomial distribution."""
    return abs(count - trials * rate) < 4 * (trials * rate * (1 - rate)) ** 0.5


def test_rates_and_places_are_what_is_asked_for() -> None:
    fim, (text, ends) = token_fim(rate=0.3, spm_rate=0.6), make_window([1003] * 4, True, True, True)
    suffix_first, shares, windows = [], [], 2000
    for key in example_keys(SEED, SOURCE, np.arange(windows)):
        for part in parts_of(fill_in_the_middle(text, ends, key, fim).text, ends):
            _, core, _ = core_of(part, fim.tokenizer)
            if core[0] != PRE:
                continue
            first, prefix, middle, suffix = undo(core, fim)
            suffix_first.append(first)
            if not first:
                shares.append((len(prefix), len(middle), len(suffix)))
    assert within_bounds(len(suffix_first), 4 * windows, 0.3)
    assert within_bounds(sum(suffix_first), len(suffix_first), 0.6)
    # Two uniform places cut thirds in the mean; a third's standard deviation is sqrt(1 / 18).
    assert np.abs(np.mean(shares, 0) / 998 - 1 / 3).max() < 4 * (1 / 18 / len(shares)) ** 0.5 + 0.003


COMMON = ("的一是不了人我在有他这中大来上国", "👩🚀😀🇪🇺👍🏽", "naïve данные", "def fill(middle): return x", "\n    ")
RARE = "".join(chr(code) for code in range(0x4E00, 0x9FA5, 7))  # which the vocabulary lacks: three tokens each
ALGORITHMS = {"byte_bpe": 400, "sentencepiece_bpe": 500}


def make_document(number: int, alphabets: tuple[str, ...]) -> str:
    random = np.random.default_rng(number)
    words = ("".join(random.choice(list(a), random.integers(1, 12))) for a in random.choice(alphabets, 40))
    return f"{number}: " + " ".join(words)


def prepare(root: Path, alphabets: tuple[str, ...], tokenizer: dict) -> Shards:
    from rich.console import Console

    from data_prep.config import Pipeline
    from data_prep.pipeline import run

    (root / "raw").mkdir(parents=True)
    for number in range(150):
        (root / "raw" / f"{number}.txt").write_text(make_document(number, alphabets))
    ingest = {"sources": {"code": {"kind": "tree", "path": str(root / "raw")}}}
    values = {"name": "code", "output": str(root / "out"), "workers": 1, "ingest": ingest, "tokenizer": tokenizer}
    with open(os.devnull, "w") as sink:
        (directory,) = run(validate(values, Pipeline, "code"), Console(file=sink))
    return Shards(directory)


@pytest.fixture(scope="module", params=ALGORITHMS)
def prepared_code(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Documents with characters of one to four bytes and as many tokens, and a trained tokenizer with the sentinels."""
    root = tmp_path_factory.mktemp(request.param)
    trained = {"algorithm": request.param, "vocab_size": ALGORITHMS[request.param], "special_tokens": SENTINELS}
    first = prepare(root / "trained", COMMON, trained)
    return prepare(root, (*COMMON, RARE), {"path": str(first.directory)})


def tokenizer_of(shards: Shards) -> Tokenizer:
    return Tokenizer(shards.directory / "tokenizer", shards.manifest.tokenizer)


def windows_of(shards: Shards, seq_len: int):
    for window in range(len(shards) // seq_len):
        first = window * seq_len
        length = min(seq_len, len(shards) - 1 - first)
        yield shards.read(first, first + length + 1), shards.ends(first, first + length) - first


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_pieces_of_characters_give_the_text_back(prepared_code: Shards, spm_rate: float) -> None:
    """Up to what is displaced: the suffix's last tokens, or the first ones of all where that is not enough."""
    tokenizer, counts = tokenizer_of(prepared_code), Counter()
    fim = open_fim(FimConfig(rate=1.0, spm_rate=spm_rate), tokenizer, "code")
    for g, (text, ends) in enumerate(windows_of(prepared_code, 256)):
        filled, displaced = fill_in_the_middle(text, ends, example_keys(SEED, SOURCE, g), fim), 0
        for old, new in zip(parts_of(text, ends), parts_of(filled.text, ends), strict=True):
            (begin, core, end), (new_begin, new_core, new_end) = (core_of(part, tokenizer) for part in (old, new))
            assert (new_begin, new_end) == (begin, end)
            if new == old:
                counts["short" if len(core) < SHORTEST else "left"] += 1
                continue
            counts["transformed"] += 1
            suffix_first, prefix, middle, suffix = undo(new_core, fim)
            assert suffix_first or spm_rate == 0  # PSM with an empty prefix looks the same
            whole, before, after = (tokenizer.decode(ids) for ids in (core, prefix + middle, suffix))
            if CUT in whole:  # by the window's edges, which keeps them at the edges
                counts["cut"] += 1
                assert CUT not in before.lstrip(CUT) + after.rstrip(CUT) and (before + after).strip(CUT) in whole
            elif not suffix:
                assert before.lstrip(CUT) in whole
            else:
                rest = tokenizer.encode(whole.removeprefix(before))
                assert before + tokenizer.decode(rest) == whole and suffix == rest[: len(suffix)]
                counts["exact"] += 1
                displaced += len(rest) - len(suffix)
                if not suffix_first:
                    assert [prefix, middle] == [tokenizer.encode(tokenizer.decode(ids)) for ids in (prefix, middle)]
                continue
            displaced = np.nan
        assert np.isnan(displaced) or filled.displaced == displaced
    assert min(counts["cut"], counts["exact"]) > 50 and counts["left"] < 0.03 * counts["transformed"]


def test_a_part_that_its_pieces_do_not_fill_stays_as_it_is(prepared_code: Shards) -> None:
    """Written letter by letter, which no text becomes; and one that is cut characters and nothing else."""
    tokenizer = tokenizer_of(prepared_code)
    letters = [token for letter in "return " * 20 for token in tokenizer.encode(letter)]
    assert tokenizer.decode(letters) == "return " * 20
    broken = tokenizer.encode("龘")[1:2] * 20
    assert set(tokenizer.decode(broken)) == {CUT}
    for part in (letters, broken):
        text = np.array([*part, tokenizer.eos_id], np.uint16)
        for level, transformed in (("character", 0), ("token", 1)):
            fim = open_fim(FimConfig(rate=1.0, level=level), tokenizer, "code")
            filled = fill_in_the_middle(text, np.zeros(0, np.int64), example_keys(SEED, SOURCE, 0), fim)
            assert filled.transformed == transformed and (filled.text is text) == (not transformed)


def test_workers_get_the_same(prepared_code: Shards) -> None:
    fim = open_fim(FimConfig(), tokenizer_of(prepared_code), "code")
    copy = pickle.loads(pickle.dumps(fim))
    for g, (text, ends) in enumerate(windows_of(prepared_code, 512)):
        one, other = (fill_in_the_middle(text, ends, example_keys(SEED, SOURCE, g), each).text for each in (fim, copy))
        np.testing.assert_array_equal(one, other)


def test_a_sentinel_that_is_missing_is_named_with_what_there_is(prepared_code: Shards) -> None:
    tokenizer = tokenizer_of(prepared_code)
    fim = open_fim(FimConfig(), tokenizer, "code")
    assert [fim.prefix_id, fim.suffix_id, fim.middle_id] == [tokenizer.token_id(text) for text in SENTINELS]
    with pytest.raises(ConfigError) as error:
        open_fim(FimConfig(suffix="<fim-suffix>"), tokenizer, "code")
    message = str(error.value)
    assert message.startswith("data.sources.code.fim.suffix: '<fim-suffix>' is not in the tokenizer of ")
    assert str(tokenizer.directory) in message and "are <fim_suffix>, <fim_" in message and "\n" not in message


def letters_tokenizer(directory: Path, blanks: bool) -> Tokenizer:
    """A token for each letter and one for what is no letter; with `blanks`, each text begins with one."""
    import tokenizers

    letters = {letter: number for number, letter in enumerate(["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(letters, [], unk_token="<unk>"))
    if blanks:
        library.pre_tokenizer, library.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    else:
        library.decoder = tokenizers.decoders.Fuse()
    library.add_special_tokens([*SENTINELS, "</s>"])
    library.save(str(directory / "tokenizer.json"))
    entry = TokenizerEntry(kind="tokenizers", vocab_size=32, bos_id=None, eos_id=31, files={})
    return Tokenizer(directory, entry)


def test_a_tokenizer_that_adds_blanks_cannot_split_at_characters(tmp_path: Path) -> None:
    tokenizer = letters_tokenizer(tmp_path, blanks=True)
    assert open_fim(FimConfig(level="token"), tokenizer, "code").prefix_id == 28
    with pytest.raises(ConfigError, match=r"^data\.sources\.code\.fim\.level: .*adds blanks.*; set it to token$"):
        open_fim(FimConfig(level="character"), tokenizer, "code")


def test_a_part_whose_text_is_lost_stays_as_it_is(tmp_path: Path) -> None:
    """What is unknown is decoded to a text that is not encoded to it."""
    tokenizer = letters_tokenizer(tmp_path, blanks=False)
    fim = open_fim(FimConfig(rate=1.0, level="character"), tokenizer, "code")
    for text, transformed in (("abcdefghijk?mnopqrstuvwxyz", 0), ("abcdefghijklmnopqrstuvwxyz", 1)):
        window = np.array(tokenizer.encode(text), np.uint16)
        assert len(window) == 26
        filled = fill_in_the_middle(window, np.zeros(0, np.int64), example_keys(SEED, SOURCE, 0), fim)
        assert filled.transformed == transformed


@settings(derandomize=True, deadline=None, max_examples=300)
@given(lengths=lengths_of, g=st.integers(0, 2**40))
def test_a_prefix_begins_its_part_and_leaves_a_target(lengths: list[int], g: int) -> None:
    text, ends = make_window(lengths, True, True, True)
    n = len(text) - 1
    ends, key = ends[ends <= n], example_keys(SEED, SOURCE, g)
    prefix, weights = prefix_mask(ends, n, key, PrefixConfig(rate=1.0))
    assert prefix.shape == weights.shape == (n,) and prefix.dtype == bool and weights.dtype == np.float32
    for start, stop in pairwise([0, *ends.tolist(), n + 1]):
        length = int(prefix[start:stop].sum())
        assert length < stop - start and (length > 0 or stop - start == 1)
        assert prefix[start : start + length].all()
        # Position i predicts token i + 1: the last one of the prefix is the first that counts.
        first = start + max(length - 1, 0)
        assert not weights[start:first].any() and weights[first:stop].all()
    nothing = prefix_mask(ends, n, key, PrefixConfig(rate=0.0))
    assert not nothing.prefix.any() and nothing.weights.all()


def test_prefixes_have_their_rate_and_lengths() -> None:
    ends, lengths, windows = np.array([11, 22, 33]), [], 2000
    for key in example_keys(SEED, SOURCE, np.arange(windows)):
        prefix, _ = prefix_mask(ends, 43, key, PrefixConfig(rate=0.4))
        lengths += [int(part.sum()) for part in np.split(prefix, ends)]
    assert within_bounds(4 * windows - lengths.count(0), 4 * windows, 0.4)
    for length in range(1, 11):
        assert within_bounds(lengths.count(length), 4 * windows, 0.04), length
    assert max(lengths) == 10
    same = [prefix_mask(ends, 43, example_keys(SEED, SOURCE, 7), PrefixConfig()).prefix.tolist() for _ in range(2)]
    assert same[0] == same[1]
    other = prefix_mask(ends, 43, example_keys(SEED, SOURCE, 8), PrefixConfig()).prefix.tolist()
    assert other != same[0]
