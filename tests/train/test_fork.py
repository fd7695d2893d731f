"""Branches of a run: the parent's whole state, the data that it had not read, the same bits however killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import test_processes
from test_resume import (
    ONE_DEVICE,
    assert_same_arrays,
    finish,
    lines_without_timings,
    saved_arrays,
    wait_for,
)
from tiny import RUN

from maxlm import saved
from maxlm.config import Config, load, to_yaml
from maxlm.errors import ConfigError, DataError
from maxlm.report.html import write_report
from maxlm.report.metrics import read_lines
from maxlm.train import loop
from maxlm.train.position import Position
from maxlm.train.run import Run

STEP = 256  # slots
BEGIN = 12
# The parent's learning rate is stable from step 4 to 16; its branches end at step 20, as it does, and decay from 12.
CODE = [{"tokens": STEP * 20, "weights": {"model": 1, "prep": 3}}]
DECAY = {"schedule.decay_tokens": STEP * 8, "optimizer.lr": 2e-3}
BRANCH = DECAY | {"data.mixture": CODE}


def train(config: Config, **options):
    """One device compiles in a third of the time of eight."""
    return loop.train(config, jax.devices()[:1], **options)


@pytest.fixture(scope="module")
def make(prepared, tmp_path_factory) -> Callable[..., Config]:
    """make({key: value}): the parent's configuration, all in one directory of runs."""
    directory = tmp_path_factory.mktemp("branches")
    (directory / "run.yaml").write_text(RUN.format(prepared=prepared, runs=directory / "runs"))

    def make(changes: dict | None = None, **top) -> Config:
        keys = {"name": "parent", "checkpoint.keep": 20, "eval.every_steps": 4} | (changes or {}) | top
        return load(directory / "run.yaml", [f"{key}={json.dumps(value)}" for key, value in keys.items()])

    return make


@pytest.fixture(scope="module")
def parent(make) -> Config:
    config = make()
    train(config)
    return config


@pytest.fixture(scope="module")
def branch(parent, make) -> Config:
    """A branch at step 12 that was never interrupted."""
    train(make(BRANCH), fork="branch", fork_step=BEGIN)
    return make(BRANCH, name="branch")


def position(config: Config, step: int) -> Position:
    return Position.from_json(saved.read_run(config.run_dir / "checkpoints" / str(step)))


def examples(at: Position, steps: range) -> list[tuple[int, int]]:
    """(source, window) of every example of some steps, as the loader finds them."""
    found = []
    for step in steps:
        span = at.schedule.span(step)
        numbers = np.arange(span.first_example, span.first_example + span.examples)
        found += zip(*(part.tolist() for part in at.schedule.locate(numbers, ["model", "prep"])), strict=True)
    return found


def events(config: Config, kind: str) -> list[dict]:
    return [event for event in read_lines(config.run_dir / "events.jsonl") if event["kind"] == kind]


def test_a_branch_begins_with_all_of_the_parents_state(parent, branch):
    assert_same_arrays(saved_arrays(parent, BEGIN), saved_arrays(branch, BEGIN))
    before, after = (saved.read_run(c.run_dir / "checkpoints" / str(BEGIN)) for c in (parent, branch))
    assert before["step"] == after["step"] == BEGIN and before["tokens"] == after["tokens"]
    assert before["target_tokens"] == after["target_tokens"] and before["manifests"] == after["manifests"]
    assert "forked" not in before and after["forked"]["from_step"] == BEGIN
    assert saved.read_run(saved.latest(branch.run_dir))["forked"] == after["forked"]
    (event,) = events(branch, "forked")
    assert event["from"] == str(parent.run_dir) and event["step"] == event["from_step"] == BEGIN
    assert event["parent"]["name"] == "parent" and len(event["parent"]["sha256"]) == 64
    (event,) = events(branch, "config_changed")
    assert set(event["changes"]) == {"data.mixture", "schedule.decay_tokens", "optimizer.lr"}
    assert event["changes"]["optimizer.lr"] == [3e-3, 2e-3]
    assert len(events(branch, "started")) == 1 and not events(branch, "resumed")
    lines = read_lines(branch.run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [15, 18, 20]
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [2e-3 * (1 - 0.9 * (step - BEGIN) / 8) for step in (15, 18, 20)]
    )
    assert (branch.run_dir / "config.yaml").read_text().startswith("name: branch\n")
    assert [line["step"] for line in read_lines(branch.run_dir / "eval.jsonl")] == [BEGIN, 16, 20]


def test_two_branches_share_what_the_parent_read_and_read_on_by_their_mixtures(parent, branch, make):
    other = make(DECAY | {"data.mixture": [{"tokens": STEP * 20, "weights": {"model": 1}}]})
    train(other, fork="other", fork_step=BEGIN)
    other = make(name="other")
    whole = examples(position(parent, 20), range(20))
    for config, shares in ((branch, (1 / 4, 3 / 4)), (other, (1, 0))):
        at = position(config, 20)
        read = examples(at, range(20))
        assert read[: BEGIN * 8] == whole[: BEGIN * 8] and len(set(read)) == len(read) == 160
        for source in (0, 1):  # of each source the windows from the first on, none left out
            assert [window for name, window in read if name == source] == list(
                range(sum(name == source for name, _ in read))
            )
        own = [source for source, _ in read[BEGIN * 8 :]]
        assert [own.count(0), own.count(1)] == pytest.approx([64 * share for share in shares], abs=1)
    text = write_report([parent.run_dir, branch.run_dir, other.run_dir], parent.run_dir / "three.html").read_text()
    assert all(name in text for name in ("parent", "branch", "other", "forked"))


def test_a_branch_is_the_parent_with_another_configuration_from_there_on(parent, branch, make, tmp_path):
    """The parent's own directory, taken to another place, goes on with the branch's values."""
    moved = make(BRANCH | {"runs_dir": str(tmp_path)})
    shutil.copytree(parent.run_dir, moved.run_dir)
    for step in (16, 20):
        shutil.rmtree(moved.run_dir / "checkpoints" / str(step))
    train(moved)
    assert_same_arrays(saved_arrays(moved, 20), saved_arrays(branch, 20))
    steps = len(read_lines(branch.run_dir / "metrics.jsonl"))
    assert lines_without_timings(moved, "metrics.jsonl")[-steps:] == lines_without_timings(branch, "metrics.jsonl")


def test_a_branch_goes_on_by_the_same_command(parent, make, capfd):
    train(make(BRANCH | {"train.total_tokens": STEP * 16}), fork="parts", fork_step=BEGIN)
    train(make(BRANCH), fork="parts")
    told = capfd.readouterr().err
    assert f"parts was branched from {parent.run_dir} at step 12, and goes on by itself" in told
    parts = make(BRANCH, name="parts")
    assert [event["step"] for event in events(parts, "resumed")] == [16] and len(events(parts, "forked")) == 1
    assert [line["step"] for line in read_lines(parts.run_dir / "metrics.jsonl")] == [15, 16, 18, 20]
    assert saved.read_run(saved.latest(parts.run_dir))["forked"]["from_step"] == BEGIN


def test_a_branch_killed_before_its_first_step_begins_again_without_its_parent(make, branch, parent, monkeypatch):
    begin = Run.begin
    monkeypatch.setattr(Run, "begin", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(make(BRANCH), fork="again", fork_step=BEGIN)
    monkeypatch.setattr(Run, "begin", begin)
    again = make(BRANCH, name="again")
    assert {path.name for path in again.run_dir.iterdir()} == {"lock", "checkpoints"}
    hidden = parent.run_dir.rename(parent.run_dir.with_name("hidden"))
    try:
        train(again)
    finally:
        hidden.rename(parent.run_dir)
    for kind in ("started", "forked", "config_changed"):
        (event,), (expected,) = events(again, kind), events(branch, kind)
        assert {**event, "time": ""} == {**expected, "time": ""}
    assert_same_arrays(saved_arrays(again, 20), saved_arrays(branch, 20))
    assert lines_without_timings(again, "metrics.jsonl") == lines_without_timings(branch, "metrics.jsonl")


def test_a_branch_on_another_mesh_has_the_same_losses(branch, make):
    loop.train(make(BRANCH | {"mesh.tensor": 2}), fork="meshed", fork_step=BEGIN)  # 4 x 2 devices
    for name in ("metrics.jsonl", "eval.jsonl"):
        lines, expected = (read_lines(c.run_dir / name) for c in (make(name="meshed"), branch))
        assert [line["step"] for line in lines] == [line["step"] for line in expected]
        np.testing.assert_allclose([x["loss"] for x in lines], [x["loss"] for x in expected], rtol=1e-5)


def test_the_newest_checkpoint_that_can_be_read_is_branched_and_the_parent_left_alone(parent, make, tmp_path, capfd):
    config = make(BRANCH | {"runs_dir": str(tmp_path), "train.total_tokens": STEP * 22})
    shutil.copytree(parent.run_dir, config.run_dir)
    newest = saved.latest(config.run_dir)
    for path in (newest / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="20: the checkpoint is damaged"):
        train(config, fork="strict", fork_step=20)
    train(config, fork="lenient")
    assert "checkpoints/20: the checkpoint is damaged" in capfd.readouterr().err
    assert newest.is_dir() and saved.finished(tmp_path / "lenient" / "checkpoints") == [16, 20, 22]


def test_what_cannot_be_branched_is_refused_and_nothing_made(parent, make, tmp_path, run_command):
    def refused(match: str, changes: dict | None = None, fork: str = "new", **options) -> None:
        config = make(BRANCH | (changes or {}))
        with pytest.raises(ConfigError, match=match) as error:
            train(config, fork=fork, **options)
        assert error.value.exit_code == 2
        assert not (Path(config.runs_dir) / "new").exists()

    refused("--fork-step 13: .*parent has checkpoints of steps 4, 8, 12, 16, 20$", fork_step=13)
    refused("--fork: .*nobody holds no checkpoint", {"name": "nobody"})
    refused("--fork parent: is the name of the run to be branched", fork="parent")
    refused(r"--fork: name", fork="a/b")
    refused(r"parent holds a run with another configuration.*model\.mlp_dim: 64 -> 96", {"model.mlp_dim": 96})
    refused(r"seed: 0 -> 1", {"seed": 1}, fork_step=BEGIN)
    refused("has read 5,120 tokens at step 20, and the branch would end at 5,120")
    other = tmp_path / "other"
    shutil.copytree(parent.data.sources["prep"].path, other)
    manifest = json.loads((other / "manifest.json").read_text())
    files = manifest["shards"][0]["files"]
    files[next(iter(files))]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    changed = {"data.sources.prep.path": str(other), "data.verify": "sizes"}
    refused(r"data\.sources\.prep: .* was prepared anew since .*parent began", changed, fork_step=BEGIN)
    with pytest.raises(ConfigError, match="--fork-step 12: is of a branch, which needs a name"):
        train(make(BRANCH), fork_step=BEGIN)
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(make(BRANCH)))
    code, out, err = run_command("train", path, "--fork", "new", "--fork-step", 13)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "--fork-step 13" in err


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model": {}}, "an imported model, which has no data and no training"),
        (
            {"config": {}, "averaged": {"run": "runs/a", "steps": [1, 2]}},
            "an average of checkpoints of runs/a, which",
        ),
    ],
)
def test_parameters_alone_are_no_parent(make, tmp_path, entries, message):
    config = make(BRANCH | {"runs_dir": str(tmp_path)})
    path = config.run_dir / "checkpoints" / "4" / saved.RUN_JSON
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"version": saved.FORMAT_VERSION} | entries))
    with pytest.raises(ConfigError, match=f"parent/checkpoints/4: {message}"):
        train(config, fork="new")
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_a_branch_that_is_another_is_told(parent, branch, make):
    with pytest.raises(ConfigError, match="--fork-step 8: .*branch was branched at step 12; name another branch"):
        train(make(BRANCH), fork="branch", fork_step=8)
    with pytest.raises(ConfigError, match="--fork: .*branch began as a branch of .*parent, and not as one of .*other"):
        train(make(BRANCH, name="elder"), fork="branch")
    with pytest.raises(ConfigError, match="--fork: .*parent began by itself, and not as one of .*elder"):
        train(make(name="elder"), fork="parent")


def test_an_online_mixture_is_followed_on(make):
    online = {"data.dynamic": {"name": "online", "every_steps": 3, "smoothing": 0.5}, "schedule.name": "constant"}
    whole, followed = make(online, name="online"), make(online, name="followed")
    train(whole)
    train(whole, fork="followed", fork_step=8)
    runs = [saved.read_run(config.run_dir / "checkpoints" / "20") for config in (whole, followed)]
    assert runs[0]["loader"] == runs[1]["loader"] and runs[0]["online"] == runs[1]["online"]
    assert_same_arrays(saved_arrays(whole, 20), saved_arrays(followed, 20))
    keep = ("loss", "mixture_weights", "tokens_by_source")
    lines, expected = (read_lines(config.run_dir / "metrics.jsonl") for config in (followed, whole))
    assert [[line[key] for key in keep] for line in lines] == [
        [line[key] for key in keep] for line in expected if line["step"] > 8
    ]


@pytest.mark.slow
def test_a_branch_killed_at_any_moment_ends_with_the_same_bits(make, tmp_path):
    longer = {"data.mixture": [{"tokens": STEP * 60, "weights": {"model": 1, "prep": 3}}]} | DECAY
    train(make({"train.total_tokens": STEP * 8, "schedule.decay_tokens": 1}, name="stable"))
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(make(longer, name="stable")))

    def start(*words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "maxlm.cli", "train", str(path), *words]
        variables = os.environ | ONE_DEVICE
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    finish(start("--fork", "whole"))
    killed, whole = make(longer, name="killed"), make(longer, name="whole")
    directory = killed.run_dir / "checkpoints"
    moments = [
        directory.is_dir,  # before the state is saved, or just then
        lambda: saved.finished(directory),
        lambda: read_lines(killed.run_dir / "metrics.jsonl"),
        lambda: (saved.finished(directory) or [0])[-1] > 20,
    ]
    kills = 0
    for number, moment in enumerate(moments):
        words = ("name=killed",) if number == 3 else ("--fork", "killed")  # by then both do the same
        process = start(*words)
        wait_for(process, moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    finish(start("--fork", "killed"))
    assert kills >= 3
    assert_same_arrays(saved_arrays(whole, 60), saved_arrays(killed, 60))
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert lines_without_timings(whole, name) == lines_without_timings(killed, name)


@pytest.mark.slow
def test_two_processes_branch_as_one_does(parent, branch, make, tmp_path):
    config = make(BRANCH | {"processes.heartbeat_timeout_seconds": 10})
    for step, code in ((13, 2), (BEGIN, 0)):  # the first is refused by both
        words = ("--fork", "two", "--fork-step", str(step))
        codes, outputs = test_processes.finish(test_processes.start(config, tmp_path, 2, words=words), config, tmp_path)
        assert codes == [code, code], outputs
    two = make(name="two")
    (event,) = events(two, "forked")
    assert event["from_step"] == BEGIN and events(two, "started")[0]["processes"] == 2
    for name in ("metrics.jsonl", "eval.jsonl"):
        lines, expected = (read_lines(c.run_dir / name) for c in (two, branch))
        assert [line["step"] for line in lines] == [line["step"] for line in expected]
        np.testing.assert_allclose([x["loss"] for x in lines], [x["loss"] for x in expected], rtol=1e-5)
