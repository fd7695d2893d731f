"""Rules about traffic can be broken: each one finds what it forbids, and lets pass what it allows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected_traffic import (
    above_limits,
    between_slices,
    by_axis,
    gathers_of_activations,
    gathers_outside_layers,
    layout_of,
    repeated_reductions,
    weights_over,
    whole_gradients,
    whole_tables,
)
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import run_config

from maxlm.config import Config
from maxlm.parallel.mesh import AXES, build_mesh
from maxlm.parallel.traffic import Transfer, transfers
from maxlm.parallel.walk import Loop
from maxlm.plan.communication import expected, limits
from maxlm.train.state import Blueprint, blueprint

MODEL = {"vocab_size": 4096, "embed_dim": 1024, "num_layers": 6, "mlp_dim": 3072, "num_heads": 8, "head_dim": 128}
LAYERS = (Loop("while.1", 3.0),)
TICKS = Loop("while.0", 5.0)
WEIGHT = "bf16[1024,3072]"  # of an MLP


def config_of(mesh: dict, **sections: dict) -> Config:
    """Three layers per stage of two; a chip's residual stream is bf16[4,1024,1024] over 8 chips that share a batch."""
    data = {"seq_len": 1024, "mixture": [{"tokens": 2**25, "weights": {"web": 1}}]}
    values = {"mesh": {"fsdp": 1} | mesh, "data": data, "train": {"batch_tokens": 2**15}}
    values |= {"model": MODEL, "precision": {"compute": "bfloat16"}, "pipeline": {"microbatches": 4}}
    return run_config(**values | sections)


def plan_of(mesh: dict, **sections: dict) -> Blueprint:
    config = config_of(mesh, **sections)
    return blueprint(config, build_mesh(config.mesh), 1)


def limits_of(mesh: dict, **sections: dict) -> dict[str, float]:
    return limits(layout_of(plan_of(mesh, **sections)))


def transfer(axis: str, opcode: str, shape: str, loops: tuple[Loop, ...] = ()) -> Transfer:
    count = float(np.prod([loop.trips for loop in loops]))
    place = {"where": "", "count": count, "loops": loops}
    return Transfer(axes=tuple(axis.split("+")), opcode=opcode, size=2.0**20, shape=shape, **place)


@pytest.fixture(scope="module")
def piped() -> Blueprint:
    return plan_of({"pipeline": 2, "fsdp": 2, "tensor": 2})


def test_gathers_before_the_loop_over_layers_are_found(piped: Blueprint) -> None:
    inside = transfer("fsdp", "all-gather", WEIGHT, (TICKS, *LAYERS))
    before = transfer("fsdp", "all-gather", "bf16[3,1024,1536]")
    every_tick = transfer("fsdp", "all-gather", "bf16[3,1024,1536]", (TICKS,))
    table = transfer("pipeline+fsdp", "all-gather", "bf16[2048,1024]")
    assert gathers_outside_layers([inside, table], piped) == []
    assert len(gathers_outside_layers([inside, before, every_tick], piped)) == 2


def test_zero_1_gathers_new_parameters_once() -> None:
    plan = plan_of({"data": 2, "fsdp": 4}, parallel={"zero": 1})
    renewed = transfer("fsdp", "all-gather", "f32[6,1024,3072]")
    assert gathers_outside_layers([renewed], plan) == []
    assert gathers_outside_layers([transfer("fsdp", "all-reduce", "f32[6,1024,3072]")], plan)
    assert gathers_outside_layers([transfer("fsdp", "all-gather", "f32[6,1024,3072]", (TICKS,))], plan)


def test_weights_that_change_stage_are_found(piped: Blueprint) -> None:
    rows = transfer("pipeline", "collective-permute", "bf16[4,1024,1024]", (TICKS,))
    moved = transfer("pipeline", "collective-permute", "bf16[3,512,1536]", (TICKS,))
    assert weights_over("pipeline", [rows], piped) == []
    assert weights_over("pipeline", [rows, moved], piped)


def test_a_gathered_residual_stream_is_found(piped: Blueprint) -> None:
    summed = transfer("tensor", "all-reduce", "bf16[4,1024,1024]", (TICKS, *LAYERS))
    gathered = transfer("tensor", "all-gather", "bf16[4,1024,1024]", (TICKS, *LAYERS))
    logits = transfer("tensor", "all-reduce", "bf16[4,1024,4096]")
    assert gathers_of_activations([summed], piped) == []
    assert len(gathers_of_activations([summed, gathered, logits], piped)) == 2
    split = plan_of({"fsdp": 4, "tensor": 2}, parallel={"sequence": True})
    assert gathers_of_activations([transfer("tensor", "all-gather", "bf16[8,1024,1024]", LAYERS)], split) == []
    assert gathers_of_activations([transfer("tensor", "all-gather", "f32[8,1024,1024]", LAYERS)], split)


def test_gradients_reduced_per_chunk_or_whole_are_found(piped: Blueprint) -> None:
    once = transfer("pipeline+fsdp", "reduce-scatter", "f32[1024,2048]")
    per_chunk = transfer("pipeline+fsdp", "reduce-scatter", "f32[1024,2048]", (Loop("while.2", 2.0),))
    assert repeated_reductions([once], piped) == whole_tables([once], piped) == []
    assert repeated_reductions([per_chunk], piped)
    assert whole_gradients([transfer("fsdp", "all-reduce", "bf16[1024,1536]", (TICKS, *LAYERS))], piped)
    assert whole_tables([transfer("pipeline+fsdp", "all-reduce", "f32[] + f32[1024,2048]")], piped)


def test_a_program_that_sums_whole_gradients_on_every_device_is_found() -> None:
    """A product over a split batch whose result nobody asks to be split: what autodiff leaves where nothing pins it."""
    plan = plan_of({"fsdp": 8})
    x, d_out = (
        jax.ShapeDtypeStruct((64, width), jnp.float32, sharding=NamedSharding(plan.mesh, P("fsdp")))
        for width in (1024, 3072)
    )
    whole = jax.jit(lambda x, d_out: x.T @ d_out, out_shardings=NamedSharding(plan.mesh, P()))
    moved = transfers(whole.lower(x, d_out).compile().as_text(), plan.mesh)
    assert whole_gradients(moved, plan) and gathers_outside_layers(moved, plan)


def test_limits_are_those_of_the_hand() -> None:
    """Bytes of one layer's matrices over fsdp: gathered twice and scattered once, in two bytes a parameter."""
    layer = 1024 * 128 * (8 + 2 + 2 + 8) + 3 * 1024 * 3072
    norms, table = (2 * 6 + 1) * 1024, 4096 * 1024
    assert limits_of({"fsdp": 8}) == {"fsdp": 7 / 8 * (6 * layer * 6 + 2 * table * (2 + 2 + 4))}
    data = 2 * 7 / 8 * (6 * layer + 2 * table + norms) * 4
    assert limits_of({"data": 8}) == {"data": pytest.approx(data)}
    found = limits_of({"pipeline": 2, "fsdp": 4})
    tables = 7 / 8 * 2 * table * 8
    # Two permutes of two rows of a batch of 32, at each of five ticks, forward and backward.
    assert found["pipeline"] == tables + 4 * 5 * 2 * 1024 * 1024 * 2
    assert found["fsdp"] == tables + 3 / 4 * 3 * layer * 6 * 5
    ring, gathered = (limits_of({"fsdp": 4, "context": 2}, parallel={"context": c}) for c in ("ring", "all_gather"))
    keys = 2 * 6 * (8 * 512) * 2 * 128  # and values
    assert ring["context"] - ring["fsdp"] == keys * (3 * 2 + 2 * 4)
    assert gathered["context"] - gathered["fsdp"] == keys * (2 * 2 + 4)


def test_latents_are_summed_over_tensor_and_what_is_too_narrow_over_the_mesh() -> None:
    latent = {"query_rank": 96, "kv_rank": 64, "nope_head_dim": 96, "rope_head_dim": 32, "value_head_dim": 64}
    model = MODEL | {"num_kv_heads": 8, "latent": latent}
    rows, layers = 2**15 / 4, 6
    # Without recomputation, where attention reads what is as wide as the stream: 4 sums, and one at either end.
    for rank, sums in ((None, 4 * 1024 + 64 + 32), (96, 3 * 1024 + 96 + 64 + 32)):
        model["latent"] = latent | {"query_rank": rank}
        plan = layout_of(plan_of({"fsdp": 4, "tensor": 2}, model=model, remat={"policy": "none"}))
        assert expected(plan).activations == {"tensor": (layers * sums + 2 * 1024) * rows * 2}
    model["latent"] = latent | {"kv_rank": 60, "query_rank": None}
    narrow = layout_of(plan_of({"fsdp": 8}, model=model)), layout_of(plan_of({"fsdp": 4, "data": 2}, model=model))
    ups = layers * 60 * 8 * (96 + 64)
    for plan, split, sent in zip(narrow, (8, 4), (2 * 7 / 8 * ups * 2, 3 / 4 * ups * 6), strict=True):
        matrices = sum(np.prod(leaf.shape) for _, leaf, names in plan.leaves if {"embed"} & set(names))
        gathered = (split - 1) / split * (6 * matrices + 2 * 4096 * 1024 * 8)
        assert expected(plan).weights["fsdp"] == pytest.approx(gathered + sent)


def test_more_than_theory_allows_is_found() -> None:
    plan = plan_of({"fsdp": 8})
    allowed = limits(layout_of(plan))["fsdp"]
    moved = [replace(transfer("fsdp", "all-gather", WEIGHT, LAYERS), size=allowed / 6, count=6.0)]
    assert by_axis(moved) == {"fsdp": pytest.approx(allowed)}
    assert above_limits(moved, plan) == []
    assert above_limits(2 * moved, plan)
    assert above_limits([transfer("tensor", "all-reduce", WEIGHT)], plan)


class SliceDevice:
    """A device as a TPU slice has it, as far as a mesh asks."""

    platform, device_kind, process_index = "tpu", "none", 0

    def __init__(self, number: int):
        self.id, self.slice_index = number, number // 4


def test_what_crosses_slices_besides_gradients_is_found(piped: Blueprint) -> None:
    devices = np.array([SliceDevice(number) for number in range(8)]).reshape(1, 2, 2, 1, 1, 2)
    plan = plan_of({"data": 2, "fsdp": 2, "tensor": 2})
    plan = plan.__class__(**{**vars(plan), "mesh": Mesh(devices, AXES)})
    gradient = transfer("data", "all-reduce", "bf16[192,8,512]", LAYERS)  # 512 x 1536 of an MLP, in another shape
    assert between_slices([gradient, transfer("fsdp", "all-gather", WEIGHT, LAYERS)], plan) == []
    assert between_slices([transfer("data", "all-gather", WEIGHT, LAYERS)], plan)
    assert between_slices([transfer("data+fsdp", "all-reduce", WEIGHT, LAYERS)], plan)
    assert between_slices([transfer("data", "all-reduce", "bf16[8,1024,1024]", LAYERS)], plan)
