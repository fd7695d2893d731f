"""Questions in training: asked at every evaluation and at the end, checked before it begins, and of no effect on it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from trainer import params_of

from maxlm.errors import DataError
from maxlm.evaluate.knowledge import describe, evaluate, open_exams
from maxlm.evaluate.load import load_all
from maxlm.report.metrics import read_lines
from maxlm.train import loop

SHORT = {"train.total_tokens": 2560, "eval.every_steps": 4}  # 10 steps
MESHES = [{"fsdp": 2, "data": 2, "tensor": 2}, {"pipeline": 2, "context": 2, "fsdp": 2}]


@pytest.fixture
def questions(tmp_path: Path) -> dict[str, str]:
    lines = {
        "cloze": [{"text": "import ", "answer": ["jax", "json"]}, {"text": "def " * 40, "answer": "x"}],
        "choice": [{"text": "return", "choices": [" None", " Nine", "e"], "answer": 0, "topic": "python"}] * 2,
    }
    for name, of_file in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_file)))
    return {name: str(tmp_path / f"{name}.jsonl") for name in lines}


def train(config, sizes: dict[str, int] | None = None):
    return loop.train(config, jax.devices()[: int(np.prod(list((sizes or {"fsdp": 1}).values())))])


def task_lines(config) -> list[dict]:
    return [line for line in read_lines(config.run_dir / "eval.jsonl") if "task" in line]


def test_questions_are_asked_at_every_evaluation_and_change_nothing(make_config, questions, capsys) -> None:
    asked = make_config(SHORT | {"eval.knowledge": questions}, name="asked")
    silent = make_config(SHORT, name="silent")
    states = [train(config) for config in (asked, silent)]
    for one, other in zip(*map(params_of, states), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = task_lines(asked)
    assert [(line["step"], line["task"]) for line in lines] == [(s, name) for s in (4, 8, 10) for name in questions]
    assert task_lines(silent) == []
    told = capsys.readouterr().err
    assert "1 of 2 questions are longer than the 32 tokens that the model is made for" in told
    assert "choice: acc " in told and "recompil" not in told

    # The same figures as of the saved model, by the command's way.
    loaded = load_all(asked.run_dir)
    for exam, line in zip(open_exams(questions, loaded.tokenizer, 32).values(), lines[-2:], strict=True):
        result = evaluate(loaded.graphdef, loaded.params, exam, mesh=loaded.mesh, rows=8)
        wanted = describe(exam, result, "float32")
        assert {"step", "tokens", "seconds", *wanted} == set(line) and line["tokens"] == 2560
        for key in ("task", "items", "settings"):
            assert line[key] == wanted[key]
        assert line["metrics"] == pytest.approx(wanted["metrics"], rel=1e-5)
    assert lines[-2]["left_out"] == 1 and lines[-1]["topics"]["python"]["items"] == 2


@pytest.mark.parametrize("sizes", MESHES, ids="-".join)
def test_answers_do_not_depend_on_the_mesh(make_config, questions, sizes: dict) -> None:
    changes = {"train.total_tokens": 256, "eval.knowledge": questions, "data.validation": {}}
    changes |= {"pipeline.microbatches": 2}
    one, many = (make_config(changes | {"mesh": mesh}, name=f"on{len(mesh)}") for mesh in ({"fsdp": 1}, sizes))
    train(one), train(many, sizes)
    for found, wanted in zip(task_lines(many), task_lines(one), strict=True):
        assert found["metrics"] == pytest.approx(wanted["metrics"], rel=1e-4)
        assert found["settings"] == wanted["settings"]


def test_a_bad_file_is_told_before_anything_is_written(make_config, tmp_path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "anser": "b"}')
    config = make_config({"eval.knowledge": {"bad": str(tmp_path / "bad.jsonl")}})
    with pytest.raises(DataError, match="bad.jsonl, line 1: unknown key 'anser'"):
        train(config)
    assert not config.run_dir.exists()
