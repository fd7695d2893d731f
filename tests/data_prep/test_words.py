"""Word splitters: what is a word, and that words of documents do not depend on their neighbours."""

import importlib.metadata

import numpy as np
import pytest
import rjieba
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.text import words
from data_prep.text.texts import Texts
from maxlm.errors import ConfigError

PIECES = [
    "我用",
    "编程今天",
    "天气",
    "々",
    "〇",
    "Python",
    "don't",
    "3.14",
    "...",
    "，",
    "。",
    " ",
    "\n",
    "T恤",
    "𠀀",
    "カナ",
    "ไทย",
]
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12).map("".join)


def split(texts: list[str], splitter: str) -> list[list[str]]:
    found = words.split(Texts.from_strings(texts), splitter)
    data = "".join(texts).encode()
    flat = [data[a:b].decode() for a, b in zip(found.starts, found.stops, strict=True)]
    return [flat[a:b] for a, b in zip(found.bounds[:-1], found.bounds[1:], strict=True)]


@pytest.mark.parametrize(
    "splitter, expected",
    [
        ("unicode", ["It's", "3.14", "%", "...", "a_b", "用", "户", "。"]),
        ("jieba", ["It's", "3.14", "%", "...", "a_b", "用户", "。"]),
        ("whitespace", ["It's", "3.14%", "...", "a_b", "用户。"]),
    ],
)
def test_what_a_word_is(splitter: str, expected: list[str]) -> None:
    assert split(["It's 3.14% ...\ta_b 用户。"], splitter) == [expected]


def test_jieba_joins_han_characters_alone() -> None:
    assert split(["我们今天学习T恤", "今天", "今天々"], "jieba") == [
        ["我们", "今天", "学习", "T", "恤"],
        ["今天"],
        ["今天", "々"],
    ]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(texts=st.lists(TEXT, max_size=5))
@pytest.mark.parametrize("splitter", list(words.VERSIONS))
def test_documents_are_split_alone_and_nothing_visible_is_lost(splitter: str, texts: list[str]) -> None:
    together = split(texts, splitter)
    assert together == [split([text], splitter)[0] for text in texts]
    for text, found in zip(texts, together, strict=True):
        assert "".join(found) == "".join(text.split())
        if splitter == "whitespace":
            assert found == text.split()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("我们今天在北京大学学习自然语言处理的时候"), min_size=1, max_size=30))
def test_jieba_is_rjieba_where_there_is_only_han(text: str) -> None:
    assert split([text, text], "jieba") == [rjieba.cut(text)] * 2


def test_words_of_a_slice_of_the_documents() -> None:
    texts = Texts.from_strings(["不要", "今天 it", "好"])
    part = words.split(Texts(texts.data, texts.bounds[1:]), "jieba")
    assert [bytes(texts.data[a:b]).decode() for a, b in zip(part.starts, part.stops, strict=True)] == [
        "今天",
        "it",
        "好",
    ]
    assert part.bounds.tolist() == [0, 2, 3]


def test_equal_words_have_equal_hashes_and_folded_ones_too() -> None:
    from data_prep.text.characters import folded

    texts = Texts.from_strings(["漢 Word ＷＯＲＤ 汉 word"])
    found = words.split(texts)
    assert len(set(words.hashes(texts, found).tolist())) == 5
    hashes = words.hashes(texts, found, folded())
    assert hashes[0] == hashes[3] and len(set(hashes[[1, 2, 4]].tolist())) == 1 and len(np.unique(hashes)) == 2


def test_an_unknown_splitter_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="'jeiba'; the nearest is 'jieba'; there are unicode, jieba, whitespace"):
        words.split(Texts.from_strings(["a"]), "jeiba")
    assert words.version("jieba")[-1] == importlib.metadata.version("rjieba")
    assert words.version("unicode")[:2] == ["unicode", 1]
