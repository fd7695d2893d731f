"""The benchmark of training as people run it, at toy size: what its JSON says, never how long anything took."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import bench_train
import numpy as np
import pytest
import timed_steps
from tiny import run_config

TOOL = Path(__file__).parents[2] / "tools" / "bench_train.py"
MODEL = "model: {vocab_size: 64, num_layers: 1, embed_dim: 16, num_heads: 2, num_kv_heads: 1, head_dim: 8, mlp_dim: 32}"
SMALL = ["data.seq_len=16", "train.batch_tokens=128", "--steps=3", "--warmup=1", "--documents=8"]
TOO_WIDE = 2**45  # an MLP of petabytes, which no machine allocates


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    """A model alone: neither data nor the length of a run."""
    path = tmp_path / "model.yaml"
    path.write_text(MODEL)
    return str(path)


@pytest.fixture
def bench(monkeypatch, capsys):
    """bench("x.yaml", "--steps=1") -> (exit code, stdout, stderr), in this process."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench_train.py", *words])
        code = 0
        try:
            bench_train.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def check(result: dict) -> None:
    """What holds between the figures of a measured configuration."""
    assert result["tokens_per_second"] == pytest.approx(result["batch_tokens"] / result["step_seconds"])
    assert result["tokens_per_second_per_chip"] == pytest.approx(result["tokens_per_second"] / result["chips"])
    assert 0 < result["step_seconds_lowest"] <= result["step_seconds"] <= result["step_seconds_highest"]
    assert (result["device_kind"], result["batch_tokens"], result["skipped"]) == ("cpu", 8 * 16, 0)
    assert result["loss"] == pytest.approx(np.log(64), abs=0.5)
    # Of a device that is in no table there is neither a peak nor a prediction.
    assert [result[name] for name in ("mfu", "predicted", "step_seconds_over_predicted")] == [None] * 3
    assert result["mfu_formula"] and result["flops_per_token"] > 0 and result["compiler_gib"]["argument"] > 0


def test_sweep_has_a_row_for_every_value_also_for_one_that_does_not_fit(model_file) -> None:
    command = [sys.executable, str(TOOL), model_file, *SMALL, f"--sweep=model.mlp_dim=32,{TOO_WIDE}"]
    one_device = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, capture_output=True, text=True, env=one_device)
    assert done.returncode == 0, done.stderr
    *told, last = done.stdout.splitlines()
    result = json.loads(last)

    measured, too_wide = result["rows"]
    check(measured)
    assert (measured["devices"], measured["timed_steps"], measured["gib"]) == (1, 3, None)
    assert measured["attention"] == "reference"
    assert (too_wide["error"], too_wide["exit_code"]) == ("out of memory", 5)
    assert "train.batch_tokens" in too_wide["said"]
    assert result["best"] == {"model.mlp_dim": "32"} == measured["changes"]
    fastest = {"changes": measured["changes"], "tokens_per_second": measured["tokens_per_second"]}
    assert result["best_by"] == {"model.mlp_dim": {"32": fastest, str(TOO_WIDE): None}}
    assert sum("out of memory" in line for line in told) == 1 and sum("best" in line for line in told) == 1


def test_two_configurations_take_turns(bench, model_file) -> None:
    code, out, _ = bench(model_file, *SMALL, "--pairs=3", "--compare=train.accumulate=1,data.mask_documents=false")
    assert code == 0
    result = json.loads(out.splitlines()[-1])
    base, other = result["base"], result["other"]
    check(base)
    check(other)
    assert base["devices"] == base["chips"] == 8
    assert (base["mask_documents"], other["mask_documents"]) == (True, False)
    assert base["timed_steps"] == other["timed_steps"] == 3 * 3
    assert len(result["pairs"]) == 3
    assert result["ratio"] == statistics.median(theirs / ours for ours, theirs in result["pairs"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["remat.policy=ful"], "remat.policy: found 'ful'"),
        (["modle.num_layers=1"], "the nearest is 'model'"),
        (["data=3"], "data: found 3"),
        (["--compare=remat.policy"], "expected key=value"),
        (["--compare=remat.policy=ful"], "remat.policy: found 'ful'"),
        (["--sweep=remat.policy"], "expected key=value,value"),
        (["--sweep=remat.policy=none,ful"], "remat.policy: found 'ful'"),
        (["mesh.fsdp=3"], "fsdp 3 does not make 8"),
    ],
)
def test_a_bad_configuration_is_a_line_and_exit_2(bench, model_file, words, message) -> None:
    code, out, err = bench(model_file, *words)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_lists_are_single_values_of_a_sweep() -> None:
    assert bench_train.axis("remat.policy=none,[query,key],full") == ("remat.policy", ["none", "[query,key]", "full"])


def test_known_devices_have_a_prediction(model_file) -> None:
    config = bench_train.load_any(model_file, [])
    found = bench_train.prediction(config, "NVIDIA H100 80GB HBM3", 4)
    assert found["system"] == "h100x4"
    assert found["tokens_per_second"] == pytest.approx(4 * found["tokens_per_second_per_chip"])
    assert found["step_seconds"] == pytest.approx(config.train.batch_tokens / found["tokens_per_second"])
    assert bench_train.prediction(config, "TPU v5", 8)["system"] == "v5p-16"
    assert bench_train.prediction(config, "NVIDIA H100 80GB HBM3", 12) is None
    assert bench_train.prediction(config, "cpu", 8) is None


def test_batches_are_packed_documents_from_the_seed() -> None:
    config = run_config(data={"seq_len": 256}, train={"batch_tokens": 8 * 256})
    first, second = (timed_steps.synthetic_batches(config, 20, range(8)) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert not np.array_equal(first[0]["tokens"], first[1]["tokens"])
    for batch in first:
        # A row goes on where the one before ended.
        assert np.array_equal(batch["targets"][:-1, -1], batch["tokens"][1:, 0])
        begins = np.diff(batch["segment_ids"], axis=1) == 1
        assert np.array_equal(begins, batch["positions"][:, 1:] == 0)
        assert np.array_equal(begins, batch["weights"][:, :-1] == 0)
        assert begins.mean() == pytest.approx(1 / 20, rel=0.3)
    some = timed_steps.synthetic_batches(config, 20, [2, 5])
    assert np.array_equal(some[1]["tokens"], first[1]["tokens"][[2, 5]])
    plain = run_config(data={"seq_len": 256, "mask_documents": False}, train={"batch_tokens": 8 * 256})
    assert timed_steps.synthetic_batches(plain, 20, range(8))[0]["segment_ids"].max() == 1
