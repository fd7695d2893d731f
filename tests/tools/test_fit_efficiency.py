"""The efficiencies in use are those that the published runs give, and they predict those runs."""

import importlib.util
from pathlib import Path

import pytest

from maxlm.plan.roofline import EFFICIENCY


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools/fit_efficiency.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_efficiencies_in_use_are_the_fitted_ones(tool) -> None:
    families = {tool.family(run) for run in tool.RUNS}
    fitted = {name: tool.fit([run for run in tool.RUNS if tool.family(run) == name]) for name in families}
    assert fitted == pytest.approx(EFFICIENCY, abs=0.006)  # two digits are written down


def test_other_runs_of_a_family_predict_a_run(tool) -> None:
    errors = [abs(row["error"]) for row in tool.results(tool.RUNS)]
    assert len(errors) >= 12
    assert sum(error <= 0.2 for error in errors) >= 0.75 * len(errors)


def test_speed_is_by_the_formula_of_the_source(tool) -> None:
    """The logs of this run state both: 417.397 TFLOP/s and 7207.336 tokens/s."""
    (run, *_) = (run for run in tool.RUNS if run.hardware == "v6e-256" and run.model == "llama3-8b")
    by_flops = tool.Run(run.source, run.hardware, run.model, run.seq_len, run.sequences, run.remat, tflops=417.397)
    assert by_flops.published == pytest.approx(7207.336, rel=1e-4)
