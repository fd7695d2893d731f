"""The candidates of a search: all legal, none twice, and within what was asked."""

import math

import jax
import pytest
from tiny import run_config

from maxlm.parallel.hardware import system
from maxlm.parallel.mesh import build_mesh, check_batch, check_layers
from maxlm.plan.roofline import layout_for
from maxlm.plan.space import candidates
from maxlm.train.state import blueprint

SYSTEM = system("v6e-8")


def config(**sections):
    return run_config(train={"batch_tokens": 16 * 32}, model={"num_layers": 4}, **sections)


def key(variant) -> tuple:
    return variant.mesh, variant.pipeline, variant.remat.policy, variant.train.accumulate


def test_every_candidate_is_legal_and_none_comes_twice() -> None:
    found = list(candidates(config(), SYSTEM))
    assert len({key(variant) for variant in found}) == len(found) > 100
    for variant in found:
        mesh = layout_for(variant, SYSTEM).mesh
        assert math.prod(mesh.shape.values()) == SYSTEM.num_devices
        check_batch(variant, mesh)
        check_layers(variant, mesh)
        assert variant.model == config().model and variant.train.batch_tokens == config().train.batch_tokens
        assert variant.train.accumulate == 1 or variant.mesh.pipeline == 1


def test_candidates_can_be_laid_out_on_devices() -> None:
    """The same meshes, built with real devices, take the parameters as they are split."""
    for variant in list(candidates(config(), SYSTEM))[::29]:
        blueprint(variant, build_mesh(variant.mesh, jax.devices()), 1)


def test_axes_are_tried_as_far_as_sizes_allow() -> None:
    meshes = {tuple(variant.mesh.axes.values()) for variant in candidates(config(), SYSTEM)}
    for axis, largest in {"pipeline": 4, "data": 8, "fsdp": 8, "context": 1, "expert": 1, "tensor": 4}.items():
        position = list(config().mesh.axes).index(axis)
        assert max(sizes[position] for sizes in meshes) == largest


@pytest.mark.parametrize(
    "within",
    [
        {"mesh.tensor": [2], "mesh.pipeline": [1]},
        {"mesh.fsdp": [4], "remat.policy": ["full"]},
        {"train.accumulate": [2], "remat.policy": ["dots", "none"]},
        {"pipeline.repeats": [2], "pipeline.microbatches": [4], "mesh.pipeline": [2]},
    ],
)
def test_keys_are_restricted_to_what_is_asked(within) -> None:
    found = list(candidates(config(), SYSTEM, within))
    assert found
    for variant in found:
        for name, values in within.items():
            section, field = name.split(".")
            assert getattr(getattr(variant, section), field) in values


def test_experts_and_long_sequences_open_their_axes() -> None:
    moe = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 32}
    with_experts = run_config(train={"batch_tokens": 16 * 32}, model={"num_layers": 4, "moe": moe})
    assert {variant.mesh.expert for variant in candidates(with_experts, SYSTEM)} == {1, 2, 4}
    long = run_config(train={"batch_tokens": 32768 * 8}, data={"seq_len": 32768}, model={"num_layers": 4})
    assert {variant.mesh.context for variant in candidates(long, SYSTEM)} >= {1, 2, 4, 8}


def test_slices_are_crossed_by_one_axis_alone() -> None:
    joined = config(mesh={"slices": 2, "data": 2})
    found = list(candidates(joined, SYSTEM))
    assert found and all(variant.mesh.data % 2 == 0 for variant in found)
    assert {math.prod(variant.mesh.axes.values()) for variant in found} == {16}
