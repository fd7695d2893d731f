"""Repeated substrings: what must go, what must stay, and where a cut may lie."""

import random
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.dedup import spans, substrings
from data_prep.dedup.substrings import Winnowing
from data_prep.documents import iterate
from data_prep.lists import read_changes
from data_prep.text.texts import Texts
from maxlm.data.shards import document_hash
from maxlm.errors import DataError

SMALL = Winnowing(32)


def prose(seed, size):
    """Text of `size` bytes without repeats: numbered words on lines of about 60 bytes."""
    generator = random.Random(seed)
    text = ""
    while len(text) < size:
        text += f"{generator.getrandbits(40):010x}" + ("\n" if generator.random() < 0.2 else " ")
    return text[:size]


def in_order(sources):
    """(id, text) by precedence."""
    for source, texts in sources.items():
        for key in sorted(texts, key=lambda key: document_hash(f"{source}/{key}")):
            yield f"{source}/{key}", texts[key]


def what_was_cut(selected):
    """Whether each byte of each document went, {id: bool [bytes]}, from the lists."""
    cut = {}
    for before, after in zip(selected.before, selected.parts, strict=True):
        gone = {}
        if after is not before:
            changes = read_changes(*after.lists[-1])
            gone = {int(row): changes.edits.get(index) for index, row in enumerate(changes.rows)}
        for table in iterate(before, ("row", "id", "text")):
            for row in table.to_pylist():
                size = len(row["text"].encode())
                cut[row["id"]] = np.zeros(size, bool)
                for edit in gone.get(row["row"], []) or [{"start": 0, "stop": size if row["row"] in gone else 0}]:
                    cut[row["id"]][edit["start"] : edit["stop"]] = True
    return cut


def must_go(order, winnowing):
    """Bytes that the guarantee names, by a search of every pair of places: {id: bool [bytes]}."""
    k, w, snap = winnowing.k, winnowing.w, winnowing.snap
    least, inside = winnowing.min_bytes + 2 * (w - 1), w - 1 + snap
    result = {}
    for later, (name, text) in enumerate(order):
        data = text.encode()
        result[name] = np.zeros(len(data), bool)
        for earlier in range(later + 1):
            other = order[earlier][1].encode()
            for shift in range(-len(other), len(data)):
                # Byte p here against byte p - shift there; runs of equal bytes.
                run = 0
                for place in range(max(0, shift), min(len(data), len(other) + shift) + 1):
                    whole = place < len(data) and place - shift < len(other)
                    if whole and data[place] == other[place - shift] and (earlier < later or shift > 0):
                        run += 1
                        continue
                    length = run if earlier < later else min(run, shift)
                    if length >= least:
                        # Within a document any stretch of the run as long as its distance is a repeat.
                        for start in range(place - run, place - length + 1):
                            result[name][start + inside : start + length - inside] = True
                    run = 0
    assert k >= w
    return result


def may_go(order, winnowing):
    """Bytes in a k-gram that occurs earlier."""
    seen, result = set(), {}
    for name, text in order:
        data = text.encode()
        result[name] = np.zeros(len(data), bool)
        for start in range(len(data) - winnowing.k + 1):
            gram = data[start : start + winnowing.k]
            if gram in seen:
                result[name][start : start + winnowing.k] = True
            seen.add(gram)
    return result


ALPHABETS = [list("ab"), list("abcdefgh \n"), list("é漢👧 \n"), ["a"], ["ab", "c"]]


@st.composite
def corpora(draw):
    """Documents of pieces from a small pool, in two sources."""
    alphabet = draw(st.sampled_from(ALPHABETS))
    generator = random.Random(draw(st.integers(0, 2**32)))

    def piece(least, most):
        return "".join(generator.choices(alphabet, k=generator.randint(least, most)))

    pool = [piece(10, 90) for _ in range(draw(st.integers(1, 3)))]
    documents = []
    for _ in range(draw(st.integers(1, 4))):
        parts = [generator.choice(pool) if generator.random() < 0.7 else piece(1, 30) for _ in range(4)]
        documents.append("".join(parts[: generator.randint(1, 4)]) + "x")
    split = draw(st.integers(0, len(documents) - 1))
    groups = {"zzz": documents[split:], "aaa": documents[:split]}
    return {name: {f"d{i}": text for i, text in enumerate(texts)} for name, texts in groups.items() if texts}


@settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources=corpora(), shard_bytes=st.sampled_from([1, 2**20]))
def test_what_is_cut_lies_between_what_must_and_what_may(select, sources, shard_bytes):
    config = {"substrings": {"min_bytes": SMALL.min_bytes}}
    selected = select("substrings", sources, shard_bytes=shard_bytes, dedup=config)
    order = list(in_order(sources))
    cut, must, may = what_was_cut(selected), must_go(order, SMALL), may_go(order, SMALL)
    for name, text in order:
        assert not (must[name] & ~cut[name]).any() and not (cut[name] & ~may[name]).any()
        left = bytes(np.frombuffer(text.encode(), np.uint8)[~cut[name]]).decode()
        assert selected.texts.get(name, "") == left, "whole characters are cut"


@pytest.fixture
def planted():
    """Twelve documents; a passage of 600 bytes in eight of them, the first of which is in the source that comes last
    by name."""
    passage = prose(100, 600)
    sources = {"zzz": {}, "aaa": {}}
    for i in range(12):
        middle = passage if i % 3 else ""
        sources["zzz" if i < 6 else "aaa"][str(i)] = prose(i, 700) + middle + prose(i + 20, 500)
    return passage, sources


def test_the_first_occurrence_stays_whole_and_the_others_go(select, planted):
    passage, sources = planted
    selected = select("substrings", sources, dedup={"substrings": {}})
    having = [name for name, text in in_order(sources) if passage in text]
    before = dict(in_order(sources))
    for name, text in before.items():
        if name not in having[1:]:
            assert selected.texts[name] == text
    reach = Winnowing(200).w - 1 + Winnowing(200).snap
    for name in having[1:]:
        left = selected.texts[name]
        start = before[name].index(passage)
        removed = len(before[name]) - len(left)
        assert 600 - 2 * reach <= removed <= 600
        assert left.startswith(before[name][:start]) and left.endswith(before[name][start + 600 :])
        # From line to line or word to word.
        assert passage.split()[0] in left or left[start - 1 : start + 1].isspace() or left[start - 1] in " \n"
    (row,) = [row for row in selected.funnel if row.stage == "substrings"]
    assert row.changed["repeated"].documents == 7


@pytest.mark.parametrize(("size", "goes"), [(99, False), (199, False), (298, True), (301, True)])
def test_a_repeat_goes_from_one_and_a_half_times_the_length_and_stays_below_the_length(select, size, goes):
    for seed in range(5):
        passage = prose(50 + seed, size)
        texts = {str(i): f"{prose(seed + 10 * i, 400)}{passage}{prose(seed + 10 * i + 5, 400)}" for i in (1, 2)}
        selected = select("substrings", {"web": texts}, dedup={"substrings": {}})
        assert (selected.texts != {f"web/{key}": text for key, text in texts.items()}) == goes


def test_the_result_depends_neither_on_shards_nor_on_workers_nor_on_ranges(select, planted, monkeypatch):
    _, sources = planted
    whole = select("substrings", sources, dedup={"substrings": {}})
    many = select("substrings", sources, dedup={"substrings": {}}, shard_bytes=1500, workers=2)
    assert len(whole.parts) == 2 and len(many.parts) >= 6 and many.texts == whole.texts
    monkeypatch.setattr(spans, "RANGE_UNITS", 50)
    ranged = select("substrings", sources, dedup={"substrings": {}}, shard_bytes=1500)
    assert re.search(r"substrings: 0 of \d\d ranges", ranged.printed) and ranged.texts == whole.texts


def test_a_document_of_repeats_alone_is_dropped(select):
    """The edges of documents are found where both have them: nothing is left of a copy, nor of a beginning."""
    text = prose(1, 900)
    sources = {"zzz": {"a": text}, "aaa": {"copy": text, "start": text[:400] + prose(2, 300)}}
    selected = select("substrings", sources, dedup={"substrings": {}})
    assert set(selected.texts) == {"zzz/a", "aaa/start"} and selected.texts["zzz/a"] == text
    assert not selected.texts["aaa/start"].startswith(text[:20])
    (row,) = [row for row in selected.funnel if row.stage == "substrings"]
    assert (row.dropped["nothing left"].documents, row.dropped["nothing left"].bytes) == (1, 900)


@pytest.mark.parametrize("period", ["a", "ab\n", "0123456", "漢字"])
def test_a_repeating_document_keeps_its_first_periods(select, period):
    text = prose(3, 300) + period * (6000 // len(period)) + prose(4, 300)
    selected = select("substrings", {"web": {"a": text}}, dedup={"substrings": {}})
    left = selected.texts["web/a"]
    assert left.startswith(text[: 300 + 2 * len(period)]) and left.endswith(text[-300:])
    kept = len(left.encode()) - 600
    assert 100 <= kept <= 500


def test_runs_of_one_character_give_few_kgrams_and_prose_as_many_as_expected():
    winnowing = Winnowing(200)
    for text, low, high in (("a" * 100_000, 0.9, 1.1), (prose(5, 100_000), 1.85, 2.15)):
        starts, leads, trails, counts, hashes = substrings.select(Texts.from_strings(["short", text]), winnowing)
        assert counts[0] == 0 and low <= counts[1] / (100_000 / (winnowing.w + 1)) <= high
        assert np.diff(starts.astype(np.int64)).min() > 0 and starts[0] == 0 and starts[-1] == 100_000 - winnowing.k
        assert np.diff(starts.astype(np.int64)).max() <= winnowing.w
        assert max(leads.max(), trails.max()) <= winnowing.snap
        if high > 2:
            # Equal ranges of hashes are equal shares.
            assert 0.45 < (hashes < 2**63).mean() < 0.55
            assert len(np.unique(hashes)) == len(hashes)


def test_a_stage_that_cut_nothing_says_so(select):
    sources = {"web": {"a": prose(6, 500), "b": "short"}}
    selected = select("substrings", sources, dedup={"substrings": {}})
    assert "warning: substrings: no repeat of 200 bytes" in selected.printed
    assert selected.parts == selected.before
    short = select("substrings", {"web": {"b": "short"}}, dedup={"substrings": {}})
    assert short.texts == {"web/b": "short"}
    with pytest.raises(DataError, match="substrings.expect_matches is set"):
        select("substrings", sources, dedup={"substrings": {"expect_matches": True}})
