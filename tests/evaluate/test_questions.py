"""Files of questions: what is read from them, and the one line that says what is wrong with one."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.errors import DataError
from maxlm.evaluate.questions import Question, read_questions

EXAMPLES = Path(__file__).parents[2] / "configs" / "eval"
HEADER = {"format": "maxlm-questions", "version": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("questions") / "file.jsonl"


def write(path: Path, *lines: dict | str | bytes, ascii: bool = False) -> Path:
    texts = [line if isinstance(line, str | bytes) else json.dumps(line, ensure_ascii=ascii) for line in lines]
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    return path


def test_cloze_questions_are_read(path: Path) -> None:
    lines = [
        {"text": "The capital of France is", "answer": " Paris"},
        {"question": "7 + 5 =", "answer": [" 12", " twelve"], "id": "sum", "topic": "arithmetic"},
    ]
    found = read_questions(write(path, *lines))
    assert found.kind == "cloze" and len(found.sha256) == 64
    assert found.items == [
        Question("1", None, "The capital of France is", (" Paris",), None, 1),
        Question("sum", "arithmetic", "7 + 5 =", (" 12", " twelve"), None, 2),
    ]


def test_choices_are_read_with_a_text_or_as_whole_texts(path: Path) -> None:
    lines = [
        {"text": "法国的首都是", "choices": ["伦敦", "巴黎"], "answer": 1},
        "",
        {"choices": ["a", "b"], "answer": 0},
    ]
    found = read_questions(write(path, *lines))
    assert found.kind == "choice"
    assert found.items == [
        Question("1", None, "法国的首都是", ("伦敦", "巴黎"), 1, 1),
        Question("3", None, "", ("a", "b"), 0, 3),
    ]


def test_the_first_line_says_how_texts_are_asked(path: Path) -> None:
    header = HEADER | {"template": "Question: {text}\nAnswer:", "separator": " "}
    lines = [{"text": "{text}?", "choices": ["x", "y"], "answer": 0}, {"choices": ["x", "y"], "answer": 1}]
    found = read_questions(write(path, header, *lines))
    assert [item.text for item in found.items] == ["Question: {text}?\nAnswer:", ""]
    assert [item.answers for item in found.items] == [(" x", " y"), ("x", "y")]  # nothing to be separated from
    assert found.items[0].id == "2"


def test_the_hash_is_of_the_bytes(path: Path) -> None:
    line = {"text": "é", "answer": "b"}
    one, two = read_questions(write(path, line)), read_questions(write(path, line, ascii=True))
    assert one.items == two.items and one.sha256 != two.sha256


GOOD = {"text": "a", "answer": "b"}
CHOICE = {"text": "a", "choices": ["b", "c"], "answer": 0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], ": holds no question"),
        ([HEADER], ": holds no question"),
        (["{"], ", line 1: not a JSON object in UTF-8"),
        ([GOOD, b'{"text": "\xff", "answer": "b"}'], ", line 2: not a JSON object in UTF-8"),
        (['{"text": "a", "answer": "\\ud800"}'], ", line 1: not a JSON object in UTF-8"),
        (["[" * 100_000], ", line 1: not a JSON object in UTF-8"),
        (['{"text": "a", "text": "a", "answer": "b"}'], "the key 'text' twice"),
        (["[1]"], ", line 1: expected an object with text and answer, found [1]"),
        ([{"text": "a"}], ", line 1: missing key 'answer'"),
        ([{"text": "a", "anser": "b"}], "unknown key 'anser'; the nearest is 'answer'"),
        ([{"answer": "b"}], "found no text; expected one that the answer completes, or choices"),
        ([GOOD | {"question": "a"}], "two names of one thing"),
        ([GOOD | {"answer": 1}], "answer: found 1; input should be a valid string"),
        ([GOOD | {"answer": []}], "answer: found []"),
        ([GOOD | {"answer": ["b", "b"]}], "expected texts that differ"),
        ([GOOD | {"topic": ""}], "topic: found ''"),
        ([CHOICE | {"answer": 2}], "answer: found 2; expected the number of a choice, 0 to 1"),
        ([CHOICE | {"answer": -1}], "answer: found -1"),
        ([CHOICE | {"answer": True}], "answer: expected a number, not true or false"),
        ([CHOICE | {"answer": "b"}], "answer: found 'b'; input should be a valid integer"),
        ([CHOICE | {"choices": ["b"]}], "choices: found ['b']; list should have at least 2"),
        ([CHOICE | {"choices": ["b", "b"]}], "expected texts that differ"),
        ([GOOD, CHOICE], ", line 2: a choice question after cloze questions; put them into two files"),
        ([GOOD | {"id": "x"}, GOOD | {"id": "x"}], ", line 2: has the id 'x' of line 1"),
        ([HEADER | {"version": 2}, GOOD], ", line 1: version: found 2; input should be 1"),
        ([HEADER | {"template": "Q:"}, GOOD], "template: found 'Q:'; expected a text with {text} in it once"),
        ([HEADER | {"seperator": " "}, GOOD], "unknown key 'seperator'; the nearest is 'separator'"),
        ([GOOD, HEADER], ", line 2: says of a format again"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "file",
)
def test_what_is_wrong_is_one_line_that_names_the_place(path: Path, lines: list, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_questions(write(path, *lines))
    text = str(error.value)
    assert text.startswith(str(path)) and message in text and "\n" not in text


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(DataError, match="none.jsonl: cannot be read .*; expected a file of questions"):
        read_questions(path.with_name("none.jsonl"))


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.jsonl")), ids=lambda file: file.stem)
def test_the_examples_are_questions_with_topics(file: Path) -> None:
    found = read_questions(file)
    assert found.kind in file.stem and len(found.items) >= 30 and all(item.topic for item in found.items)
    assert len({(item.text, item.answers) for item in found.items}) == len(found.items)
    if found.kind == "choice":  # the right one has no place of its own
        assert all(sum(item.right == place for item in found.items) < len(found.items) / 2 for place in range(4))
    # What follows a word in English brings its blank along; Chinese has none.
    texts = [answer for item in found.items if item.text for answer in item.answers]
    assert {text.startswith(" ") for text in texts} == {"-en-" in file.stem}


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1)
CHOICES = st.lists(TEXTS, min_size=2, unique=True, max_size=4)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(TEXTS, st.lists(TEXTS, min_size=2, unique=True, max_size=4), st.booleans()), min_size=1, max_size=4
    )
)
def test_texts_come_back_as_they_were_written(path: Path, drawn: list) -> None:
    lines = [{"text": text, "choices": choices, "answer": len(choices) - 1} for text, choices, _ in drawn]
    found = read_questions(write(path, *lines, ascii=drawn[0][2]))
    assert [(item.text, list(item.answers), item.right) for item in found.items] == [
        (line["text"], line["choices"], line["answer"]) for line in lines
    ]
