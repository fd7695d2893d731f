"""`maxlm eval --tasks`: what it prints and writes, and that a killed one goes on where it was."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import golden_tasks
import pytest

from maxlm.convert.importing import import_folder
from maxlm.report.metrics import EVAL, read_lines

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return golden_tasks.write_folder(tmp_path_factory.mktemp("models") / "plain", bos=False)


@pytest.fixture
def model(folder, tmp_path):
    import_folder(folder, tmp_path / "model", None)
    return tmp_path / "model"


def asked(path: Path, tasks: str, *more: str) -> list[str]:
    return ["eval", str(path), "--tasks", tasks, "--tasks-folder", str(golden_tasks.TASKS), "--mesh", "data=1", *more]


def test_results_are_printed_written_and_not_measured_again(run_command, model):
    code, out, err = run_command(*asked(model, "python", "--limit", "8"))
    assert code == 0 and "it/s" not in err and "WARNING" not in err
    assert {"completions", "letters", "python", "acc_norm"} <= set(out.replace("│", " ").split())
    lines = read_lines(model / EVAL)
    assert [line["task"] for line in lines] == ["completions", "letters", "python"]
    assert [line["items"] for line in lines] == [8, 8, 16]
    assert set(lines[0]["metrics"]) == {"acc", "acc_norm"} and lines[0]["settings"]["limit"] == 8
    assert lines[2]["metrics"]["acc"] == pytest.approx((lines[0]["metrics"]["acc"] + lines[1]["metrics"]["acc"]) / 2)
    code, out, err = run_command(*asked(model, "letters,python", "--limit", "8", "--json"))
    assert code == 0 and "letters is finished for step 0: taken from" in err and "scoring" not in err
    assert {name: line["metrics"] for name, line in json.loads(out).items()} == {
        line["task"]: line["metrics"] for line in lines
    }
    assert read_lines(model / EVAL) == lines
    code, out, err = run_command(*asked(model, "letters", "--limit", "8", "--again", "--json"))
    assert json.loads(out)["letters"]["metrics"] == lines[1]["metrics"]
    assert [line["task"] for line in read_lines(model / EVAL)] == ["completions", "letters", "python", "letters"]


def test_results_of_a_folder_go_where_a_file_is_named(run_command, folder, tmp_path):
    before = sorted(folder.iterdir())
    code, out, _ = run_command(*asked(folder, "letters", "--json", "--results", str(tmp_path / "found.jsonl")))
    assert code == 0 and sorted(folder.iterdir()) == before
    assert read_lines(tmp_path / "found.jsonl") == list(json.loads(out).values())


def test_one_line_says_what_is_wrong(run_command, model, monkeypatch):
    (code, _, err), lines = run_command(*asked(model, "answers", "--limit", "0")), []
    assert code == 2 and "--limit" in err
    code, out, err = run_command("eval", str(model), "--tasks", "x", "--tasks-folder", str(model / "none"))
    assert (code, out) == (3, "") and err.count("\n") == 1 and "no such directory" in err
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    code, out, err = run_command(*asked(model, "letters"))
    assert (code, out) == (2, "") and err.count("\n") == 1 and "pip install 'maxlm[eval]'" in err
    assert read_lines(model / EVAL) == lines


def test_a_killed_command_goes_on_after_what_it_finished(run_command, model):
    command = [sys.executable, "-m", "maxlm.cli", *asked(model, "letters,answers")]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not read_lines(model / EVAL):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (finished,) = read_lines(model / EVAL)
    assert finished["task"] == "letters"
    code, _, err = run_command(*asked(model, "letters,answers"))
    assert code == 0 and "letters is finished" in err and "answers is finished" not in err
    lines = read_lines(model / EVAL)
    assert lines[0] == finished and [line["task"] for line in lines] == ["letters", "answers"]
