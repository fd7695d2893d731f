"""Digits, white space and code are cut as the configuration says, whatever the algorithm, or it is an error."""

import random

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from data_prep.config import TokenizerConfig
from data_prep.text.texts import Texts
from data_prep.tokenize.encode import Encoder, Fast
from data_prep.tokenize.lossless import BOS, EOS, find_difference, probes
from data_prep.tokenize.patterns import DIGITS, FROM_LEFT, FROM_RIGHT, LOOKED_AT, number_cuts
from data_prep.tokenize.tokenizer import describe
from data_prep.tokenize.train import train
from maxlm.data.tokenizer import FILE_NAMES, Tokenizer
from maxlm.errors import ConfigError

TEXT = "def f(self, value):\n        value\n        return 1234567 + 1234567\n\n    x = the_word  # a word 12 345\n"
# All of them are tried wherever a tokenizer is trained.
SOME = probes()[::5]
SENTENCEPIECE = ("sentencepiece_bpe", "sentencepiece_unigram")


@pytest.fixture
def make(tmp_path):
    def call(algorithm="byte_bpe", **options) -> Tokenizer:
        # Unigram finds few pieces in so little text.
        size = {"byte_bpe": 400, "wordpiece": 900, "sentencepiece_bpe": 330, "sentencepiece_unigram": 290}[algorithm]
        coverage = {"character_coverage": 1.0} if algorithm in SENTENCEPIECE else {}
        config = TokenizerConfig(algorithm=algorithm, vocab_size=size, **options, **coverage)
        kind, content = train(config, [TEXT, "1234567 " * 9, "12 345 \n" * 9] * 20)
        (tmp_path / FILE_NAMES[kind]).write_bytes(content)
        return Tokenizer(tmp_path, describe(tmp_path / FILE_NAMES[kind], kind, BOS, EOS))

    return call


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([number]) for number in tokenizer.encode(text)]


@pytest.mark.parametrize("algorithm", ["byte_bpe", "wordpiece"])
@pytest.mark.parametrize(
    ("digits", "expected"),
    [
        ("single", "1|2|3|4|5|6|7"),
        ("groups_of_three", "1|234|567"),
        ("groups_of_three_left", "123|456|7"),
        (None, "123|456|7"),
        ("free", "1234567"),
    ],
)
def test_digits(make, algorithm, digits, expected):
    tokenizer = make(algorithm, digits=digits)
    assert "|".join(pieces(tokenizer, "1234567")) == expected
    assert find_difference(tokenizer, SOME) is None


@pytest.mark.parametrize("algorithm", SENTENCEPIECE)
def test_digits_in_sentencepiece(make, algorithm):
    assert pieces(make(algorithm), "1234567") == pieces(make(algorithm, digits="single"), "1234567") == [*"1234567"]
    tokenizer = make(algorithm, digits="free")
    assert find_difference(tokenizer, SOME) is None
    # Unigram finds no longer pieces in so little text.
    assert algorithm == "sentencepiece_unigram" or max(map(len, pieces(tokenizer, "1234567"))) > 1


@pytest.mark.parametrize("algorithm", ["byte_bpe", "wordpiece"])
def test_a_space_belongs_to_the_word_behind_it_or_stands_alone(make, algorithm):
    assert pieces(make(algorithm), "the the")[-1] == " the"
    tokenizer = make(algorithm, leading_space=False)
    assert pieces(tokenizer, "the the") == ["the", " ", "the"]
    assert find_difference(tokenizer, SOME) is None


@pytest.mark.parametrize("algorithm", ["byte_bpe", "wordpiece", "sentencepiece_bpe"])
def test_runs_of_spaces_are_tokens_unless_they_are_not_wanted(make, algorithm):
    blanks = " " * 7
    assert len(make(algorithm).encode(f"x{blanks} x")) < 6
    tokenizer = make(algorithm, space_runs=False)
    assert len(tokenizer.encode(f"x{blanks} x")) >= 9
    assert find_difference(tokenizer, SOME) is None


@pytest.mark.parametrize("algorithm", ["byte_bpe", "wordpiece"])
def test_code_joins_the_end_of_a_line_with_the_indentation_behind_it(make, algorithm):
    line = " value\n        return"
    assert "\n       " not in pieces(make(algorithm), line)
    tokenizer = make(algorithm, code=True)
    assert pieces(tokenizer, line) == [" value", "\n       ", " return"]
    assert find_difference(tokenizer, SOME) is None


@pytest.mark.parametrize("algorithm", SENTENCEPIECE)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"digits": "groups_of_three"}, "digits cannot be groups_of_three with sentencepiece.* set it to single or fr"),
        ({"leading_space": False}, "leading_space cannot be false with sentencepiece"),
        ({"code": True}, "code cannot be true with sentencepiece"),
    ],
)
def test_what_sentencepiece_cannot_is_an_error_that_says_so(pipeline, algorithm, option, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(tokenizer={"algorithm": algorithm, "vocab_size": 400} | option)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"path": "x", "digits": "free", "code": True}, "digits and code are for a tokenizer that is trained"),
        ({"algorithm": "byte_bpe", "vocab_size": 400, "code": True, "space_runs": False}, "code joins .*; leave one"),
        ({"algorithm": "wordpiece", "vocab_size": 514}, "vocab_size must be at least 515 .* found 514"),
        (
            {"algorithm": "byte_bpe", "vocab_size": 400, "character_coverage": 0.9},
            "character_coverage is for sentencep",
        ),
        ({"algorithm": "byte_bpe", "vocab_size": 400, "digits": "pairs"}, "tokenizer.digits: .*'groups_of_three'"),
    ],
)
def test_options_that_cannot_be_honoured(pipeline, section, message):
    with pytest.raises(ConfigError, match=message):
        pipeline(tokenizer=section)


def numbers() -> list[str]:
    """Numbers of every length up to twice what is looked at, of several scripts, alone and between other text."""
    generator = random.Random(1)
    alphabet = "7" * 30 + "a ٣²Ⅷ〇.日\n"
    mixed = ["".join(generator.choices(alphabet, k=generator.randint(0, 900))) for _ in range(200)]
    return [*mixed, "", *("1" * count for count in range(2 * LOOKED_AT + 9)), ""]


def test_numbers_that_are_cut_beforehand_have_the_groups_of_the_expression():
    documents = numbers()
    texts = Texts.from_strings(documents)
    data, cuts = texts.data.tobytes(), number_cuts(texts)
    from_left, from_right = (pre_tokenizers.Split(Regex(name), "isolated") for name in (FROM_LEFT, FROM_RIGHT))
    assert cuts.dtype == np.int64 and (np.diff(cuts) > 0).all()
    for first, last, document in zip(texts.bounds, texts.bounds[1:], documents, strict=False):
        edges = [first, *cuts[(first < cuts) & (cuts < last)], last]
        segments = [data[a:b].decode() for a, b in zip(edges, edges[1:], strict=False)]
        found = [word for segment in segments for word, _ in from_left.pre_tokenize_str(segment)]
        assert found == [word for word, _ in from_right.pre_tokenize_str(document)]


@pytest.mark.parametrize("digits", ["single", "groups_of_three", "groups_of_three_left"])
def test_gigatoken_gives_the_ids_of_tokenizers_for_groups_counted_from_the_end(make, digits):
    tokenizer = make(digits=digits)
    fast, documents = Fast.load(tokenizer), numbers()
    assert fast is not None, f"gigatoken does not know {DIGITS[digits]}"
    assert Encoder.agrees(tokenizer, [*probes(), *documents])
    ids, counts = Encoder(tokenizer, fast, True).encode(Texts.from_strings(documents))
    assert counts.tolist() == [len(tokenizer.encode(text)) for text in documents] and len(ids) == counts.sum()


def test_what_gigatoken_does_not_know_is_encoded_by_the_library(make):
    for options in ({"digits": "free"}, {"code": True}, {"leading_space": False}, {"space_runs": False}):
        assert Fast.load(make(**options)) is None
    assert Fast.load(make("wordpiece")) is None
