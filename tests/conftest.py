"""Settings of the test process, made before jax is imported: 8 virtual CPU devices and exact matrix products."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Unoptimised programs compile four times faster, and compiles are most of the suite's time.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
# Off here (see maxlm/parallel/runtime.py); processes that tests start on one device turn it on.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
os.environ["DO_NOT_TRACK"] = "1"

import pytest  # noqa: E402

from maxlm.config import Config, load, validate  # noqa: E402

ROOT = Path(__file__).parent.parent


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
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    run(validate(pipeline, Pipeline, "tests"), Console(quiet=True))
    return out


@pytest.fixture
def make_config(prepared: Path, tmp_path: Path):
    """A tiny run on the prepared sources: make_config({"train.batch_tokens": 512}, name="other")."""

    def make(changes: dict | None = None, **top) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(TINY.format(prepared=prepared, runs=tmp_path / "runs"))
        import json

        overrides = [f"{key}={json.dumps(value)}" for key, value in ((changes or {}) | top).items()]
        return load(path, overrides)

    return make


TINY = """
name: tiny
model:
  {{vocab_size: 320, num_layers: 2, embed_dim: 32, num_heads: 4, num_kv_heads: 2, head_dim: 8, mlp_dim: 64}}
data:
  seq_len: 32
  sources: {{model: {{path: {prepared}/model}}, prep: {{path: {prepared}/prep}}}}
  mixture: [{{tokens: 5120, weights: {{model: 3, prep: 1}}}}]
  validation: {{model: {{path: {prepared}/model-val}}}}
train: {{batch_tokens: 256}}
mesh: {{data: 1, fsdp: -1}}
remat: {{policy: none}}
optimizer: {{lr: 3.0e-3, eps: 1.0e-5}}
schedule: {{name: wsd, warmup_tokens: 1024, decay_tokens: 1024}}
checkpoint: {{every_minutes: null, every_steps: 4, keep_every_steps: null}}
eval: {{every_steps: 8, sequences: 8}}
logging: {{every_steps: 3, tensorboard: false}}
runs_dir: {runs}
"""
