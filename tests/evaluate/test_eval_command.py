"""`maxlm eval` on files of questions and on several paths: what it prints, writes down and finds there again."""

import json
import math
import shutil
from pathlib import Path

import jax
import pytest
from tiny import RUN

from maxlm.config import load
from maxlm.evaluate import tables
from maxlm.evaluate.perplexity import Result
from maxlm.report.metrics import read_lines
from maxlm.train import loop


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("questions")
    lines = {
        "cloze": [{"text": "import ", "answer": ["jax", "json"]}, {"text": "def " * 40, "answer": "x"}],
        "choice": [{"text": "return", "choices": [" None", " Nine"], "answer": 0, "topic": "python"}] * 2,
    }
    for name, of_file in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_file)))
    return {name: folder / f"{name}.jsonl" for name in lines}


@pytest.fixture(scope="module")
def words(questions) -> list[str]:
    return [word for name, path in questions.items() for word in ("--knowledge", f"{name}={path}")]


@pytest.fixture(scope="module")
def trained(prepared, questions, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    (path / "tiny.yaml").write_text(RUN.format(prepared=prepared, runs=path / "runs"))
    files = json.dumps({name: str(file) for name, file in questions.items()})
    config = load(path / "tiny.yaml", ["train.total_tokens=2048", f"eval.knowledge={files}"])
    loop.train(config, jax.devices()[:1])
    return config.run_dir


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A copy whose eval.jsonl has nothing of questions."""
    shutil.copytree(trained, copy := tmp_path / "run")
    lines = [json.dumps(line) + "\n" for line in read_lines(trained / "eval.jsonl") if "task" not in line]
    (copy / "eval.jsonl").write_text("".join(lines))
    return copy


def tasks(directory: Path) -> list[dict]:
    return [line for line in read_lines(directory / "eval.jsonl") if "task" in line]


def test_answers_are_those_of_training_and_stand_in_the_same_file(run_command, trained, run_dir, words) -> None:
    code, out, err = run_command("eval", run_dir, *words, "--json")
    assert code == 0, err
    assert "1 of 2 questions are longer than the 32 tokens that the model is made for" in err
    found, wanted = tasks(run_dir), tasks(trained)
    assert json.loads(out) == {line["task"]: line for line in found}
    assert [line["task"] for line in found] == ["cloze", "choice"]
    for mine, of_training in zip(found, wanted, strict=True):
        assert mine["metrics"] == pytest.approx(of_training["metrics"], rel=1e-5)
        assert {key: mine[key] for key in ("step", "tokens", "task", "items", "settings")} == {
            key: of_training[key] for key in ("step", "tokens", "task", "items", "settings")
        }

    # Again: taken from the file; with --again asked once more.
    code, again, err = run_command("eval", run_dir / "checkpoints" / "8", *words, "--json")
    assert again == out and err.count("is finished for step 8: taken from") == 2 and tasks(run_dir) == found
    where = ("--again", "--mesh", "data=2,tensor=4", "--results", run_dir / "mine.jsonl")
    code, out, _ = run_command("eval", run_dir, *words[:2], *where)
    (line,) = read_lines(run_dir / "mine.jsonl")
    assert code == 0 and tasks(run_dir) == found and "acc" in out and "loss" not in out
    assert line["metrics"] == pytest.approx(found[0]["metrics"], rel=1e-4) and line["settings"] == found[0]["settings"]


def test_one_path_prints_tables_and_several_stand_side_by_side(run_command, trained, words, prepared) -> None:
    held_out = ("--data", f"web={prepared / 'model-val'}", "--sequences", "4")
    code, out, err = run_command("eval", trained, *words, *held_out)
    assert code == 0, err
    assert "topics of choice" in out and "acc (chance 0.50)" in out and "target tokens" in out
    other = trained / "checkpoints" / "4"
    code, out, err = run_command("eval", trained, other, *words, *held_out, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found) == [str(trained), str(other)]
    first, second = found.values()
    assert list(first) == list(second) == ["web", "cloze", "choice"]
    assert first["web"]["loss"] < second["web"]["loss"] and first["choice"]["step"] > second["choice"]["step"]
    (alone,) = (json.loads(run_command("eval", other, *held_out, "--json")[1]),)
    assert alone == {"web": second["web"]}
    code, out, err = run_command("eval", trained, other, *held_out)
    assert code == 0 and "metric" in out and "bits per byte" in out
    assert f"{first['web']['loss']:.4f}" in out and f"{second['web']['loss']:.4f}" in out


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--knowledge", "facts"], 2, "--knowledge facts: expected NAME=FILE"),
        (["--data", "=x"], 2, "--data =x: expected NAME=DIRECTORY"),
        (["--knowledge", "a=x", "--knowledge", "a=y"], 2, "--knowledge a=y: the name a is taken by x"),
        (["--knowledge", "a=x", "--data", "a=y"], 2, "--knowledge a=...: --data has this name too"),
        (["--shots", "0", "--limit", "5"], 2, "--shots, --limit: nothing to change without --tasks; add it"),
        (["--apply-chat-template"], 2, "--apply-chat-template: nothing to change without --tasks"),
        (["--again"], 2, "--again: nothing to change without --tasks or --knowledge"),
        (["--sequences", "4", "--knowledge", "a=x"], 2, "--sequences: nothing to change without --data"),
        (["--knowledge", "a=none.jsonl"], 3, "none.jsonl: cannot be read"),
        (
            ["{trained}/checkpoints/4", "--results", "x", "--knowledge", "a=x"],
            2,
            "--results x: holds figures of one PATH",
        ),
        (["--knowledge", "a={bad}"], 3, "bad.jsonl, line 1: unknown key 'anser'; the nearest is 'answer'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_asked_is_one_line(run_command, trained, tmp_path, more: list, code: int, message: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a", "anser": "b"}')
    before = (trained / "eval.jsonl").read_bytes()
    words = [word.replace("{trained}", str(trained)).replace("{bad}", str(bad)) for word in more]
    found, out, err = run_command("eval", trained, *words)
    (line,) = err.splitlines()
    assert (found, out) == (code, "") and message in line
    assert (trained / "eval.jsonl").read_bytes() == before


def test_what_one_of_several_models_lacks_is_blank_and_what_is_no_number_is_null() -> None:
    line = {"metrics": {"acc": 0.5, "bits_per_byte": math.nan}, "stderr": {"acc": 0.25}, "items": 2, "settings": {}}
    measured = {"a": {"web": Result(1.5, 4.48, 0.75, 10, 40)}, "b": {"facts": line}}
    table = tables.side_by_side(measured)
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert [column.header for column in table.columns] == ["source or task", "metric", "a", "b"]
    assert list(zip(*cells, strict=True)) == [
        ("web", "loss", "1.5000", ""),
        ("web", "bits per byte", "0.7500", ""),
        ("facts", "acc", "", "0.5000 ± 0.2500"),
        ("facts", "bits per byte", "", "nan"),
    ]
    plain = tables.as_json(measured["b"])
    assert plain["facts"]["metrics"] == {"acc": 0.5, "bits_per_byte": None} and json.loads(json.dumps(plain)) == plain
