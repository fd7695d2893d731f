"""Results of commands: appended whole, found again by what makes them comparable."""

import json

from maxlm.evaluate.results import append, finished
from maxlm.report.metrics import EVAL, read_lines

SETTINGS = {"kind": "lm-eval", "shots": 0, "limit": None}


def line(step: int, acc: float, **more) -> dict:
    return {"step": step, "tokens": 8 * step, "task": "riddles", "metrics": {"acc": acc}, "settings": SETTINGS} | more


def test_a_task_is_found_by_step_settings_and_weights(tmp_path):
    assert finished(tmp_path, 5, "riddles", SETTINGS) is None
    append(tmp_path, {"step": 5, "source": "web", "loss": 2.0})
    for found in (line(5, 0.25), line(5, 0.5), line(6, 0.75), line(5, 1.0, weights="ema")):
        append(tmp_path, found)
    assert finished(tmp_path, 5, "riddles", SETTINGS)["metrics"] == {"acc": 0.5}  # the newest
    assert finished(tmp_path, 5, "riddles", SETTINGS, "ema")["metrics"] == {"acc": 1.0}
    assert finished(tmp_path, 7, "riddles", SETTINGS) is None
    assert finished(tmp_path, 5, "proverbs", SETTINGS) is None
    assert finished(tmp_path, 5, "riddles", SETTINGS | {"shots": 5}) is None


def test_what_a_killed_command_left_of_a_line_is_dropped(tmp_path):
    append(tmp_path, line(5, 0.25))
    whole = (tmp_path / EVAL).read_bytes()
    (tmp_path / EVAL).write_bytes(whole + whole[:20])
    append(tmp_path, line(6, 0.5))
    assert [found["step"] for found in read_lines(tmp_path / EVAL)] == [5, 6]


def test_results_of_a_folder_go_to_a_file(tmp_path):
    file = tmp_path / "results" / "llama.jsonl"
    append(file, line(0, 0.25))
    assert json.loads(file.read_text())["task"] == "riddles"
    assert finished(file, 0, "riddles", SETTINGS)["metrics"] == {"acc": 0.25}
