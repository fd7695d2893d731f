"""Lines and paragraphs in many documents: what goes, what stays, and that nothing else moves."""

import re
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.dedup import lines, spans
from maxlm.data.shards import document_hash
from maxlm.errors import DataError

MENU = "Home | Products | About us"
LINES = {"min_characters": 10, "max_documents": 2}


def precedence(sources):
    """Ids of documents, first to last."""
    return [
        f"{source}/{key}"
        for source, texts in sources.items()
        for key in sorted(texts, key=lambda key: document_hash(f"{source}/{key}"))
    ]


def expected(sources, minimum, maximum, keep_first):
    """The lines that are not blank of each document that has some left, found in the plainest way."""

    def units(name):
        source, key = name.split("/")
        return [line for line in sources[source][key].split("\n") if line.strip()]

    def same(line):
        return " ".join(line.lower().split())

    having = defaultdict(list)
    for name in precedence(sources):
        for line in dict.fromkeys(map(same, units(name))):
            having[line].append(name)
    result = {}
    for name in precedence(sources):
        left = []
        for line in units(name):
            names = having[same(line)]
            goes = len(same(line)) >= minimum and len(names) > maximum
            if not goes or (keep_first and name in names[:maximum]):
                left.append(line)
        result[name] = left
    return result


@pytest.fixture
def corpus():
    """Ten documents in two sources, whose first comes last by name."""
    return {
        "zzz": {f"d{i}": f"{MENU}\nonly in zzz {i}\n\nshort\n{MENU}\n" for i in range(4)},
        "aaa": {f"d{i}": f"only in aaa {i}\n  {MENU.upper()}  \nshort" for i in range(6)},
    }


@pytest.mark.parametrize("keep", ["first", "none"])
@pytest.mark.parametrize("maximum", [1, 3, 5, 9, 10])
def test_a_line_stays_in_the_first_documents_by_source_and_id(select, corpus, maximum, keep):
    selected = select("lines", corpus, dedup={"lines": LINES | {"max_documents": maximum, "keep": keep}})
    kept = {key for key, text in selected.texts.items() if MENU.lower() in text.lower()}
    staying = 10 if maximum == 10 else 0 if keep == "none" else maximum
    assert kept == set(precedence(corpus)[:staying])
    for key, text in selected.texts.items():
        source, number = key.split("/d")
        whole = corpus[source][f"d{number}"]
        cut = f"only in zzz {number}\n\nshort\n" if source == "zzz" else f"only in aaa {number}\nshort"
        assert text == (whole if key in kept else cut)
    (row,) = [row for row in selected.funnel if row.stage == "lines"]
    assert row.changed.get("repeated", row.after).documents == (10 if maximum == 10 else 10 - staying)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("MENU\na\nb", "a\nb"),
        ("\n MENU\n\n\na\nb\n", "a\nb\n"),
        ("a\nMENU\nb", "a\nb"),
        ("a\nb\nMENU", "a\nb"),
        ("a\nb\nMENU\n", "a\nb\n"),
        ("a\n\nMENU\n\nb", "a\n\nb"),
        ("a\n\nMENU\nb", "a\n\nb"),
        ("a\nMENU\n\nb", "a\n\nb"),
        ("a\nMENU\nMENU\n\n\nMENU\nb", "a\n\n\nb".replace("\n\n\n", "\n")),
        ("a\r\n\tMENU\r\nb\r\n", "a\r\nb\r\n"),
        ("漢\nMENU\n字 👧", "漢\n字 👧"),
    ],
)
def test_no_hole_is_left_and_no_paragraph_is_joined(select, text, left):
    sources = {"web": {"first": MENU, "second": f"{MENU}\nother", "third": text.replace("MENU", MENU)}}
    selected = select("lines", sources, dedup={"lines": LINES | {"max_documents": 1, "keep": "none"}})
    assert selected.texts == {"web/second": "other", "web/third": left}
    (row,) = [row for row in selected.funnel if row.stage == "lines"]
    assert {reason: (amount.documents, amount.bytes) for reason, amount in row.dropped.items()} == {
        "no line left": (1, len(MENU))
    }


WORDS = st.sampled_from(
    ["alpha beta gamma", "ALPHA  beta\tgamma", "beta gamma", "漢字漢字漢字", "x", "", " ", "é👧é👧é👧"]
)
DOCUMENT = st.lists(WORDS, min_size=1, max_size=8).map("\n".join)


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=9),
    maximum=st.integers(1, 3),
    keep_first=st.booleans(),
    shard_bytes=st.sampled_from([1, 50, 2**20]),
)
def test_what_stays_is_what_a_plain_search_finds(select, documents, maximum, keep_first, shard_bytes):
    sources = {"zzz": {}, "aaa": {"d": "alpha beta gamma\n漢字漢字漢字"}}
    for number, text in enumerate([*documents, "a last one"]):
        sources["zzz" if number % 3 or len(documents) == number else "aaa"][str(number)] = text
    config = {"min_characters": 6, "max_documents": maximum, "keep": "first" if keep_first else "none"}
    selected = select("lines", sources, shard_bytes=shard_bytes, dedup={"lines": config})
    before = {f"{source}/{key}": text for source, texts in sources.items() for key, text in texts.items()}
    for name, left in expected(sources, 6, maximum, keep_first).items():
        had = [line for line in before[name].split("\n") if line.strip()]
        assert bool(left) == (name in selected.texts)
        if not left:
            continue
        text = selected.texts[name]
        assert [line for line in text.split("\n") if line.strip()] == left
        if left == had:
            assert text == before[name]
        gaps, gaps_before = (max([0, *map(len, re.findall(r"\n\s*", one))]) for one in (text, before[name]))
        assert gaps <= gaps_before


def test_the_result_depends_neither_on_shards_nor_on_workers_nor_on_ranges(select, corpus, monkeypatch):
    config = {"lines": LINES, "paragraphs": {"min_characters": 10}}
    whole = select("lines", corpus, dedup=config)
    assert len(whole.parts) == 2 and whole.printed.count("1 of 1 ranges") == 0
    many = select("lines", corpus, dedup=config, shard_bytes=60, workers=2)
    assert len(many.parts) > 6 and many.texts == whole.texts
    monkeypatch.setattr(spans, "RANGE_UNITS", 3)
    ranged = select("lines", corpus, dedup=config, shard_bytes=60)
    assert re.search(r"lines: 0 of [4-9] ranges", ranged.printed) and ranged.texts == whole.texts


def test_another_limit_does_not_read_text_again(select, corpus, monkeypatch):
    select("lines", corpus, "same", dedup={"lines": LINES})
    fresh = select("lines", corpus, dedup={"lines": LINES | {"max_documents": 4, "keep": "none"}})
    monkeypatch.setattr(lines, "iterate", None)
    again = select("lines", corpus, "same", dedup={"lines": LINES | {"max_documents": 4, "keep": "none"}})
    assert "lines: 2 of 2 shards up to date" in again.printed and again.texts == fresh.texts


def test_what_is_equal_is_a_setting(select):
    texts = ["Cookie Policy: 設定", "ｃｏｏｋｉｅ\u3000policy:\t设定", "cookie  policy: 设定"]
    sources = {"web": {str(i): f"{text}\nmore {i}" for i, text in enumerate(texts)}}
    config = {"min_characters": 5, "max_documents": 1, "keep": "none"}
    for normalise, left in ((True, 0), (False, 3)):
        selected = select("lines", sources, dedup={"lines": config | {"normalise": normalise}})
        assert sum("\n" in text for text in selected.texts.values()) == left
    # Indentation and the end of the line are no part of it; white space inside it is.
    sources = {"web": {"a": "a b c d\nx", "b": "\t a b c d \r\ny", "c": "a  b c d\nz"}}
    selected = select("lines", sources, dedup={"lines": config | {"normalise": False}})
    assert selected.texts == {"web/a": "x", "web/b": "y", "web/c": "a  b c d\nz"}


def test_paragraphs_are_compared_after_lines_whatever_their_line_breaks(select):
    sources = {
        "web": {"a": f"{MENU}\none two\nthree four\n\nown a", "b": f"own b\n\n  one two three\n four\n \n{MENU}\nend"}
    }
    lines_only = {"min_characters": 10, "max_documents": 1, "keep": "none"}
    config = {"lines": lines_only, "paragraphs": {"min_characters": 10, "keep": "none"}}
    selected = select("lines", sources, dedup=config)
    assert selected.texts == {"web/a": "own a", "web/b": "own b\n \nend"}
    assert [row.stage for row in selected.funnel] == ["ingest", "lines", "paragraphs"]


def test_a_stage_that_cut_nothing_says_so(select):
    sources = {"web": {"a": "one line of text", "b": "another line of text", "c": "short\n\n"}}
    selected = select("lines", sources, dedup={"lines": {}, "paragraphs": {}})
    assert "warning: lines: none of 1 lines occurs more than 6 times" in selected.printed
    assert "warning: paragraphs: none of 0 paragraphs" in selected.printed
    assert selected.texts == {f"web/{key}": text for key, text in sources["web"].items()}
    with pytest.raises(DataError, match="lines.expect_matches is set"):
        select("lines", sources, dedup={"lines": {"expect_matches": True}})
    # Not one unit that is compared.
    short = select("lines", {"web": {"c": "short\n\n"}}, dedup={"lines": {}})
    assert short.texts == {"web/c": "short\n\n"} and short.parts == short.before
