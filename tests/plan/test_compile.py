"""What TPU programs of the train step move: real widths, few layers, compiled for a slice that is not there."""

import functools
import math

import jax
import pytest
from expected_traffic import (
    above_limits,
    gathers_of_activations,
    gathers_outside_layers,
    repeated_reductions,
    weights_over,
    whole_gradients,
)
from tiny import run_config

from maxlm.config import Config
from maxlm.errors import ConfigError
from maxlm.parallel.traffic import totals, transfers
from maxlm.plan.compile import CompiledStep, compile_for

pytest.importorskip("libtpu")

MESHES = {
    "fsdp8": {"data": 1, "fsdp": 8, "tensor": 1},
    "data8": {"data": 8, "fsdp": 1, "tensor": 1},
    "tensor8": {"data": 1, "fsdp": 1, "tensor": 8},
    "fsdp4-tensor2": {"data": 1, "fsdp": 4, "tensor": 2},
}


def wide_config(mesh: dict) -> Config:
    """Three layers, as wide as a model of 1B parameters; 2,048 tokens on each of 8 chips."""
    model = {
        "vocab_size": 8192,
        "num_layers": 3,
        "embed_dim": 2048,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "mlp_dim": 5504,
    }
    tokens = 8 * 2048
    data = {"seq_len": 1024, "mixture": [{"tokens": tokens * 100, "weights": {"web": 1}}]}
    return run_config(model=model, data=data, train={"batch_tokens": tokens}, mesh=mesh, remat={"policy": "full"})


@functools.cache
def compiled(name: str) -> CompiledStep:
    # The suite's precision for CPU would make a TPU multiply six times.
    with jax.default_matmul_precision("default"):
        return compile_for(wide_config(MESHES[name]), "v5p:2x2x2", quick=True)


CHECKS = {
    "layers are gathered in their loop": gathers_outside_layers,
    "weights stay in their pipeline stage": functools.partial(weights_over, "pipeline"),
    "tensor moves sums of activations": gathers_of_activations,
    "gradients are reduced once": repeated_reductions,
    "gradients are scattered": whole_gradients,
    "no axis moves more than theory says": above_limits,
}
PER_CHUNK = "the head's gradient is reduced once per chunk of the loss"
THRICE = "weights are gathered a third time: recomputation and backward pass do not share a gather"
KNOWN = {
    ("fsdp8", "gradients are reduced once"): PER_CHUNK,
    ("data8", "gradients are reduced once"): PER_CHUNK,
    ("fsdp4-tensor2", "gradients are reduced once"): PER_CHUNK,
    ("fsdp8", "no axis moves more than theory says"): f"{THRICE}; {PER_CHUNK}",
    ("fsdp4-tensor2", "no axis moves more than theory says"): f"{THRICE}; {PER_CHUNK}",
}


def cases():
    for mesh in MESHES:
        for rule in CHECKS:
            reason = KNOWN.get((mesh, rule))
            marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
            yield pytest.param(mesh, rule, marks=marks)


@pytest.mark.parametrize(("mesh", "rule"), cases())
def test_nothing_moves_that_should_not(mesh: str, rule: str) -> None:
    step = compiled(mesh)
    assert not CHECKS[rule](transfers(step.executable.as_text(), step.mesh), step.plan)


def test_axes_in_use_are_named_by_the_mesh() -> None:
    """The devices of a slice are laid out along its links, not in the order of their ids."""
    step = compiled("fsdp4-tensor2")
    assert [device.id for device in step.mesh.devices.flat] != sorted(device.id for device in step.mesh.devices.flat)
    found = totals(transfers(step.executable.as_text(), step.mesh))
    activations = 4 * 1024 * 2048 * 2  # bytes of a chip's residual stream
    assert found["tensor"] > 5 * 3 * activations  # five sums in each of three layers, of two chips: 2 (n - 1) / n = 1
    weights = 3 * (2048 * 128 * (16 + 8 + 8 + 16) + 3 * 2048 * 5504)  # of the layers
    assert found["fsdp"] > 3 * weights / 2 * 2 * 3 / 4


def test_memory_is_that_of_one_chip() -> None:
    step = compiled("fsdp8")
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step.plan.abstract.params))
    memory = step.memory()
    assert memory["argument"] == pytest.approx(12 * parameters / 8, rel=0.05)  # parameters and two moments
    assert memory["argument"] < memory["peak"] < memory["sum"] * 1.01


def test_an_unknown_slice_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="v5p:3x5x7x9"):
        compile_for(wide_config(MESHES["fsdp8"]), "v5p:3x5x7x9")
