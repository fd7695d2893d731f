"""Sizes of the mesh, and which batches it can hold."""

import math
import re

import jax
import pytest
from tiny import run_config

from maxlm.config import MeshConfig
from maxlm.errors import ConfigError
from maxlm.parallel.mesh import AXES, axis_sizes, bubble_fraction, build_mesh, check_batch, check_layers, check_shapes


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("others", [(1, 1, 1, 1, 1), (2, 1, 1, 1, 1), (1, 2, 1, 2, 1), (4, 1, 1, 1, 2)])
def test_minus_one_takes_the_devices_left(axis: str, others: tuple[int, ...]) -> None:
    fixed = dict(zip([name for name in AXES if name != axis], others, strict=True))
    assert axis_sizes(MeshConfig(**fixed, **{axis: -1}), 8) == fixed | {axis: 8 // math.prod(others)}


@pytest.mark.parametrize(
    "sizes", [{"data": 2, "fsdp": 2, "tensor": 1}, {"data": 3}, {"data": 16}, {"fsdp": 1}, {"tensor": 5, "fsdp": 2}]
)
def test_sizes_that_do_not_make_the_devices_are_named(sizes: dict[str, int]) -> None:
    config = MeshConfig(**sizes)
    with pytest.raises(ConfigError) as caught:
        axis_sizes(config, 8)
    text = " x ".join(f"{axis} {size}" for axis, size in config.axes.items() if size != 1)
    assert str(caught.value).startswith(f"mesh: {text or 'every axis 1'} does not make 8")


def test_mesh_holds_every_device_once() -> None:
    mesh = build_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"pipeline": 1, "data": 2, "fsdp": 2, "context": 1, "expert": 1, "tensor": 2}
    assert sorted(device.id for device in mesh.devices.flat) == [device.id for device in jax.devices()]
    assert build_mesh(MeshConfig(), jax.devices()[:3]).shape["fsdp"] == 3


@pytest.mark.parametrize(
    ("mesh", "accumulate", "examples", "nearest"),
    [
        ((8, 1, 1), 1, 6, 8),
        ((2, 4, 1), 1, 100, 96),
        ((2, 4, 1), 3, 63, 72),
        ((1, 2, 4), 1, 1, 2),
        ((1, 2, 4), 3, 57, 60),
        ((1, 1, 8), 3, 60, 60),
        ((1, 1, 8), 1, 1, 1),
    ],
)
def test_batch_must_divide_over_the_devices_that_share_it(
    mesh: tuple[int, int, int], accumulate: int, examples: int, nearest: int
) -> None:
    def check(examples: int) -> None:
        sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
        train = {"batch_tokens": examples * 16, "accumulate": accumulate}
        check_batch(run_config(train=train), build_mesh(MeshConfig(**sizes)))

    if examples != nearest:
        with pytest.raises(ConfigError, match=f"^train.batch_tokens: .*; the nearest that works is {nearest * 16}$"):
            check(examples)
    check(nearest)


@pytest.mark.parametrize(
    ("mesh", "sections", "stage", "message"),
    [
        ({"fsdp": 8}, {}, {"batch_tokens": 192}, "192 tokens are 12 examples of 16, not divisible by mesh.fsdp = 8; "),
        ({"fsdp": 8}, {}, {"seq_len": 32}, "128 tokens are 4 examples of 32, not divisible by mesh.fsdp = 8; "),
        (
            {"data": 2, "fsdp": 4},
            {"train": {"batch_tokens": 16 * 24, "accumulate": 3}},
            {"batch_tokens": 16 * 99},
            "not divisible by mesh.data x mesh.fsdp x train.accumulate = 2 x 4 x 3 = 24; ",
        ),
        (
            {"pipeline": 2, "fsdp": 4},
            {"pipeline": {"microbatches": 2}},
            {"batch_tokens": 64 * 6, "seq_len": 64},
            "384 tokens are 6 examples of 64, not divisible by mesh.fsdp x pipeline.microbatches = 4 x 2 = 8; ",
        ),
    ],
)
def test_a_stage_whose_batch_does_not_divide_is_named_with_a_number_that_works(mesh, sections, stage, message) -> None:
    mixture = [{"tokens": 1280, "weights": {"web": 1}}] * 2

    def check(stage: dict) -> None:
        config = run_config(mesh={"fsdp": 1} | mesh, data={"mixture": [*mixture, mixture[0] | stage]}, **sections)
        check_shapes(config, build_mesh(config.mesh))

    with pytest.raises(ConfigError, match=rf"^data\.mixture\[2\]\.batch_tokens: .*{message}") as caught:
        check(stage)
    number = int(re.fullmatch(r".*; the nearest that works is (\d+)", str(caught.value))[1])
    check(stage | {"batch_tokens": number})


def test_a_stage_whose_length_does_not_divide_is_named_with_a_number_that_works() -> None:
    stages = [{"tokens": 1280, "weights": {"web": 1}, "seq_len": length} for length in (16, 24, 32)]
    config = run_config(mesh={"context": 8, "fsdp": 1}, data={"mixture": stages}, train={"batch_tokens": 16 * 24})
    with pytest.raises(ConfigError, match=r"^data\.mixture\[1\]\.seq_len: 24 is not a multiple of 16, .* is 32$"):
        check_shapes(config, build_mesh(config.mesh))


@pytest.mark.parametrize(
    ("mesh", "sections", "message"),
    [
        (
            {"pipeline": 4, "fsdp": 2},
            {"pipeline": {"microbatches": 6}},
            "pipeline.microbatches: 6 is not a multiple of mesh.pipeline = 4; the nearest that works is 8",
        ),
        (
            {"pipeline": 2, "fsdp": 2, "expert": 2},
            {"pipeline": {"microbatches": 4}, "train": {"batch_tokens": 24 * 16}},
            r"24 examples of 16, not divisible by mesh.fsdp x mesh.expert x pipeline.microbatches = 2 x 2 x 4 = 16; "
            f"the nearest that works is {32 * 16}",
        ),
        (
            {"context": 8, "fsdp": 1},
            {"data": {"seq_len": 24}, "train": {"batch_tokens": 24 * 8}},
            "data.seq_len: 24 is not a multiple of 16, .* is 32",
        ),
        (
            {"context": 2, "tensor": 4, "fsdp": 1},
            {"data": {"seq_len": 12}, "parallel": {"sequence": True}, "train": {"batch_tokens": 96}},
            "data.seq_len: 12 is not a multiple of 8, .* and mesh.tensor = 4 with parallel.sequence; .* is 16",
        ),
    ],
)
def test_parts_that_do_not_divide_are_named(mesh: dict, sections: dict, message: str) -> None:
    config = run_config(mesh=mesh, **sections)
    with pytest.raises(ConfigError, match=message):
        check_batch(config, build_mesh(config.mesh))


@pytest.mark.parametrize(
    ("model", "pipeline", "repeats", "message"),
    [
        ({"num_layers": 6}, 4, 1, "4 x 1 = 4; num_layers of 4 or 8 works, or pipeline x repeats of 1, 2, 3, 6"),
        ({"num_layers": 2}, 2, 2, "2 x 2 = 4; num_layers of 4 works, or pipeline x repeats of 1, 2"),
        (
            {"num_layers": 9, "window": (3, 3, None)},
            2,
            1,
            "9 layers in 3 groups of 3 are not divisible .* num_layers of 6 or 12 works, or pipeline x repeats of 1, 3",
        ),
    ],
)
def test_layers_that_do_not_divide_over_the_stages_name_what_works(model, pipeline, repeats, message) -> None:
    config = run_config(model=model, mesh={"pipeline": pipeline}, pipeline={"repeats": repeats})
    with pytest.raises(ConfigError, match=message):
        check_layers(config, build_mesh(config.mesh))


def test_repeats_without_a_pipeline_are_refused() -> None:
    config = run_config(pipeline={"repeats": 2})
    with pytest.raises(ConfigError, match="pipeline.repeats: 2 needs a pipeline"):
        check_layers(config, build_mesh(config.mesh))


def test_bubble_is_the_share_of_idle_ticks() -> None:
    config = run_config(mesh={"pipeline": 4}, pipeline={"microbatches": 8, "repeats": 2})
    assert bubble_fraction(config, build_mesh(config.mesh)) == 3 / 19
    assert bubble_fraction(run_config(), build_mesh(MeshConfig())) == 0


def test_slices_that_the_devices_do_not_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="mesh.slices: the devices form 1 slice, found 2; set it to 1"):
        build_mesh(MeshConfig(data=2, slices=2))
