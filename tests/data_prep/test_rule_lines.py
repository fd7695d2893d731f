"""Lines that rules remove: by hand, against a plain reference, and as edits of the text."""

from typing import Any

import numpy as np
import pytest
import rule_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import RulesConfig
from data_prep.config.rules import Profile
from data_prep.rules import columns, sentences
from data_prep.rules.annotate import Measure, settings_of
from data_prep.rules.phrases import compile_phrases, find
from data_prep.rules.settings import KINDS
from maxlm.config import validate

OWN = {
    "remove": ["boilerplate", "short_runs", "few_words"],
    "containing": ["cookies", "扫一扫"],
    "equal": ["Menu", "share"],
    "max_characters": 30,
    "run_characters": 8,
    "run_lines": 2,
    "min_words": 2,
}
C4 = {
    "max_word_characters": 15,
    "citations": True,
    "final_punctuation": True,
    "min_words": 2,
    "javascript": ["javascript"],
    "policy": ["terms of use"],
}
PROFILES: dict[str, Any] = {
    "own": {"lines": OWN, "stop_characters": [".", "。"]},
    "anywhere": {"lines": OWN | {"remove": ["short_runs"], "run_anywhere": True}},
    "jieba": {"lines": OWN, "words": "jieba"},
    "c4": {"c4": {"lines": C4}},
    "both": {"lines": OWN, "c4": {"lines": C4 | {"final_punctuation": False, "min_words": None}}},
    "facts": {"c4": {"min_sentences": 2}},
}


def profile(name: str) -> Profile:
    config = {"profiles": {"x": PROFILES.get(name, name), "default": None}}
    return validate(config, RulesConfig, "test").profiles["x"]


MEASURES = {name: Measure(settings_of(profile(name))) for name in PROFILES}


def apply(name: str, texts: list[str]) -> tuple[list[str], dict[str, list[int]], np.ndarray]:
    """What is left, made by the edits, which must give what the loop says; counts by kind; statistics."""
    rows, left = MEASURES[name](reference.texts_of(texts))
    encoded = [text.encode() for text in texts]
    results = list(texts)
    for place, document in enumerate(left.changed.tolist()):
        pieces, last = [], 0
        for _, start, stop, newline in left.edits[left.edits[:, 0] == document].tolist():
            assert last <= start <= stop
            pieces += [encoded[document][last:start], b"\n" * newline]
            last = stop
        results[document] = b"".join([*pieces, encoded[document][last:]]).decode()
        bounds = left.texts.bounds
        assert results[document].encode() == left.texts.data[bounds[place] : bounds[place + 1]].tobytes()
        assert results[document] != texts[document]
    assert set(left.edits[:, 0].tolist()) == set(left.changed.tolist())
    lost = sum(map(len, encoded)) - sum(len(text.encode()) for text in results)
    assert left.counts[1:, 1].sum() == lost
    return (
        results,
        {kind: counts for kind, counts in zip(KINDS, left.counts.tolist(), strict=True) if any(counts)},
        rows,
    )


def test_boilerplate_short_runs_and_few_words_by_hand() -> None:
    text = (
        "Home\n\nNews\r\nWe use COOKIES here\nThis is a line of text.\nshare\nalone.\n"
        "This text says what cookies are good for, at length.\nok\nno\n"
    )
    results, counts, _ = apply("own", [text])
    assert results == ["\nThis is a line of text.\nThis text says what cookies are good for, at length."]
    assert counts == {
        "boilerplate": [1, 26],
        "short run": [1, 17],
        "few words": [1, 7],
        "white space": [1, 1],
    }


def test_c4_by_hand() -> None:
    text = (
        "  A good line [1]of text[citation needed].\r\nno final mark\nWait for it...\nOne.\n"
        "A verylongwordindeed is here.\nUse JavaScript now.\nSee our Terms of Use.\nA [2] \n\t\n"
        '"Quoted and done!"\n'
    )
    results, counts, _ = apply("c4", [text])
    assert results == ['A good line of text.\n"Quoted and done!"']
    assert {kind: count for kind, (count, _) in counts.items()} == {
        "c4: long word": 1,
        "c4: no final punctuation": 1,
        "c4: few words": 1,
        "c4: javascript": 1,
        "c4: policy": 1,
        "c4: citations": 1,
        "white space": 1,
    }


def test_white_space_between_citations_is_stripped_from_the_end() -> None:
    assert apply("both", ["A good line of text.\n[1] [edit]"])[0] == ["A good line of text."]


def test_c4_counts_by_hand() -> None:
    text = "Lorem IPSUM dolor. Second one! {x}\nMore {of} it? Yes\nuse javascript { here"
    names = ("lorem_ipsum_lines", "curly_bracket_lines", "sentences")
    rows, _ = Measure(settings_of(profile("en")))(reference.texts_of([text]))
    assert [rows[0, columns.NAMES.index(name)] for name in names] == [1, 2, 5]


LINES = [
    "Menu", "menu ", "a b", "word", "A line of text.", "This is “it”", "We use cookies", "扫一扫 看看", "今天天气好。",
    "x [1] y.", "[2]", "[1] [2]", "[edit]", "[", "[12", "see [citation needed] it.", "no javaSCRIPT please.",
    "terms of Use it.", "lorem ipsum a b.", "{ a b.", "averyverylongword here.", "end...", "well…", "K\u212a\u0130",
    "  ", "", "... ...",
]  # fmt: skip
ENDS = ["\n", "\n", "\n", "\r\n", "\r", "\x0b", "\x1d", "\x85", "\u2029", " \n", "\n\n", ""]
TEXT = st.lists(
    st.tuples(st.one_of(st.sampled_from(LINES), st.text(max_size=3)), st.sampled_from(ENDS)), max_size=12
).map(lambda pairs: "".join(map("".join, pairs)))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(texts=st.lists(TEXT, max_size=4))
@pytest.mark.parametrize("name", list(PROFILES))
def test_lines_are_those_of_the_reference(name: str, texts: list[str]) -> None:
    results, counts, rows = apply(name, texts)
    mine = profile(name)
    removed: dict[str, list[int]] = {}
    for text, result, row in zip(texts, results, rows, strict=True):
        left, rules, facts = reference.apply_lines(text, mine)
        assert result == left
        assert {fact: row[columns.NAMES.index(fact)] for fact in facts} == facts
        for rule in {*rules} - {"kept"}:
            lines = [line for line, why in zip(text.splitlines(keepends=True), rules, strict=True) if why == rule]
            count = removed.setdefault(rule, [0, 0])
            count[0] += 1
            count[1] += len("".join(lines).encode())
    assert {kind: count for kind, count in counts.items() if kind not in ("c4: citations", "white space")} == removed


@pytest.mark.parametrize(
    "line, groups",
    [("USHERS", 0b111), ("he", 0b1010), ("his he", 0b10), ("sh公司", 0b10000), ("公司", 0b110000), ("", 0)],
)
def test_phrases_inside_others_are_found(line: str, groups: int) -> None:
    contained = {0: ["she"], 1: ["he"], 2: ["hers"], 4: ["公司"]}
    phrases = compile_phrases(contained, {3: ["He"], 5: ["公司"]})
    data = np.frombuffer(line.encode(), np.uint8)
    assert find(data, 0, len(data), phrases) == (groups, len(line))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [""]),
        ("... !", ["... !"]),
        ("Pi is 3.14 or so. Is it? Yes", ["Pi is 3.14 or so.", " Is it?", " Yes"]),
        ('"Go!" he said. (Really.) Well… no', ['"Go!"', " he said.", " (Really.)", " Well…", " no"]),
        ("今天很好。他说：“走吧！”然后……没有", ["今天很好。", "他说：“走吧！”", "然后……没有"]),
        ("One... two?! three", ["One...", " two?!", " three"]),
        ("See U.S.A. and example.org now", ["See U.S.A.", " and example.org now"]),
        ("A. . B", ["A.", " . B"]),
        ("यह है। वह", ["यह है।", " वह"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences.split(text) == expected


@settings(derandomize=True, deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from('ab.!?…。”") \n3'), max_size=30))
def test_sentences_are_the_text_and_have_words(text: str) -> None:
    found = sentences.split(text)
    assert "".join(found) == text
    assert len(found) == 1 or all(any(map(str.isalnum, sentence)) for sentence in found)


def test_an_unknown_sentence_splitter_is_told() -> None:
    from maxlm.errors import ConfigError

    with pytest.raises(ConfigError, match="'punct'.*there is punctuation"):
        sentences.version("punct")
