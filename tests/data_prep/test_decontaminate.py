"""What of benchmarks is found in documents, what is cut or dropped for it, and what the report says."""

import io
import json
import random

import numpy as np
import opencc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_prep.decontaminate import scan as scanning
from data_prep.decontaminate import stage
from data_prep.decontaminate.benchmarks import Benchmark
from data_prep.decontaminate.cut import BREAK, cuts
from data_prep.decontaminate.index import Index, build
from data_prep.decontaminate.scan import NUMBERS, find
from data_prep.decontaminate.tokens import tokenize
from data_prep.documents import read
from data_prep.engine import Processes
from data_prep.funnel import Amount
from data_prep.ingest import stage as ingest
from data_prep.manifest import Folder
from data_prep.stages import Run
from data_prep.text.texts import Texts
from maxlm.errors import DataError

QUESTION = (
    "Natalia's café sold 1,048 of its finest cakes in April, and then it sold half as many in May; how many cakes did "
    "the café sell altogether in both of these months?"
)
ANSWER = "It sold one thousand five hundred and seventy-two cakes."
POEM = "明月幾時有？把酒問青天。不知天上宮闕，今夕是何年。我欲乘風歸去，又恐瓊樓玉宇，高處不勝寒。"
# It ends before the last window of the question that begins before it.
INNER = " ".join(QUESTION.split()[21:29])
SIMPLE = "Which planet has the most moons of all?"
FILLER = "Gardens need water in summer, said nobody in particular. "
RARE = "zażółć gęślą jaźń — 空山不見人 😀 "


def write_benchmark(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def index(tmp_path):
    """An index of texts, each an item of its own."""

    def make(texts, ngram=13, least=8):
        path = write_benchmark(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", [{"text": text} for text in texts])
        benchmark = Benchmark("bench", ((path, path.name),), None, None, False)
        folder = Folder(tmp_path / "index")
        record = build(folder, path.stem, [benchmark], ngram, least)
        return Index(folder.path / path.stem, path.stem, ngram, least, record.values["short"])

    return make


def hits(text, index, margin=0):
    return dict(zip(NUMBERS, find(Texts.from_strings([text]), index, margin), strict=True))


def words_found(text, index):
    """The text from the first to the last match."""
    found = hits(text, index)
    return text.encode()[found["left"].min() : found["right"].max()].decode() if len(found["row"]) else None


VARIANTS = {
    "verbatim": lambda text: text,
    "re-cased": str.upper,
    "re-punctuated": lambda text: text.replace(", ", " - ").replace(";", "...").replace("'", "’").replace("?", " !?"),
    "emphasis": lambda text: text.replace("finest", "_finest_").replace("altogether", "**altogether**"),
    "other lines": lambda text: text.replace(" ", "\n\t"),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in text),
    "ligatures": lambda text: text.replace("fi", "ﬁ"),
    "decomposed": lambda text: text.replace("é", "e\u0301"),
    "without accents": lambda text: text.replace("é", "e"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_planted_question_is_found_in_every_form(index, variant):
    known = index([QUESTION])
    text = VARIANTS[variant](QUESTION)
    assert text == QUESTION or variant != "verbatim"
    found = hits(FILLER + text + "\n" + FILLER, known)
    assert len(found["row"]) == len(np.unique(found["sequence"])) == len(known.arrays()[2]), "every sequence, once"
    assert words_found(FILLER + text + "\n" + FILLER, known).strip("*_?!？ ") == text.strip("?!？ ")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("straße", "STRASSE"),
        ("ΟΔΟΣ", "οδος"),
        ("ĳs Ⅷ ⑴ ２", "IJs VIII 1 2"),
        ("1,048 don't", "1048 dont"),
        ("a ... _ — % b", "a b"),
        ("Ångström İ", "angstrom i"),
        ("國家", "国-家"),
    ],
)
def test_words_are_equal_without_their_form(text, same):
    one, other = (tokenize(Texts.from_strings([form])).hashes.tolist() for form in (text, same))
    assert one == other and len(set(one)) == len(one) > 0


@pytest.mark.parametrize(
    ("text", "other"), [("हिन्दी", "हन्द"), ("が", "か"), ("ab c", "a bc"), ("ab", "ba"), ("й", "ӣx"), ("国", "園")]
)
def test_words_that_differ_stay_different(text, other):
    one, two = (tokenize(Texts.from_strings([form])).hashes.tolist() for form in (text, other))
    assert one != two


@pytest.mark.parametrize("conversion", [None, "t2s"])
def test_chinese_is_found_in_either_script(index, conversion):
    convert = opencc.OpenCC(conversion).convert if conversion else str
    for item, text in ((POEM, convert(POEM)), (convert(POEM), POEM)):
        known = index([item])
        assert len(known.arrays()[2]) == len([c for c in POEM if c.isalpha()]) - 12
        assert words_found("前面的文字，" + text + "後面", known) == text.rstrip("。")
        assert words_found(text.replace("，", " ").replace("。", "\n"), known) is not None
    assert words_found(convert(POEM)[::-1], index([POEM])) is None


def test_near_misses_are_not_found(index):
    known = index([QUESTION])
    words = QUESTION.split()
    twelve = " ".join(words[3:15])
    assert words_found(f"{FILLER}{twelve} instead {FILLER}", known) is None
    assert words_found(f"{FILLER}{' '.join(words[3:16])} instead", known) == " ".join(words[3:16])
    assert words_found(" ".join(reversed(words)), known) is None
    assert words_found(QUESTION.replace(" ", ""), known) is None
    changed = [word if number % 13 else "other" for number, word in enumerate(words)]
    assert words_found(" ".join(changed), known) is None


def test_short_texts_are_found_as_a_whole(index):
    known = index([SIMPLE, SIMPLE + " Say why you think so!", QUESTION])
    assert words_found(FILLER + "WHICH planet has the\nmost moons, of all", known).startswith("WHICH planet")
    assert words_found(FILLER + "Which planet has the most moons of them", known) is None
    assert words_found("has the most moons of all say why you think so", known) is None
    assert len(hits(SIMPLE + " Say why you think so", known)["row"]) == 2, "one within the other"
    longer = "one two three four five six seven eight nine ten"
    pair = Texts.from_strings([longer[:39], longer[40:]])
    assert [len(column) for column in find(pair, index([longer]), 0)] == [0] * 9, "across two documents"
    assert words_found(longer, index([longer])) == longer
    assert words_found("seven words are too short to find", index(["seven words are too short to find"])) is None


def test_texts_of_an_item_that_are_all_too_short_are_one(tmp_path):
    items = [
        {"question": "Who wrote the Iliad?", "choices": ["Homer of Chios", "Virgil"], "answer": 0},
        {"question": "Why?", "choices": ["so"]},
    ]
    path = write_benchmark(tmp_path / "a.jsonl", items)
    build(Folder(tmp_path), "key", [Benchmark("b", ((path, "a"),), ("question", "choices"), None, False)], 13, 8)
    known = Index(tmp_path / "key", "key", 13, 8, True)
    assert words_found("Quiz: who wrote the Iliad? (Homer of Chios, Virgil)", known) is not None
    assert words_found("who wrote the iliad virgil homer of chios", known) is None


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.text("ab漢.", max_size=14), min_size=1, max_size=3), st.text("ab漢,", max_size=24))
def test_the_windows_found_are_those_of_a_plain_search(tmp_path_factory, items, text):
    """Two letters, Han, and points that part nothing: many windows are equal, and texts overlap."""
    items, text = [" ".join(item) for item in items], " ".join(text)
    path = write_benchmark(tmp_path_factory.mktemp("index") / "a.jsonl", [{"text": item} for item in items])
    benchmark = Benchmark("b", ((path, "a"),), None, None, False)
    record = build(Folder(path.parent), "key", [benchmark], 5, 3)
    known = Index(path.parent / "key", "key", 5, 3, record.values["short"])
    sought = set()
    for words in ([word for word in item.split() if word.isalpha()] for item in items):
        if len(words) >= 5:
            sought |= {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
        elif len(words) >= 3:
            sought.add(tuple(words))
    places = [place for place, character in enumerate(text) if character.isalpha()]
    letters = [text[place] for place in places]
    expected = sorted(
        (places[i], places[i + size - 1] + 1)
        for size in (3, 4, 5)
        for i in range(len(letters) - size + 1)
        if tuple(letters[i : i + size]) in sought
    )
    found = hits(text, known)
    assert sorted(zip(found["left_position"].tolist(), found["right_position"].tolist(), strict=True)) == expected
    assert len(known.arrays()[2]) == len(sought)


def test_equal_keys_alone_are_no_match(index, monkeypatch):
    """A window whose first hash is in the index, and whose words are not."""
    known = index([QUESTION])
    slots, firsts, keys, lengths, seconds, *rest = known.arrays()
    assert len(hits(QUESTION, known)["row"]) == len(keys)
    for field, changed in (
        ("seconds", (keys, lengths, seconds ^ np.uint64(1))),
        ("lengths", (keys, lengths - 1, seconds)),
    ):
        monkeypatch.setattr(Index, "arrays", lambda self, arrays=changed: (slots, firsts, *arrays, *rest))
        assert len(hits(QUESTION, known)["row"]) == 0, field


def reference_cut(text, matches, margin, least, most):
    """Character by character; None where the document goes."""
    gone = np.zeros(len(text), bool)
    for start, stop in matches:
        gone[max(0, start - margin) : stop + margin] = True
    pieces, last = [], True
    for character, cut in zip(text, gone.tolist(), strict=True):
        if not cut:
            pieces = [*pieces, character] if last else [*pieces[:-1], pieces[-1] + character]
        last = cut
    kept = [piece for piece in pieces if len(piece) >= least]
    return BREAK.join(kept) if kept and len(pieces) <= most else None


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 80), st.integers(1, 6))
def test_cuts_are_those_of_a_plain_count_of_characters(small_index, seed, margin, least, most):
    generator = random.Random(seed)
    pieces = generator.choices([FILLER, RARE, RARE * 2, QUESTION, POEM, SIMPLE], [3, 3, 2, 1, 1, 1], k=12)
    text = "".join(pieces)
    bare, found = hits(text, small_index), hits(text, small_index, margin)
    matches = list(zip(bare["left_position"].tolist(), bare["right_position"].tolist(), strict=True))
    if not matches:
        return
    assert (found["position"] == bare["left_position"]).all() and set(found["characters"]) == {len(text)}
    expected = reference_cut(text, matches, margin, least, most)
    edits = cuts(found, least, most)
    assert (edits is None) == (expected is None)
    if edits is not None:
        data = text.encode()
        for start, stop, new in reversed(edits):
            data = data[:start] + new.encode() + data[stop:]
        assert data.decode() == expected


@pytest.fixture(scope="module")
def small_index(tmp_path_factory):
    path = write_benchmark(
        tmp_path_factory.mktemp("small") / "a.jsonl", [{"text": t} for t in (QUESTION, POEM, SIMPLE, INNER)]
    )
    build(Folder(path.parent), "key", [Benchmark("b", ((path, "a"),), None, None, False)], 13, 8)
    return Index(path.parent / "key", "key", 13, 8, True)


DOCUMENTS = {
    "clean": FILLER * 30,
    "cut": "前" * 300 + FILLER * 10 + QUESTION + FILLER * 10,
    "both": FILLER * 10 + POEM + FILLER * 20 + QUESTION.upper() + FILLER * 10,
    "whole": QUESTION,
    "many": (FILLER * 12 + QUESTION) * 12,
    "short": FILLER * 10 + SIMPLE + FILLER * 10,
    "ends": QUESTION + FILLER * 12,
}


@pytest.fixture
def run(tmp_path, pipeline):
    write_benchmark(tmp_path / "maths.jsonl", [{"id": "m1", "q": QUESTION, "a": ANSWER}, {"id": "m2", "q": "Why?"}])
    write_benchmark(tmp_path / "other.jsonl", [{"id": "o1", "q": POEM}, {"id": "o2", "q": SIMPLE}, {"q": ANSWER}])

    def call(documents=DOCUMENTS, workers=1, **values):
        path = tmp_path / "raw.jsonl"
        content = "".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in documents.items())
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        web = {"kind": "jsonl", "path": str(path), "id_field": "id"}
        files = [{"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in ("maths", "other")]
        decontaminate = {"files": files} | values
        config = pipeline(ingest={"sources": {"web": web}, "shard_bytes": 3000}, decontaminate=decontaminate)
        with Processes(workers) as pool:
            this = Run(config, Console(file=io.StringIO(), width=200), pool)
            parts = stage.run(this, ingest.run(this))
        rows = [row for part in parts for row in read(part, ("id", "text", "bytes", "steps")).to_pylist()]
        assert sum(part.documents for part in parts) == len(rows)
        assert all(row["bytes"] == len(row["text"].encode()) for row in rows)
        assert sum(part.bytes for part in parts) == sum(row["bytes"] for row in rows)
        return {row["id"].removeprefix("web/"): row for row in rows}, this

    return call


def report_of(this):
    with open(f"{this.config.output}/contamination-test.json") as file:
        report = json.load(file)
    return report, {item["id"].partition(":")[2]: item for item in report["items"]}


def test_cuts_leave_what_is_far_from_a_match(run):
    rows, this = run()
    assert set(rows) == {"clean", "cut", "both", "short", "ends"}
    assert rows["clean"]["text"] == DOCUMENTS["clean"]
    start = DOCUMENTS["cut"].index("Natalia")
    stop = start + len(QUESTION) - 1
    assert rows["cut"]["text"] == DOCUMENTS["cut"][: start - 200] + BREAK + DOCUMENTS["cut"][stop + 200 :]
    assert rows["ends"]["text"] == DOCUMENTS["ends"][len(QUESTION) - 1 + 200 :]
    assert dict(rows["both"]["steps"])["decontaminate"] == "2 cut for maths, other"
    assert all(text not in row["text"].casefold() for row in rows.values() for text in (QUESTION.casefold(), POEM))
    row = this.funnel[-1]
    lost = {key: len(DOCUMENTS[key].encode()) - rows[key]["bytes"] if key in rows else 0 for key in DOCUMENTS}
    assert row.changed["benchmark maths"] == Amount(3, lost["cut"] + lost["both"] + lost["ends"])
    assert row.changed["benchmark other"] == Amount(1, lost["short"])
    assert row.dropped == {"benchmark maths": Amount(2, len((DOCUMENTS["whole"] + DOCUMENTS["many"]).encode()))}


def test_documents_are_dropped_where_that_is_asked(run):
    rows, this = run(action="drop")
    assert set(rows) == {"clean"} and rows["clean"]["text"] == DOCUMENTS["clean"]
    assert {name: amount.documents for name, amount in this.funnel[-1].dropped.items()} == {
        "benchmark maths": 5,
        "benchmark other": 1,
    }


def test_the_report_says_what_was_found_where(run):
    report, items = report_of(run()[1])
    assert report["benchmarks"] == {
        "maths": {"items": 2, "too short": 1, "found": 1},
        "other": {"items": 3, "too short": 0, "found": 2},
    }
    assert (items["m2"]["status"], items["2"]["status"]) == ("too short", "not found")
    found = items["m1"]
    assert (found["status"], found["documents"]) == ("found", 5)
    assert [place["id"] for place in found["places"]] == ["web/cut", "web/both", "web/whole", "web/many", "web/ends"]
    assert found["places"][0]["position"] == DOCUMENTS["cut"].index("Natalia")
    assert found["places"][0]["source"] == "web"
    # 32 words are 20 sequences; that of the answer is nowhere.
    assert found["share"] == found["places"][0]["share"] == pytest.approx(20 / 21, abs=1e-4)
    assert items["o1"]["share"] == 1 and "places" not in items["2"]
    printed = run()[1].console.file.getvalue()
    assert any("maths" in line and " 3 │ " in line and " 2 │ " in line for line in printed.splitlines())


def test_the_report_names_five_documents_and_counts_all(run):
    documents = {f"d{number}": FILLER * number + QUESTION for number in range(9)}
    documents["part"] = FILLER + " ".join(QUESTION.split()[:14])
    _, items = report_of(run(documents, max_documents=9)[1])
    # The two sequences that a tenth document has are ignored.
    assert items["m1"]["documents"] == 9 and len(items["m1"]["places"]) == 5
    assert items["m1"]["share"] == pytest.approx(18 / 21, abs=1e-4)
    assert [place["id"] for place in items["m1"]["places"]] == [f"web/d{number}" for number in range(5)]


def test_sequences_of_too_many_documents_are_ignored(run):
    documents = {f"q{number}": FILLER * 12 + QUESTION + f" {number}" for number in range(4)} | {"poem": POEM}
    assert set(run(documents, max_documents=3, action="drop")[0]) == {"q0", "q1", "q2", "q3"}
    assert set(run(documents, max_documents=4, action="drop")[0]) == set()
    assert set(run(documents | {"poem": POEM * 5}, max_documents=3, action="drop")[0]) == {"q0", "q1", "q2", "q3"}


def test_another_policy_reads_no_text_again(run, monkeypatch):
    run()
    monkeypatch.setattr(scanning, "find", None)
    rows, this = run(min_piece=0, max_pieces=100)
    assert "many" in rows and "whole" not in rows
    assert "benchmarks: query up to date" in this.console.file.getvalue()


def test_a_stage_that_finds_nothing_says_so(run):
    documents = {"clean": FILLER}
    assert "nothing of the benchmarks in 1 documents" in run(documents)[1].console.file.getvalue()
    with pytest.raises(DataError, match="expect_matches"):
        run(documents, expect_matches=True)


def test_results_do_not_depend_on_the_workers_and_a_rerun_writes_nothing(tmp_path, run, contents):
    work, results = tmp_path / "out" / ".work" / "test", []
    for workers in (1, 2):
        rows, this = run(workers=workers)
        stages = (stage.STAGE, stage.INDEX, stage.SCAN, stage.REPORT)
        results.append((rows, this.funnel, report_of(this), {name: contents(work / name) for name in stages}))
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert len(run(workers=workers)[0]) == len(rows)
        assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
        for name in stages:
            (work / name).rename(tmp_path / f"{name}{workers}")
    assert results[0] == results[1] and len(results[0][3][stage.SCAN]) > 4
