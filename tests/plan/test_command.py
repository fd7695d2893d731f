"""`maxlm plan` as a user types it."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import pytest

from maxlm import cli

ROOT = Path(__file__).parents[2]
LADDER = ROOT / "configs/models/ladder-60m.yaml"
TOY = ["model.num_layers=2", "model.vocab_size=4096", "data.seq_len=1024"]

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86 alone")


@pytest.fixture
def plan(monkeypatch, capsys):
    """plan("x.yaml", ...) -> (exit code, stdout, stderr)."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maxlm", "plan", *map(str, words)])
        # The suite's precision for CPU would make a TPU multiply six times; a search starts processes.
        monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "default")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped, jax.default_matmul_precision("default"):
            cli.main()
        out = capsys.readouterr()
        return stopped.value.code or 0, out.out, out.err

    return run


def test_a_model_alone_is_planned_and_shown(plan) -> None:
    code, out, err = plan(ROOT / "configs/models/llama3-8b.yaml", "--hardware", "v5p-128")
    assert (code, err) == (0, "")
    for text in ("8,030,261,248", "64 chips", "6ND", "saved activations", "dense bfloat16 peak", "days", "fits:"):
        assert text in out
    assert "cost" not in out  # without a price


def test_json_holds_what_scripts_read(plan) -> None:
    words = ("hardware.price_per_chip_hour=2.5", "--hardware", "v5p-128", "--json")
    code, out, _ = plan(ROOT / "configs/models/mixtral-8x7b.yaml", *words)
    found = json.loads(out)
    assert code == 0 and found["fits"] is True and found["compiled"] is None
    assert (found["parameters"], found["active_parameters"]) == (46_702_792_704, 12_879_925_248)
    assert found["chips"] == 64 and found["flops_per_token"] > 6 * 12e9
    parts = found["estimate"]["parts"]
    assert found["estimate"]["gib_per_chip"] == pytest.approx(sum(parts.values()), abs=0.01)
    # 16 bytes a parameter less the 4 of gradients, which come and go.
    assert parts["parameters"] + parts["moments"] == pytest.approx(46_702_792_704 * 12 / 64 / 2**30, rel=0.001)
    predicted = found["predicted"]
    tokens = predicted["tokens_per_second_per_chip"] * 64
    assert predicted["step_seconds"] == pytest.approx(64 * 4096 / tokens)
    assert predicted["days"] == pytest.approx(20 * 46_702_792_704 / tokens / 86400)
    assert predicted["cost"] == pytest.approx(predicted["days"] * 24 * 64 * 2.5)
    assert 0 < predicted["mfu"] < 1


def test_what_does_not_fit_is_exit_code_5_with_a_way_out(plan) -> None:
    words = ("--hardware", "v5e-8", "data.seq_len=8192", "train.batch_tokens=524288", "remat.policy=none")
    code, out, err = plan(ROOT / "configs/models/ladder-1.3b.yaml", *words)
    assert code == 5 and "does not fit" in out
    (line,) = err.splitlines()
    assert line.startswith("error: does not fit: needs ") and " of 15.8 GiB on v5e-8; largest buffers are " in line
    remedy = line.rpartition("; try ")[2]
    assert "remat.policy=full" in remedy
    assert plan(ROOT / "configs/models/ladder-1.3b.yaml", *words, *remedy.split())[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("configs/models/llama3-8b.yaml",), "no hardware to plan for"),
        (("configs/models/llama3-8b.yaml", "--hardware", "v9-8"), "'v9-8' is not known"),
        (("configs/models/llama3-8b.yaml", "--hardware", "v5p-128", "mesh={tensor: 3}"), "tensor 3 does not make 64"),
        (("configs/none.yaml", "--hardware", "v5p-128"), "no such configuration file"),
        (
            ("configs/models/llama3-8b.yaml", "--hardware", "h100x8", "--search", "--within", "mesh=2"),
            "--within 'mesh=2': expected KEY=V,V",
        ),
        (
            ("configs/models/llama3-8b.yaml", "--hardware", "h100x8", "--search", "--within", "remat.policy=ful"),
            "found 'ful'; expected none, dots, full",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(plan, words: tuple, message: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = plan(*words)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert message in line


@needs_libtpu
def test_compiling_shows_the_compilers_figures_beside_the_estimate(plan) -> None:
    code, out, _ = plan(LADDER, *TOY, "--hardware", "v5e-4", "--compile", "--json")
    found = json.loads(out)
    compiled = found["compiled"]
    assert code == 0 and found["fits"] is True
    parts = [compiled[f"{name}_gib"] for name in ("argument", "output", "temporary")]
    assert compiled["sum_gib"] == pytest.approx(sum(parts) - compiled["alias_gib"])
    assert compiled["peak_gib"] > compiled["argument_gib"] > 0
    assert set(compiled["bytes_by_axis"]) == {"fsdp"} and compiled["seconds"] > 0
    # All is recomputed but what nobody reads again.
    model = found["flops_per_token"] * 4 * 1024 / 4
    assert 1.1 * model < compiled["flops_per_chip"] < 8.1 / 6 * model


@needs_libtpu
def test_what_the_compiler_refuses_does_not_fit(plan) -> None:
    words = ("--hardware", "v5e-4", "data.seq_len=8192", "train.batch_tokens=2097152", "remat.policy=none", "--compile")
    code, _, err = plan(LADDER, *words)
    assert code == 5
    assert "error: does not fit: needs " in err and "; try " in err


@needs_libtpu
@pytest.mark.slow
def test_a_search_compiles_the_best_and_prints_lines_to_paste(plan, tmp_path) -> None:
    within = ("--within", "mesh.pipeline=1", "--within", "train.accumulate=1", "--within", "remat.policy=full")
    batch = "train.batch_tokens=8192"
    code, out, _ = plan(LADDER, *TOY, batch, "--hardware", "v5e-4", "--search", *within, "--compiles", "2", "--json")
    found = json.loads(out)
    candidates = found["candidates"]
    assert code == 0 and len(candidates) == 2 and all(candidate["fits"] for candidate in candidates)
    scores = [candidate["scored_seconds"] for candidate in candidates]
    assert scores == sorted(scores) and found["predicted"]["step_seconds"] > 0
    best = {axis: size for axis, size in found["mesh"].items() if size > 1}
    assert best == {axis: size for axis, size in candidates[0]["mesh"].items() if size > 1}
