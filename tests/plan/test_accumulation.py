"""A step that accumulates, compiled for a TPU with every optimisation, which quick compiles leave out."""

import jax
import pytest
from tiny import run_config

from maxlm.plan.compile import compile_for

pytest.importorskip("libtpu")


def test_a_step_that_accumulates_in_bfloat16_compiles_for_a_tpu() -> None:
    config = run_config(
        model={"embed_dim": 256, "head_dim": 64, "mlp_dim": 512, "vocab_size": 1024},
        data={"seq_len": 128},
        train={"batch_tokens": 16 * 128, "accumulate": 2},
        precision={"compute": "bfloat16"},
        mesh={"fsdp": 8},
    )
    # The suite's precision for CPU is none that a kernel multiplies bfloat16 with.
    with jax.default_matmul_precision("default"):
        assert compile_for(config, "v5p:2x2x2").memory()["peak"] > 0
