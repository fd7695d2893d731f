"""Settings of the test process, made before jax is imported: 8 virtual CPU devices and exact matrix products."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Unoptimised programs compile four times faster, and compiles are most of the suite's time.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# A device that waits for another on a busy machine is not stuck yet after XLA's 40 s.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=300"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ["NPROC"] = "32"  # threads for the 8 devices (see maxlm/parallel/runtime.py)
# Tests compile the same programs again and again, and so do the processes that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["DO_NOT_TRACK"] = "1"

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402
from tiny import RUN  # noqa: E402

from maxlm import cli  # noqa: E402
from maxlm.config import Config, load, validate  # noqa: E402

FIM_TOKENS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def compiled_programs() -> Iterator[None]:
    """Programs are of no use to the next file, and those of all files together take gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project's own sources as shards: two training sources, each with a held-out one, and a real tokenizer."""
    from rich.console import Console

    from data_prep.config import Pipeline
    from data_prep.pipeline import run

    out = tmp_path_factory.mktemp("prepared")
    sources = {
        "model": {"kind": "tree", "path": str(ROOT / "maxlm"), "include": ["*.py"]},
        "prep": {"kind": "tree", "path": str(ROOT / "data_prep"), "include": ["*.py"]},
    }
    pipeline = {
        "name": "tests",
        "output": str(out),
        "workers": 1,
        "ingest": {"sources": sources},
        "validation": {"fraction": 0.2},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 303, "special_tokens": FIM_TOKENS},
    }
    run(validate(pipeline, Pipeline, "tests"), Console(quiet=True))
    return out


@pytest.fixture
def make_config(prepared: Path, tmp_path: Path):
    """A tiny run on the prepared sources: make_config({"train.batch_tokens": 512}, name="other")."""

    def make(changes: dict | None = None, **top) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(RUN.format(prepared=prepared, runs=tmp_path / "runs"))
        overrides = [f"{key}={json.dumps(value)}" for key, value in ((changes or {}) | top).items()]
        return load(path, overrides)

    return make


@pytest.fixture
def run_command(monkeypatch, capsys):
    """run_command("train", "x.yaml") -> (exit code, stdout, stderr)."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maxlm", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out = capsys.readouterr()
        return stopped.value.code or 0, out.out, out.err

    return run
