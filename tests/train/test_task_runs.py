"""Tasks of lm-eval in training: on the run's mesh, with its parameters, and without a trace in what is trained."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from maxlm.errors import ConfigError, DataError  # noqa: E402
from maxlm.report.metrics import read_lines  # noqa: E402
from maxlm.train import loop  # noqa: E402

FOLDER = str(Path(__file__).parents[1] / "evaluate" / "tasks")
TASKS = {"names": ["python", "answers"], "folder": FOLDER, "every_steps": 12, "limit": 4, "shots": 0}
VALUES = ("loss", "grad_norm", "param_norm", "update_norm")


def tasks_of(config) -> list[dict]:
    return [line for line in read_lines(config.run_dir / "eval.jsonl") if "task" in line]


def test_tasks_are_asked_and_change_nothing(make_config, run_command):
    config = make_config({"eval.tasks": TASKS, "mesh.tensor": 2}, name="asked")
    alike = make_config({"mesh.tensor": 2}, name="alike")
    loop.train(alike)
    loop.train(config)
    trained, expected = (read_lines(run.run_dir / "metrics.jsonl") for run in (config, alike))
    assert [[line[key] for key in VALUES] for line in trained] == [[line[key] for key in VALUES] for line in expected]
    lines = tasks_of(config)
    names = ["completions", "letters", "answers", "python"]
    assert [(line["step"], line["task"]) for line in lines] == [(step, name) for step in (12, 20) for name in names]
    assert [line["items"] for line in lines] == [4, 4, 4, 8] * 2
    assert {
        step for line in read_lines(config.run_dir / "eval.jsonl") if "source" in line for step in [line["step"]]
    } == {
        8,
        16,
        20,
    }
    # The command finds them finished, and measured again on one device they are the same.
    asked = ["eval", config.run_dir, "--tasks", "python,answers", "--tasks-folder", FOLDER]
    asked += ["--limit", "4", "--shots", "0", "--json", "--mesh", "data=1"]
    code, out, err = run_command(*asked)
    assert code == 0 and all(f"{name} is finished for step 20" in err for name in names[:3])
    code, out, err = run_command(*asked, "--again")
    found = json.loads(out)
    for line in lines[4:]:
        assert found[line["task"]]["metrics"] == pytest.approx(line["metrics"], abs=1e-3)
        assert found[line["task"]]["settings"] == line["settings"]


@pytest.mark.parametrize("mesh", [{"mesh.context": 2}, {"mesh.pipeline": 2, "pipeline.microbatches": 2}])
def test_what_is_scored_is_asked_on_any_mesh(make_config, mesh):
    tasks = TASKS | {"names": ["letters"], "every_steps": None}
    one = make_config({"eval.tasks": tasks, "mesh.fsdp": 1, "train.total_tokens": 512}, name="one")
    import jax

    loop.train(one, jax.devices()[:1])
    config = make_config({"eval.tasks": tasks, "train.total_tokens": 512} | mesh, name="split")
    loop.train(config)
    (expected,), (found,) = tasks_of(one), tasks_of(config)
    np.testing.assert_allclose(list(found["metrics"].values()), list(expected["metrics"].values()), atol=1e-6)
    assert found["settings"] == expected["settings"]


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"mesh.context": 2}, ConfigError, r"answers want words, .* mesh.context = 2; leave them out, .* maxlm eval "),
        ({"eval.tasks": TASKS | {"folder": "nowhere"}}, DataError, "nowhere: no such directory"),
        ({"data.seq_len": 8}, ConfigError, "task answers: asks for 12 new tokens, and the model is made for 8"),
    ],
    ids=["mesh", "folder", "length"],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(make_config, changes, kind, said):
    config = make_config({"eval.tasks": TASKS} | changes)
    with pytest.raises(kind, match=said):
        loop.train(config)
    assert not (config.run_dir / "metrics.jsonl").exists()
