"""What TPU programs of the train step move: real widths, few layers, compiled for a slice that is not there."""

import functools
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected_traffic import (
    above_limits,
    between_slices,
    gathers_of_activations,
    gathers_outside_layers,
    layout_of,
    repeated_reductions,
    weights_over,
    whole_gradients,
    whole_tables,
)
from tiny import run_config

from maxlm.config import Config, MeshConfig
from maxlm.errors import ConfigError
from maxlm.model.attention import Attended, attend
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import named_sharding
from maxlm.parallel.traffic import totals, transfers
from maxlm.plan.compile import CompiledStep, compile_for, topology_devices
from maxlm.plan.work import compiled_work, estimated_work

pytest.importorskip("libtpu")

EXPERTS = {"mlp_dim": 1536, "moe": {"num_experts": 8, "experts_per_token": 2, "mlp_dim": 1536}}
PIPELINE = {"pipeline": {"microbatches": 4}, "model": {"num_layers": 6}}
LATENTS = {"query_rank": 768, "kv_rank": 512, "nope_head_dim": 128, "rope_head_dim": 64, "value_head_dim": 128}
LATENTS = {"num_kv_heads": 16, "head_dim": 192, "latent": LATENTS}
# Sizes of the mesh, and what else differs from `wide_config`.
MESHES = {
    "fsdp8": ({"fsdp": 8}, {}),
    "data8": ({"data": 8}, {}),
    "tensor8": ({"tensor": 8}, {}),
    "fsdp4-tensor2": ({"fsdp": 4, "tensor": 2}, {}),
    "fsdp4-tensor2-sequence": ({"fsdp": 4, "tensor": 2}, {"parallel": {"sequence": True}}),
    "data2-fsdp4-zero1": ({"data": 2, "fsdp": 4}, {"parallel": {"zero": 1}}),
    "pipeline2-fsdp4": ({"pipeline": 2, "fsdp": 4}, PIPELINE),
    "pipeline2-fsdp2-tensor2": ({"pipeline": 2, "fsdp": 2, "tensor": 2}, PIPELINE),
    "context2-fsdp4": ({"context": 2, "fsdp": 4}, {}),
    "context2-fsdp4-ring": ({"context": 2, "fsdp": 4}, {"parallel": {"context": "ring"}}),
    "expert4-fsdp2": ({"expert": 4, "fsdp": 2}, {"model": EXPERTS}),
    "pipeline2-expert2-fsdp2": (
        {"pipeline": 2, "expert": 2, "fsdp": 2},
        PIPELINE | {"model": EXPERTS | {"num_layers": 6}},
    ),
    "fsdp4-tensor2-latents": ({"fsdp": 4, "tensor": 2}, {"model": LATENTS}),
    "fsdp4-tensor2-latents-sequence": (
        {"fsdp": 4, "tensor": 2},
        {"model": LATENTS, "parallel": {"sequence": True}},
    ),
    "slices2-fsdp2-tensor2": ({"data": 2, "fsdp": 2, "tensor": 2, "slices": 2}, {}),
}


def wide_config(name: str) -> Config:
    """Three layers per stage, as wide as a model of 1B parameters; 2,048 tokens on each of 8 chips."""
    mesh, sections = MESHES[name]
    model = {
        "vocab_size": 6144,
        "num_layers": 3,
        "embed_dim": 2048,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "mlp_dim": 5504,
    }
    tokens = 8 * 2048
    data = {"seq_len": 1024, "mixture": [{"tokens": tokens * 100, "weights": {"web": 1}}]}
    values = {"data": data, "train": {"batch_tokens": tokens}, "mesh": {"fsdp": 1} | mesh, "remat": {"policy": "full"}}
    return run_config(**values | sections | {"model": model | sections.get("model", {})})


@functools.cache
def compiled(name: str) -> CompiledStep:
    config = wide_config(name)
    # The suite's precision for CPU would make a TPU multiply six times.
    with jax.default_matmul_precision("default"):
        return compile_for(config, "v5p:2x2x1" if config.mesh.slices > 1 else "v5p:2x2x2", quick=True)


CHECKS = {
    "layers are gathered in their loop": gathers_outside_layers,
    "weights stay in their pipeline stage": functools.partial(weights_over, "pipeline"),
    "tensor moves sums of activations": gathers_of_activations,
    "gradients are reduced once": repeated_reductions,
    "gradients of layers are scattered": whole_gradients,
    "gradients of tables are scattered": whole_tables,
    "slices exchange sums of gradients": between_slices,
    "no axis moves more than theory says": above_limits,
}
# Written as scatters (`psum_scatter`, and the transpose of a gather), which 4 chips of these 8 do. All 8 send twice the
# bytes for the embedding and, in full compiles too, half more for the head, whose sum is rounded before it comes back.
SUMMED = "XLA sums whole what is scattered over all chips of a small torus"
# A gather for the look-up, whose transpose would be a scatter, would send as much in all.
ZERO_1 = "the table that zero 1 keeps whole has its gradient summed whole"
KNOWN = {
    ("fsdp8", "gradients of tables are scattered"): SUMMED,
    ("data2-fsdp4-zero1", "gradients of tables are scattered"): ZERO_1,
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


@pytest.mark.parametrize(
    "mesh",
    [
        *("fsdp8", "fsdp4-tensor2", "pipeline2-fsdp4", "context2-fsdp4", "expert4-fsdp2", "slices2-fsdp2-tensor2"),
        "fsdp4-tensor2-latents",
    ],
)
def test_the_estimated_work_is_that_of_the_program(mesh: str) -> None:
    """FLOPs as the formulas say, recomputation, bubbles and kernels included; bytes nearly, by what they are."""
    step = compiled(mesh)
    plan = layout_of(step.plan)
    found, estimate = compiled_work(step.executable.as_text(), step.mesh, plan), estimated_work(plan)
    assert found.flops == pytest.approx(estimate.flops, rel=1e-4)
    assert sum(found.weights.values()) == pytest.approx(sum(estimate.weights.values()), rel=0.12)
    for axis in {"tensor", "context", "expert"} & set(estimate.activations):
        assert found.activations[axis] == pytest.approx(estimate.activations[axis], rel=0.15)


@pytest.mark.parametrize(
    "name", ["fsdp4-tensor2", "pipeline2-fsdp2-tensor2", "context2-fsdp4", "fsdp4-tensor2-latents"]
)
def test_attention_runs_in_kernels_and_its_forward_once_more(name: str) -> None:
    """With full remat; there is no array of scores or masks, of a chip's queries by the keys of a sequence."""
    text = compiled(name).executable.as_text()
    kernels = Counter(re.findall(r"%splash_mha_(fwd|dq|dkv)\S* = ", text))
    assert kernels == {"fwd": 2, "dq": 1, "dkv": 1}
    assert not re.search(r"(f32|pred)\[(\d+,)*(512|1024),(\d+,)?1024\]", text)


def test_attention_in_a_ring_runs_in_tiles() -> None:
    assert "splash_mha" not in compiled("context2-fsdp4-ring").executable.as_text()


@pytest.mark.parametrize(("window", "prefixes"), [(None, False), (1024, False), (1024, True)])
def test_attention_takes_memory_linear_in_the_sequence(window: int | None, prefixes: bool) -> None:
    """Heads of Llama 3 8B, split over tensor: scores of a chip's 16 in float32 would be 1 GiB."""
    mesh = build_mesh(MeshConfig(fsdp=2, tensor=2), topology_devices("v5p:2x2x1"))

    def arguments(heads: int) -> jax.ShapeDtypeStruct:
        place = named_sharding(("batch", "sequence", "heads", None), mesh)
        return jax.ShapeDtypeStruct((2, 4096, heads, 128), jnp.bfloat16, sharding=place)

    tokens = named_sharding(("batch", "sequence"), mesh)
    segments = jax.ShapeDtypeStruct((2, 4096), jnp.int32, sharding=tokens)
    prefix = jax.ShapeDtypeStruct((2, 4096), jnp.bool_, sharding=tokens) if prefixes else None
    how = Attended(window, softcap=30.0, platform="tpu", device_kind="TPU v5")

    def gradients(q, k, v, segments, prefix, d_out):
        return jax.vjp(lambda q, k, v: attend(q, k, v, segments, None, how, prefix)[0], q, k, v)[1](d_out)

    traced = [arguments(heads) for heads in (32, 8, 8)]
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        lowered = jax.jit(gradients).trace(*traced, segments, prefix, traced[0]).lower(lowering_platforms=("tpu",))
    found = lowered.compile().memory_analysis()
    assert found.temp_size_in_bytes < 2**30 / 8


def test_axes_in_use_are_named_by_the_mesh() -> None:
    """The devices of a slice are laid out along its links, not in the order of their ids."""
    step = compiled("fsdp4-tensor2")
    assert [device.id for device in step.mesh.devices.flat] != sorted(device.id for device in step.mesh.devices.flat)
    found = totals(transfers(step.executable.as_text(), step.mesh))
    activations = 4 * 1024 * 2048 * 2  # bytes of a chip's residual stream
    assert found["tensor"] > 5 * 3 * activations  # five sums in each of three layers, of two chips: 2 (n - 1) / n = 1
    weights = 3 * (2048 * 128 * (16 + 8 + 8 + 16) + 3 * 2048 * 5504)  # of the layers
    assert found["fsdp"] > 3 * weights / 2 * 2 * 3 / 4


def test_slices_are_whole_in_all_axes_but_one() -> None:
    """Over the data-centre network go a chip's own part of the layers' gradients and, in float32, of the head's."""
    step = compiled("slices2-fsdp2-tensor2")
    number = np.vectorize(lambda device: device.slice_index)(step.mesh.devices)
    assert [set(part.flat) for part in np.split(number, 2, axis=step.mesh.axis_names.index("data"))] == [{0}, {1}]
    found = totals(transfers(step.executable.as_text(), step.mesh))
    weights = 3 * (2048 * 128 * (16 + 8 + 8 + 16) + 3 * 2048 * 5504)
    assert found["data"] == pytest.approx(weights / 4 * 2 + 6144 * 2048 / 4 * (2 + 4), rel=0.01)
    assert set(found) == {"data", "fsdp", "tensor"}


def test_memory_is_that_of_one_chip() -> None:
    step = compiled("fsdp8")
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step.plan.abstract.params))
    memory = step.memory()
    assert memory["argument"] == pytest.approx(12 * parameters / 8, rel=0.05)  # parameters and two moments
    assert memory["argument"] < memory["peak"] < memory["sum"] * 1.01


def test_an_unknown_slice_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="v5p:3x5x7x9"):
        compile_for(wide_config("fsdp8"), "v5p:3x5x7x9")
