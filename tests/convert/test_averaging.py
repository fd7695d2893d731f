"""The average of checkpoints: numpy's mean to the bit, read by all commands, and no run to go on with."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import RUN, model_config, run_config

from maxlm import saved
from maxlm.checkpoint import Checkpoints
from maxlm.config import CheckpointConfig, Config, load
from maxlm.convert import arrays
from maxlm.convert.arrays import open_checkpoint
from maxlm.convert.averaging import average
from maxlm.errors import ConfigError, DataError
from maxlm.evaluate.load import load_all
from maxlm.model import decoder
from maxlm.train import loop

STEP = 256  # slots


def numbers(directory: Path) -> dict[tuple[str, ...], np.ndarray]:
    """Parameters of a checkpoint as they are stored."""
    slices = open_checkpoint(directory)
    return {path: slices.read(path, (), dtype) for path, dtype in slices.dtypes.items()}


def assert_mean(out: Path, directories: list[Path]) -> None:
    found, parts = numbers(out), [numbers(directory) for directory in directories]
    assert found.keys() == parts[0].keys() and len(found) > 8
    for path, values in found.items():
        stack = np.stack([part[path].astype(np.float32) for part in parts])
        mean = np.mean(stack, axis=0, dtype=np.float32).astype(values.dtype)
        assert values.dtype == parts[0][path].dtype and values.tobytes() == mean.tobytes(), path
        assert any(part[path].tobytes() != values.tobytes() for part in parts)


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of 10 steps, with checkpoints at 2, 4, ..., 10."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "run.yaml").write_text(RUN.format(prepared=prepared, runs=directory / "runs"))
    changes = {"train.total_tokens": STEP * 10, "checkpoint.every_steps": 2, "checkpoint.keep_every_steps": 2}
    config = load(directory / "run.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    loop.train(config, jax.devices()[:1])
    return config


def test_the_last_checkpoints_of_a_run_have_numpys_mean_and_all_commands_read_it(trained, tmp_path, run_command):
    run, out = trained.run_dir, tmp_path / "mean"
    code, printed, err = run_command("average", run, out, "--last", 3)
    assert (code, err) == (0, "") and printed.startswith(f"{out}: the mean of steps 6, 8, 10; ")
    assert saved.latest(out).name == "10"
    assert_mean(saved.latest(out), [run / "checkpoints" / step for step in ("6", "8", "10")])
    entry = saved.read_run(saved.latest(out))
    assert entry["averaged"] == {"run": str(run.resolve()), "steps": [6, 8, 10]} and "loader" not in entry
    results = {}
    for path in (run, out):
        code, printed, err = run_command("eval", path, "--sequences", 8, "--json")
        assert code == 0, err
        results[path] = json.loads(printed)
    assert results[run].keys() == results[out].keys() == {"model"}
    assert results[run]["model"]["loss"] != results[out]["model"]["loss"] < 6
    code, printed, err = run_command("generate", out, "--prompt", "def ", "--max-tokens", 4, "--temperature", 0)
    assert code == 0 and printed, err
    code, printed, err = run_command("export", out, tmp_path / "hf")
    assert code == 0, err
    assert "the mean of those of steps 6, 8, 10." in (tmp_path / "hf" / "README.md").read_text()
    model, exported = load_all(out), load_all(tmp_path / "hf")
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), model.params, exported.params))
    assert model.tokenizer.encode("def f") == exported.tokenizer.encode("def f")


def test_steps_may_be_named_and_training_cannot_go_on(trained, tmp_path, run_command):
    out = tmp_path / "runs" / "mean"
    code, printed, err = run_command("average", trained.run_dir, out, "--steps", "8,2")
    assert code == 0 and "steps 2, 8;" in printed, err
    assert_mean(saved.latest(out), [trained.run_dir / "checkpoints" / step for step in ("2", "8")])
    message = r"mean/checkpoints/8: an average of checkpoints of .*tiny, which has parameters and no moments"
    elsewhere = trained.model_copy(update={"runs_dir": str(tmp_path / "runs"), "name": "mean"})
    with pytest.raises(ConfigError, match=message):
        loop.train(elsewhere, jax.devices()[:1])
    with pytest.raises(ConfigError, match=message):
        loop.train(elsewhere, jax.devices()[:1], fork="new")
    with pytest.raises(ConfigError, match=message):
        average(out, tmp_path / "again", last=2)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mean"]


def test_what_cannot_be_averaged_is_refused_and_nothing_made(trained, tmp_path, run_command):
    run, out = trained.run_dir, tmp_path / "mean"

    def refused(match: str, path: Path = run, **options) -> None:
        with pytest.raises(ConfigError, match=match) as error:
            average(path, out, **options)
        assert error.value.exit_code == 2 and not list(tmp_path.glob("mean*"))

    there = r".* has checkpoints of steps 2, 4, 6, 8, 10"
    refused(f"--last 1: an average is of 2 checkpoints at least; {there}", last=1)
    refused("--last 0: an average is of 2", last=0)
    refused("--steps 4: an average is of 2", steps=[4, 4])
    refused(f"--last 9: {there}; checkpoint.keep_every_steps lets them stay", last=9)
    refused(f"--steps 4,5: {there}; checkpoint.keep_every_steps", steps=[5, 4])
    refused("by either --last K or --steps")
    refused("by either --last K or --steps", last=2, steps=[2, 4])
    refused("10: is no run directory", run / "checkpoints" / "10", last=2)
    code, _, err = run_command("average", run, out, "--steps", "2,x")
    assert code == 2 and err == "error: --steps 2,x: expected numbers of steps as in --steps 100,200,300\n"
    out.mkdir()
    with pytest.raises(ConfigError, match="mean: exists already"):
        average(run, out, last=2)


def test_a_damaged_checkpoint_is_named_and_leaves_nothing(trained, tmp_path):
    run = shutil.copytree(trained.run_dir, tmp_path / "run")
    for path in (run / "checkpoints" / "8" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="checkpoints/8: the checkpoint is damaged"):
        average(run, tmp_path / "mean", last=3)
    assert os.listdir(tmp_path) == ["run"]


def as_run(directory: Path, changes: dict[int, dict], dtype: str = "bfloat16") -> Path:
    """A run directory with a checkpoint of other random parameters at every step, of a model with experts."""
    moe = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 32}
    (directory / "tokenizer").mkdir(parents=True)
    with Checkpoints(directory, CheckpointConfig(keep=9)) as checkpoints:
        for step, changed in changes.items():
            model = model_config(moe=moe, **changed)
            config = run_config(model=model.model_dump(mode="json"), precision={"params": dtype})
            params = decoder.initial_parameters(model, jax.random.key(step), params_dtype=jnp.dtype(dtype))
            params = jax.tree.map(lambda leaf, step=step: leaf + leaf.dtype.type(step / 7), params)
            run = {"step": step, "config": config.model_dump(mode="json"), "tokenizer": None}
            _, _, axes = decoder.abstract(model)
            checkpoints.save(step, params, axes, {"m": jnp.zeros(1)}, {"c": jnp.zeros(1)}, run)
    return directory


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tensors_of_many_chunks_keep_their_types(tmp_path, monkeypatch, dtype):
    run = as_run(tmp_path / "run", {1: {}, 2: {}, 5: {}}, dtype)
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 200)
    average(run, tmp_path / "mean", last=3)
    assert_mean(tmp_path / "mean/checkpoints/5", [run / "checkpoints" / step for step in ("1", "2", "5")])
    mean = open_checkpoint(tmp_path / "mean/checkpoints/5")
    kinds = {str(found) for found in mean.dtypes.values()}
    assert kinds == {dtype, "float32"}  # a router is in float32 whatever the rest is in
    assert max(len(mean.regions(path)) for path in mean.shapes) > 8


def test_checkpoints_of_another_model_are_refused(tmp_path):
    run = as_run(tmp_path / "run", {1: {}, 2: {"window": 8}})
    with pytest.raises(ConfigError, match="checkpoints/1: holds another model than .*checkpoints/2"):
        average(run, tmp_path / "mean", last=2)
