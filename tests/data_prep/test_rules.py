"""Statistics and thresholds: by hand, against a plain reference on any text, and what a change makes again."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rule_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_prep.config import Pipeline, RulesConfig
from data_prep.config.rules import PROFILES, Profile
from data_prep.manifest import Folder
from data_prep.pipeline import FUNNEL, run
from data_prep.rules import columns, filter
from data_prep.rules.annotate import Measure, profile_of, settings_of
from data_prep.text.words import VERSIONS
from maxlm.config import load, validate
from maxlm.errors import ConfigError, DataError

PIECES = [
    "the",
    "of",
    "a",
    "word",
    "Word.",
    "今天",
    "天气。",
    "了",
    "...",
    "..",
    ".",
    "…",
    "#",
    "•",
    "-",
    "–",
    "9",
    "naïve",
    "\u0301",
    "𠀀",
]
GAPS = [" ", " ", " ", "\n", "\n", "\n\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\u2028", "\u3000", ""]
TEXT = st.lists(
    st.tuples(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), st.sampled_from(GAPS)), max_size=40
).map(lambda pairs: "".join(map("".join, pairs)))


def profile(value: object) -> Profile:
    return validate({"profiles": {"x": value, "default": None}}, RulesConfig, "test").profiles["x"]


MEASURES = {name: Measure(settings_of(profile(name))) for name in ("en", "zh")}


def measured(name: str, texts: list[str]) -> list[dict[str, int]]:
    rows, _ = MEASURES[name](reference.texts_of(texts))
    return [dict(zip(columns.NAMES, row.tolist(), strict=True)) for row in rows]


def test_statistics_by_hand() -> None:
    text = "• The cat and the dog...\n- see # 3 dogs …\r\nThe cat and the dog. \n\nend"
    (found,) = measured("zh", [text])
    expected = {
        "characters": 69,
        "words": 20,  # with • ... - # … and the full stop
        "plain_words": 15,
        "alphabetic_words": 13,
        "hashes": 1,
        "ellipses": 2,
        "lines": 5,
        "bullet_lines": 2,
        "ellipsis_lines": 2,
        "longest_line": 24,
        "paragraphs": 2,
        "newline_lines": 4,
        "duplicate_lines": 0,
        "top_2_gram_characters": 14,  # "The cat", twice, before "cat and" and "the dog"
        "top_3_gram_characters": 22,  # "The cat and"
        "top_4_gram_characters": 30,  # "The cat and the"
        "duplicate_5_gram_characters": 15,  # Thecatandthedog
        "duplicate_6_gram_characters": 0,
        "left_lines": 4,
        "left_stop_lines": 1,  # a carriage return ends the second line, a blank the third
        "left_newlines": 4,
        "left_words": 20,
    }
    assert {name: found[name] for name in expected} == expected


def test_points_with_gaps_are_no_ellipsis() -> None:
    (found,) = measured("en", ["a.. .\na. . .\na...  \n...b\nc ....\n…\n.…."])
    assert (found["ellipsis_lines"], found["ellipses"]) == (3, 5)


def test_repetition_by_hand() -> None:
    text = "\na b\na b\n\nc\n\n\na b\n\nc\n"
    (found,) = measured("zh", [text])
    names = ("paragraphs", "duplicate_paragraphs", "duplicate_paragraph_characters")
    assert [found[name] for name in names] == [4, 1, 1]
    names = ("newline_lines", "duplicate_lines", "duplicate_line_characters")
    assert [found[name] for name in names] == [7, 4, 7]  # the text begins and ends with an empty line
    assert found["left_duplicate_characters"] == 7


def test_grams_whose_first_bytes_are_neighbours_are_not_the_same() -> None:
    (found,) = measured("en", ["2 a b c d e . 3 a b c d e ."])
    assert found["duplicate_6_gram_characters"] == 6 and found["duplicate_7_gram_characters"] == 0


@settings(derandomize=True, deadline=None, max_examples=120)
@given(texts=st.lists(TEXT, max_size=4))
@pytest.mark.parametrize("name", ["en", "zh"])
def test_statistics_are_those_of_the_reference(name: str, texts: list[str]) -> None:
    mine = profile(name)
    for text, found in zip(texts, measured(name, texts), strict=True):
        left, _, counts = reference.apply_lines(text, mine)
        expected = reference.statistics(text, mine) | counts | reference.left_statistics(left, mine)
        assert found == expected


def test_a_limit_is_kept_by_what_is_equal_to_it() -> None:
    counts = {name: np.array([10]) for name in columns.NAMES}
    for rule in filter.RULES:
        if rule.per is None:
            equal, sign = 10, -1 if rule.field.startswith("max_") else 1
            over = equal + sign
            values = counts
        else:
            equal, values = 0.3, counts | {rule.of: np.array([3])}
            over = np.nextafter(equal, 0 if rule.field.startswith("max_") else 1)
        assert not rule.fails(values, equal).any(), rule
        assert rule.fails(values, over).all(), rule


def test_the_first_rule_in_the_order_is_the_reason() -> None:
    (found,) = measured("en", ["# # #"])
    statistics = {name: np.array([value]) for name, value in found.items()}
    english = profile("en")

    def reason(**changes: object) -> str:
        return filter.REASONS[filter.failures(statistics, english.model_copy(update=changes))[0]]

    assert reason() == "repetition: top 2-gram"
    assert reason(order=["gopher", "repetition", "c4", "fineweb"]) == "gopher: too few words"
    assert reason(order=["c4", "gopher", "repetition", "fineweb"]) == "c4: too few sentences"
    hashes = type(english.gopher)(max_hashes=0.1)
    assert reason(repetition=None, gopher=hashes) == "gopher: too many #"
    nothing = dict.fromkeys(("repetition", "gopher", "c4", "fineweb"))
    assert filter.failures(statistics, english.model_copy(update=nothing)).tolist() == [-1]
    empty = {name: np.array([0]) for name in columns.NAMES}
    assert filter.failures(empty, english.model_copy(update=nothing)).tolist() == [filter.REASONS.index(filter.EMPTY)]


def test_every_limit_of_a_profile_has_a_rule() -> None:
    rules = {(rule.group, rule.field) for rule in filter.RULES}
    sections = ("repetition", "gopher", "c4", "fineweb", "code")
    annotations = {name: Profile.model_fields[name].annotation.__args__[0] for name in sections}
    limits = {(name, field) for name, section in annotations.items() for field in section.model_fields}
    assert limits - rules == {("c4", "lines")} and rules <= limits
    assert {count for rule in filter.RULES for count in (rule.of, rule.per) if count} <= set(columns.NAMES)


def test_profiles_of_the_package_load_and_name_splitters_that_exist() -> None:
    assert {path.stem for path in PROFILES.glob("*.yaml")} == {"en", "zh", "code", "default"}
    for name in ("en", "zh", "code", "default"):
        assert profile(name).words in VERSIONS
    assert set(Profile.model_fields["words"].annotation.__args__) == set(VERSIONS)
    assert profile("en").gopher.min_words == 50 and profile("zh").repetition.max_top_2_gram_characters == 0.256
    assert profile("zh").words == "jieba" and len(profile("zh").stop_words) == 22 and profile("zh").c4 is None


def test_a_profile_extends_others_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: en\ngopher: {min_words: 30, max_words: null}\nstop_words: [a, b]\n")
    mine = profile({"extends": str(path), "gopher": {"max_hashes": 0.5}})
    assert (mine.gopher.min_words, mine.gopher.max_words, mine.gopher.max_hashes) == (30, None, 0.5)
    assert mine.stop_words == ["a", "b"] and mine.gopher.min_word_length == 3 and mine.c4 == profile("en").c4
    path.write_text(f"extends: {path}\n")
    with pytest.raises(ConfigError, match="extends itself"):
        profile(str(path))


@pytest.mark.parametrize(
    "value, message",
    [
        ("eng", "profiles.x: no profile is called 'eng'; the nearest is 'en'"),
        ("none.yaml", "profiles.x: none.yaml: cannot be read"),
        (
            {"extends": "en", "gopher": {"min_wrods": 3}},
            "unknown key 'profiles.x.gopher.min_wrods'; the nearest is",
        ),
        ({"words": "jeiba"}, "profiles.x.words: found 'jeiba'; input should be 'unicode', 'jieba' or 'whitespace'"),
        ({"extends": ["en"]}, "extends must be the name or the file of one profile"),
        ({"gopher": {"min_stop_words": 1}}, "gopher.min_stop_words is 1, but stop_words has 0"),
        ({"order": ["c4"], "gopher": {}}, "'gopher' is missing"),
        ({"fineweb": {"max_short_lines": 67}}, "less than or equal to 1"),
    ],
)
def test_a_wrong_profile_is_told(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        profile(value)
    assert message in str(error.value)


def test_other_languages_need_a_default() -> None:
    with pytest.raises(ConfigError, match="default: default"):
        validate({"profiles": {"en": "en"}}, RulesConfig, "test")


def run_rules(config: Pipeline) -> list[dict]:
    """The funnel of a pipeline up to its rules."""
    with open(os.devnull, "w") as sink:
        run(config, Console(file=sink), until="rules")
    return json.loads((config.work / FUNNEL).read_text())


@pytest.fixture
def pages(tmp_path: Path) -> dict:
    """The section ingest for 40 documents in 4 shards or more; every fifth of the 20 English ones is too short."""
    generator = random.Random(0)
    texts = []
    for number in range(40):
        words = ["".join(generator.choices("aeioubdfgklmnprst", k=6)) for _ in range(60)]
        start = f"All of that was to be had with it, page {number}."
        text = f"{start} {' '.join(words)}.\nAb cd? De fg! Last of it.\n  \nshort\n"
        text = f"Too short: {' '.join(words[:30])}" if number % 5 == 0 else text
        texts.append({"text": text, "language": ["en", "xx"][number // 4 % 2]})
    for shard in range(4):
        (tmp_path / f"{shard}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts[shard::4]))
    source = {"kind": "jsonl", "path": str(tmp_path / "*.jsonl"), "language_field": "language"}
    return {"ingest": {"sources": {"web": source}, "shard_bytes": 3000}}


def test_rules_drop_documents_with_their_reasons(prepare: Callable, pages: dict) -> None:
    prepared = prepare(**pages, rules={"profiles": {"en": "en", "default": None}})
    assert "rules: lines" in prepared.printed and "gopher: too few words" in prepared.printed
    rows = {row["text"]: row for row in prepared.documents("web")}
    assert len(rows) == 36 and sum(text.startswith("Too short") for text in rows) == 4  # of another language
    changed = [row for text, row in rows.items() if row["language"] == "en"]
    assert all("  \nshort" not in row["text"] and row["text"].endswith("Last of it.") for row in changed)
    assert all(dict(row["steps"])["annotate"] == "10 bytes" for row in changed)


def test_a_threshold_reads_no_text_and_a_splitter_does(pipeline: Callable, pages: dict, tmp_path: Path) -> None:
    def run(value: object) -> tuple[dict, int]:
        sections = pages | {"rules": {"profiles": {"en": value, "default": None}}}
        funnel = run_rules(pipeline(**sections))
        return times(), funnel[-1]["after"]["documents"]

    def times() -> dict:
        files = (tmp_path / "out/.work/test/annotate").rglob("*.parquet")
        return {path: path.stat().st_mtime_ns for path in files}

    before, documents = run("en")
    assert documents == 36 and len(before) >= 8
    shards = list((tmp_path / "out/.work/test/ingest").rglob("*.parquet"))
    contents = {path: path.read_bytes() for path in shards}
    for path, content in contents.items():
        path.write_bytes(b"\0" * len(content))
    loose = {"extends": "en", "gopher": {"min_words": 1, "min_stop_words": None}, "c4": {"min_sentences": 1}}
    after, documents = run(loose | {"repetition": None, "fineweb": None})
    assert after == before and documents == 40
    for path, content in contents.items():
        path.write_bytes(content)
    changed, _ = run({"extends": "en", "words": "whitespace"})
    assert set(before) < set(changed) and len(changed) == 2 * len(before)


def test_workers_change_nothing(pipeline: Callable, pages: dict, tmp_path: Path) -> None:
    contents = []
    for workers in (1, 2):
        rules = {"profiles": {"en": "en", "default": "default"}}
        config = pipeline(**pages, workers=workers, work_dir=str(tmp_path / f"work{workers}"), rules=rules)
        run_rules(config)
        files = [path for stage in ("annotate", "rules") for path in (config.work / stage).rglob("*") if path.is_file()]
        contents.append({os.path.relpath(path, config.work): path.read_bytes() for path in files})
    assert contents[0] == contents[1] and len(contents[0]) > 8


def test_statistics_are_there_for_reports(pipeline: Callable, pages: dict, tmp_path: Path) -> None:

    run_rules(pipeline(**pages, rules={"profiles": {"en": "en", "default": None}}))
    folder = Folder(tmp_path / "out/.work/test/annotate")
    tables = [filter.statistics(folder, folder.find(path.name)) for path in sorted(folder.path.iterdir())]
    assert sum(table.num_rows for table in tables) == 20
    table = tables[0]
    assert {"row", "bytes", "profile", *columns.NAMES, *(rule.measure for rule in filter.RULES)} <= set(
        table.column_names
    )
    expected = np.float32(table["plain_word_characters"].to_numpy() / table["plain_words"].to_numpy())
    assert (table["gopher.word_length"].to_numpy() == expected).all() and table["gopher.word_length"].type == "float"


def test_rules_that_match_nothing_are_told(prepare: Callable, pages: dict) -> None:
    rules = {"profiles": {"default": {"gopher": {"max_words": 10_000}}}}
    assert "warning: rules: no rule concerns any of 40 documents" in prepare(**pages, rules=rules).printed
    with pytest.raises(DataError, match="expect_matches"):
        prepare(**pages, rules=rules | {"expect_matches": True})


def test_a_part_may_lose_all_its_documents(prepare: Callable, pages: dict) -> None:
    rules = {"profiles": {"en": {"gopher": {"min_words": 5000}}, "default": None}}
    assert len(prepare(**pages, rules=rules).documents("web")) == 20


def test_a_pipeline_of_a_file_names_profiles(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("profiles: {en: {extends: en, gopher: {min_words: 30}}, python: code, default: default}\n")
    assert load(path, ["profiles.en.gopher.min_words=20"], RulesConfig).profiles["en"].gopher.min_words == 20


def test_languages_of_code_share_a_profile():
    profiles = {"en": 1, "python": 2, "code": 3, "default": 4}
    expected = {"en": "en", "python": "python", "c++": "code", "Abap": "code", "fr": "default", None: "default"}
    assert {name: profile_of(name, profiles) for name in expected} == expected
    assert profile_of("c++", {"default": 1}) == "default"
