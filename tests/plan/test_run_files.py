"""The runs that stand ready: each is legal on the hardware that it names, and fits by the estimate."""

from pathlib import Path

import pytest

from maxlm.plan.plan import make_plan
from maxlm.plan.request import request

LAPTOP = (
    "quickstart",
    "doremi",
    "curriculum",
    "anneal",
    "llama3-syne",
    "yulan-mini",
    "continue-chinese",
    "long-context",
)
FILES = sorted((Path(__file__).parents[2] / "configs/runs").glob("*.yaml"))
RUNS = [path for path in FILES if not path.stem.startswith(LAPTOP)]


def test_the_usual_hardware_has_runs() -> None:
    expected = {
        "llama3-8b": ("v5e-256", "v5p-128", "v6e-64", "h100x8", "h100x64"),
        "llama3-8b-syne": ("v5p-128",),
        "llama3-8b-128k": ("v5p-128",),
        "llama3-70b": ("v5p-256", "v6e-256", "h100x256"),
        "llama3-405b": ("v5p-2048", "h100x1024"),
        "mixtral-8x7b": ("v5p-128", "h100x64"),
        "gemma2-9b": ("v5p-128",),
        "deepseek-v2-lite": ("v5p-128",),
    }
    assert {path.stem for path in RUNS} == {f"{model}-{name}" for model, names in expected.items() for name in names}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_fits_its_hardware(path: Path) -> None:
    config, system = request(path, [])
    assert path.stem.endswith(f"-{system.name}") and config.name == path.stem
    plan = make_plan(config, system)
    assert plan.fits and plan.main.predicted.mfu > 0.05
    if config.model.num_layers == 126:
        assert plan.mesh["pipeline"] > 1
