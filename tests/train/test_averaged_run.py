"""A run that keeps an average of its parameters: saved, resumed, switched on and off, evaluated, exported, loaded."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import RUN

import maxlm
from maxlm import saved
from maxlm.config import Config, load
from maxlm.convert.exporting import export
from maxlm.errors import ConfigError
from maxlm.evaluate.load import load_all
from maxlm.report.metrics import read_lines
from maxlm.report.runs import read_runs
from maxlm.train import loop

DECAY = 0.3
STEP = 256  # tokens


@pytest.fixture(scope="module")
def configure(prepared: Path, tmp_path_factory: pytest.TempPathFactory):
    """configure("name", steps, key=value, ...) of a run that evaluates and saves every four steps."""
    directory = tmp_path_factory.mktemp("averaged")
    (directory / "run.yaml").write_text(RUN.format(prepared=prepared, runs=directory / "runs"))

    def make(name: str, steps: int, *more: str) -> Config:
        length = f"train.total_tokens={STEP * steps}"
        lasting = ["schedule.name=constant", "eval.every_steps=4"]
        return load(directory / "run.yaml", [f"name={name}", length, *lasting, *more])

    return make


def train(config: Config) -> Path:
    loop.train(config, jax.devices()[:1])
    return config.run_dir


@pytest.fixture(scope="module")
def whole(configure) -> Path:
    return train(configure("whole", 8, f"optimizer.ema={DECAY}"))


def item(run: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """Arrays of an item of a checkpoint by their paths, as they are on disk."""
    tree = ocp.PyTreeCheckpointer().restore(run.resolve() / "checkpoints" / str(step) / name)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_it_resumes_with_the_same_bits(whole: Path, configure) -> None:
    train(configure("resumed", 4, f"optimizer.ema={DECAY}"))
    resumed = train(configure("resumed", 8, f"optimizer.ema={DECAY}"))
    for name in ("params", "ema", "optimizer"):
        assert same(item(whole, 8, name), item(resumed, 8, name)), name
    assert saved.read_run(saved.latest(resumed))["ema_updates"] == 8
    assert not same(item(whole, 8, "params"), item(whole, 8, "ema"))


def test_it_may_be_switched_on_changed_and_switched_off(configure) -> None:
    every = ("checkpoint.every_steps=1", "checkpoint.keep=9")
    run = train(configure("switched", 2, *every))
    train(configure("switched", 4, *every, f"optimizer.ema={DECAY}"))
    train(configure("switched", 5, *every, "optimizer.ema=0.05"))
    train(configure("switched", 6, *every))
    expected = item(run, 2, "params")
    for n, step in enumerate((3, 4, 5)):
        d = np.float32(min(DECAY if step < 5 else 0.05, (1 + n) / (10 + n)))
        after = item(run, step, "params")
        expected = {name: d * mean + (1 - d) * after[name] for name, mean in expected.items()}
        for name, found in item(run, step, "ema").items():
            np.testing.assert_allclose(found, expected[name], rtol=1e-6, atol=1e-6)
    directories = {step: run / "checkpoints" / str(step) for step in (2, 5, 6)}
    assert {step for step, path in directories.items() if (path / "ema").exists()} == {5}
    assert [step for step, path in directories.items() if "ema_updates" in saved.read_run(path)] == [5]
    changes = [event["changes"] for event in read_lines(run / "events.jsonl") if event["kind"] == "config_changed"]
    assert [change["optimizer.ema"] for change in changes] == [[None, DECAY], [DECAY, 0.05], [0.05, None]]


def test_a_branch_goes_on_with_it(whole: Path, configure) -> None:
    loop.train(configure("whole", 8, f"optimizer.ema={DECAY}"), jax.devices()[:1], fork="branch", fork_step=4)
    branch = whole.with_name("branch")
    for step, name in ((4, "ema"), (8, "ema"), (8, "params"), (8, "optimizer")):
        assert same(item(whole, step, name), item(branch, step, name)), (step, name)
    assert [saved.read_run(branch / "checkpoints" / str(step))["ema_updates"] for step in (4, 8)] == [4, 8]


def test_both_are_evaluated_in_training(whole: Path) -> None:
    lines = read_lines(whole / "eval.jsonl")
    assert [(line["step"], line["source"], line.get("weights")) for line in lines] == [
        (step, "model", weights) for step in (4, 8) for weights in (None, "ema")
    ]
    assert lines[2]["loss"] != lines[3]["loss"] and lines[2]["target_tokens"] == lines[3]["target_tokens"]
    (run,) = read_runs([whole])
    assert [one.label for one in run.held_out] == ["model", "model (ema)"]
    assert [loss for _, loss, _ in run.validation] == [lines[0]["loss"], lines[2]["loss"]]


def test_eval_measures_what_training_measured(whole: Path, run_command) -> None:
    wanted = {line.get("weights", "params"): line["loss"] for line in read_lines(whole / "eval.jsonl")[2:]}
    for weights, loss in wanted.items():
        code, out, err = run_command("eval", whole, "--json", "--sequences", "8", "--weights", weights)
        assert code == 0, err
        assert json.loads(out)["model"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_it_is_loaded_and_generates(whole: Path, run_command) -> None:
    loaded, average = load_all(whole, weights="ema"), item(whole, 8, "ema")
    found = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(loaded.params)}
    assert same(found, average)
    tokens = np.arange(12, dtype=np.int32)[None]
    own, of_average = (maxlm.load(whole, weights=weights)[0](tokens) for weights in ("params", "ema"))
    assert np.abs(np.asarray(own) - np.asarray(of_average)).max() > 1e-3
    options = ("--prompt", "def ", "--max-tokens", "4", "--temperature", "0", "--json", "--logprobs")
    answers = [run_command("generate", whole, *options, "--weights", weights) for weights in ("params", "ema")]
    assert all(code == 0 for code, _, _ in answers), answers
    assert answers[0][1] != answers[1][1]


def test_it_is_exported_and_the_card_says_so(whole: Path, tmp_path: Path) -> None:
    export(whole, tmp_path / "average", weights="ema")
    export(whole, tmp_path / "own")
    tokens = np.arange(12, dtype=np.int32)[None]
    for weights, folder in (("ema", "average"), ("params", "own")):
        expected, found = maxlm.load(whole, weights=weights)[0](tokens), maxlm.load(tmp_path / folder)[0](tokens)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    cards = {folder: (tmp_path / folder / "README.md").read_text() for folder in ("average", "own")}
    assert "moving average of the training's over 8 updates, with a decay of 0.3 per update" in cards["average"]
    assert "not the average" in cards["own"]
    for line, folder in zip(read_lines(whole / "eval.jsonl")[2:], ("own", "average"), strict=True):
        assert f"{line['loss']:.4f}" in cards[folder]


def test_where_there_is_none_it_is_refused(whole: Path, configure, tmp_path: Path, run_command) -> None:
    plain = train(configure("plain", 1))
    with pytest.raises(ConfigError, match=r"checkpoints/1: holds no average of the parameters"):
        maxlm.load(plain, weights="ema")
    for words in (("eval", plain), ("generate", plain), ("export", plain, tmp_path / "out")):
        code, _, err = run_command(*words, "--weights", "ema")
        assert code == 2 and "optimizer.ema" in err and len(err.splitlines()) == 1
    export(whole, tmp_path / "folder", weights="ema")
    with pytest.raises(ConfigError, match="Hugging Face folder holds no average"):
        maxlm.load(tmp_path / "folder", weights="ema")
