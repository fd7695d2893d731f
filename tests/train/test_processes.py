"""Runs of several processes: the same losses, one writer, and a stop, a move or a death in common.

Each run serves several assertions, since every process compiles its programs anew.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import RUN

from maxlm import saved
from maxlm.config import Config, load, to_yaml
from maxlm.report.metrics import read_lines
from maxlm.train import loop

ROOT = Path(__file__).parents[2]
BATCH = 256
ENDLESS = BATCH * 2000
STEPS = 240  # more than any of the stopped runs comes to
# Losses are compared step by step over many steps: a rate at which rounding does not grow.
CHANGES = {
    "train.total_tokens": BATCH * STEPS,
    "schedule": {"name": "constant", "warmup_tokens": 1024, "decay_tokens": None},
    "optimizer.lr": 1e-3,
    "eval.every_steps": 8,
    "checkpoint.keep": 3,
    "logging.every_steps": 1,
    "processes.heartbeat_timeout_seconds": 10,
}


def start(
    config: Config, tmp_path: Path, count: int, hosts: Sequence[Path] = (Path(),) * 4, words: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """`maxlm train` in `count` processes of one device each, in the directories `hosts`; `words` follow the config."""
    path = tmp_path / f"{config.name}.yaml"
    path.write_text(to_yaml(config))
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    shared = {"MAXLM_COORDINATOR": address, "MAXLM_NUM_PROCESSES": str(count), "PYTHONPATH": str(ROOT)}
    shared["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    return [
        subprocess.Popen(
            [sys.executable, "-m", "maxlm.cli", "train", str(path), *words],
            env=os.environ | shared | {"MAXLM_PROCESS_ID": str(number)},
            cwd=hosts[number],
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / f"{config.name}.{count}.{number}.err").open("w"),
        )
        for number in range(count)
    ]


def finish(
    processes: list[subprocess.Popen], config: Config, tmp_path: Path, seconds: float = 120
) -> tuple[list, list]:
    """Exit codes and what was printed, by process."""
    deadline = time.monotonic() + 200
    try:
        codes = [process.wait(max(1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    paths = [tmp_path / f"{config.name}.{len(processes)}.{number}.err" for number in range(len(processes))]
    return codes, [path.read_text() for path in paths]


def wait_for_line(config: Config, processes: list[subprocess.Popen], step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_lines(config.run_dir / "metrics.jsonl")):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def told(output: str) -> list[str]:
    """Lines that are not those of the libraries under JAX."""
    return [line for line in output.splitlines() if "[Gloo]" not in line and "preemption_notifier" not in line]


def losses(config: Config, name: str = "metrics.jsonl") -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_lines(config.run_dir / name) if "loss" in line}


def answers(config: Config) -> dict[int, dict[str, float]]:
    """Figures of questions by step."""
    return {line["step"]: line["metrics"] for line in read_lines(config.run_dir / "eval.jsonl") if "task" in line}


def assert_continues(config: Config, whole: Config) -> None:
    """Every line of the run is the uninterrupted one's: data exactly, losses up to rounding."""
    lines, expected = read_lines(config.run_dir / "metrics.jsonl"), read_lines(whole.run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    for name in ("tokens", "tokens_by_source", "target_tokens"):
        assert [line[name] for line in lines] == [line[name] for line in expected[: len(lines)]]
    np.testing.assert_allclose(
        [line["loss"] for line in lines], [line["loss"] for line in expected[: len(lines)]], rtol=1e-5
    )
    run = saved.read_run(saved.latest(config.run_dir))
    assert run["loader"]["examples"] == len(lines) * BATCH // 32


def events(config: Config, kind: str) -> list[dict]:
    return [event for event in read_lines(config.run_dir / "events.jsonl") if event["kind"] == kind]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> dict[str, dict[str, str]]:
    path = tmp_path_factory.mktemp("questions") / "file.jsonl"
    path.write_text(json.dumps({"text": "return", "choices": [" None", " Nine", " nan"], "answer": 0}))
    return {"eval.knowledge": {"words": str(path)}}


@pytest.fixture(scope="module")
def whole(prepared, questions, tmp_path_factory) -> Config:
    """The uninterrupted run of one process and one device."""
    directory = tmp_path_factory.mktemp("whole")
    path = directory / "run.yaml"
    path.write_text(RUN.format(prepared=prepared, runs=directory))
    changes = CHANGES | questions | {"checkpoint.every_steps": None}
    config = load(path, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    loop.train(config, jax.devices()[:1])
    return config


@pytest.mark.slow
def test_four_processes_go_on_where_one_stood(make_config, questions, tmp_path, whole):
    loop.train(make_config(CHANGES | {"train.total_tokens": BATCH * 4}), jax.devices()[:1])
    stages = {"mesh": {"pipeline": 2, "data": 2, "fsdp": 1}, "pipeline.microbatches": 4}
    config = make_config(CHANGES | questions | stages | {"train.total_tokens": BATCH * 8})
    codes, outputs = finish(start(config, tmp_path, 4), config, tmp_path)
    assert codes == [0] * 4, outputs
    assert "step 8/8" in outputs[0] and [told(output) for output in outputs[1:]] == [[]] * 3
    assert_continues(config, whole)
    assert losses(config, "eval.jsonl")[8] == pytest.approx(losses(whole, "eval.jsonl")[8], rel=1e-5)
    assert answers(config)[8] == pytest.approx(answers(whole)[8], rel=1e-4)
    assert (config.run_dir / "report.html").exists() and events(config, "resumed")[0]["processes"] == 4


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_one_or_two_go_on(make_config, tmp_path, whole):
    # Four processes until one of them gets SIGTERM.
    four = make_config(CHANGES | {"train.total_tokens": ENDLESS, "mesh.fsdp": 2, "mesh.tensor": 2})
    processes = start(four, tmp_path, 4)
    wait_for_line(four, processes, 5)
    processes[2].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes, four, tmp_path)
    assert codes == [75] * 4, outputs
    assert "saved" in outputs[0] and [told(output) for output in outputs[1:]] == [[]] * 3
    stopped = events(four, "preempted")[0]["step"]
    newest = saved.latest(four.run_dir)
    assert newest.name == str(stopped) and stopped < STEPS
    assert_continues(four, whole)

    # One process reads what four have written, and goes on.
    alone = make_config(CHANGES | {"runs_dir": str(tmp_path / "copies"), "train.total_tokens": BATCH * (stopped + 8)})
    shutil.copytree(four.run_dir, alone.run_dir)
    loop.train(alone, jax.devices()[:1])
    assert_continues(alone, whole)

    # Two find it damaged and go on from the one before, saving by the clock of process 0, until Ctrl-C in the other.
    for path in (newest / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clock = {"checkpoint.every_steps": None, "checkpoint.every_minutes": 0.002, "logging.every_steps": 3}
    slices = {"mesh": {"data": 2, "fsdp": 1, "slices": 2}}  # on hosts without TPUs each is a slice
    two = make_config(CHANGES | clock | slices | {"train.total_tokens": ENDLESS})
    processes = start(two, tmp_path, 2)
    wait_for_line(two, processes, stopped + 3)
    processes[1].send_signal(signal.SIGINT)
    codes, outputs = finish(processes, two, tmp_path)
    assert codes == [75, 130], outputs
    assert "is damaged" in outputs[0] and newest.with_name(f"{stopped}.damaged").is_dir()
    assert not told(outputs[1])
    first, last = events(two, "resumed")[-1]["step"], events(two, "preempted")[-1]["step"]
    assert first < stopped < last < STEPS
    saves = [event["step"] for event in events(two, "checkpoint")]
    timed = saves[saves.index(stopped) + 1 : -1]
    assert timed and all(step % 3 == 0 for step in timed) and saves[-1] == last
    at = losses(whole)
    for step, loss in losses(two).items():
        assert loss == pytest.approx(at[step], rel=1e-5), step
    run = saved.read_run(saved.latest(two.run_dir))
    assert run["loader"]["examples"] == last * BATCH // 32


@pytest.mark.slow
def test_processes_rewind_and_diverge_together(make_config, tmp_path):
    policy = {"faults.max_skips": 2, "faults.max_rewinds": 1}
    loop.train(make_config(policy | {"train.total_tokens": BATCH * 4}), jax.devices()[:1])
    # After one step at this rate every loss is infinite or no number.
    ruinous = {"optimizer.lr": 1e30, "schedule.warmup_tokens": 0, "checkpoint.every_steps": None}
    config = make_config(policy | ruinous | {"logging.every_steps": 1, "processes.heartbeat_timeout_seconds": 10})
    codes, outputs = finish(start(config, tmp_path, 2), config, tmp_path)
    assert codes == [4, 4], outputs
    assert "error: " in outputs[0] and not told(outputs[1])
    (rewind,) = events(config, "rewind")
    assert rewind["to_step"] < rewind["from_step"] and len(events(config, "diverged")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_soon(make_config, tmp_path, victim):
    config = make_config(CHANGES | {"train.total_tokens": ENDLESS}, name="killed")
    processes = start(config, tmp_path, 2)
    wait_for_line(config, processes, 2)
    processes[victim].kill()
    began = time.monotonic()
    codes, outputs = finish(processes, config, tmp_path)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 75), outputs
    assert time.monotonic() - began < 30


def test_a_shard_file_missing_on_one_host_is_told_by_all(make_config, prepared, tmp_path):
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        shutil.copytree(prepared / "prep", host / "prep")
    (hosts[1] / "prep" / "tokens-00000.bin").unlink()
    config = make_config({"data.sources.prep.path": "prep"}, name="lacking")
    codes, outputs = finish(start(config, tmp_path, 2, hosts), config, tmp_path)
    assert codes == [3, 3], outputs
    for output in outputs:
        (line,) = told(output)
        assert line.startswith("error: process 1: prep/tokens-00000.bin: missing")
    assert not config.run_dir.exists()


def test_other_questions_on_one_host_are_told_by_all(make_config, tmp_path):
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for number, host in enumerate(hosts):
        host.mkdir()
        (host / "file.jsonl").write_text(json.dumps({"text": "return", "answer": f" {number}"}))
    config = make_config({"eval.knowledge": {"words": "file.jsonl"}}, name="unlike")
    codes, outputs = finish(start(config, tmp_path, 2, hosts), config, tmp_path)
    assert codes == [2, 2], outputs
    for output in outputs:
        (line,) = told(output)
        assert "was started with another configuration or other data: questions.words" in line
    assert not config.run_dir.exists()


@pytest.mark.slow
def test_two_processes_pass_through_stages_as_one_does_and_one_goes_on(make_config, tmp_path):
    """Another mixture inside a batch, a larger batch, a longer example; documents packed whole by one of them."""
    stages = [
        {"tokens": 32 * 20, "weights": {"model": 3, "prep": 1}},
        {"tokens": 32 * 17, "weights": {"model": 1, "prep": 3}},
        {"tokens": 512 * 2, "weights": {"model": 1, "prep": 1}, "batch_tokens": 512},
        {"tokens": 512 * 3, "weights": {"prep": 1}, "batch_tokens": 512, "seq_len": 64},
    ]
    changes = CHANGES | {"data.mixture": stages, "data.packing": "bestfit", "eval.every_steps": None}
    total = sum(stage["tokens"] for stage in stages)
    one = make_config(changes | {"train.total_tokens": total}, name="one")
    loop.train(one, jax.devices()[:1])
    two = make_config(changes | {"train.total_tokens": total - 512}, name="two")
    codes, outputs = finish(start(two, tmp_path, 2), two, tmp_path)
    assert codes == [0, 0], outputs
    loop.train(make_config(changes | {"train.total_tokens": total}, name="two"), jax.devices()[:1])
    lines, expected = (read_lines(config.run_dir / "metrics.jsonl") for config in (two, one))
    assert [line["tokens"] for line in expected] == [256, 512, 768, 1024, 1184, 1696, 2208, 2720, 3232, 3744]
    for name in ("tokens", "tokens_by_source", "target_tokens"):
        assert [line[name] for line in lines] == [line[name] for line in expected]
    np.testing.assert_allclose([line["loss"] for line in lines], [line["loss"] for line in expected], rtol=1e-5)
    runs = [saved.read_run(saved.latest(config.run_dir)) for config in (one, two)]
    assert runs[0]["loader"] == runs[1]["loader"] and runs[0]["indexes"] == runs[1]["indexes"]
    assert [event["step"] for event in events(two, "mixture")] == [2, 5, 7]


@pytest.mark.slow
def test_two_processes_answer_the_tasks_that_one_does(make_config, tmp_path):
    pytest.importorskip("lm_eval")
    folder = str(ROOT / "tests" / "evaluate" / "tasks")
    tasks = {"eval.tasks": {"names": ["letters", "answers"], "folder": folder, "limit": 3, "shots": 0}}
    changes = CHANGES | tasks | {"train.total_tokens": BATCH * 2, "checkpoint.every_steps": None}
    one = make_config(changes, name="one")
    loop.train(one, jax.devices()[:1])
    config = make_config(changes, name="two")
    codes, outputs = finish(start(config, tmp_path, 2), config, tmp_path)
    assert codes == [0] * 2, outputs
    assert not told(outputs[1])
    expected, found = (
        [line for line in read_lines(run.run_dir / "eval.jsonl") if "task" in line] for run in (one, config)
    )
    assert [line["task"] for line in found] == ["letters", "answers"]
    for key in ("metrics", "items", "settings"):
        assert [line[key] for line in found] == [line[key] for line in expected]
