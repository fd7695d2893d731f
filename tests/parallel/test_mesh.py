"""Sizes of the mesh, and which batches it can hold."""

import math

import jax
import pytest
from tiny import run_config

from maxlm.config import MeshConfig
from maxlm.errors import ConfigError
from maxlm.parallel.hardware import peak_flops
from maxlm.parallel.mesh import AXES, axis_sizes, build_mesh, check_batch


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("others", [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_minus_one_takes_the_devices_left(axis: str, others: tuple[int, int]) -> None:
    fixed = dict(zip([name for name in AXES if name != axis], others, strict=True))
    assert axis_sizes(MeshConfig(**fixed, **{axis: -1}), 8) == fixed | {axis: 8 // math.prod(others)}


@pytest.mark.parametrize(
    "sizes", [{"data": 2, "fsdp": 2, "tensor": 1}, {"data": 3}, {"data": 16}, {"fsdp": 1}, {"tensor": 5, "fsdp": 2}]
)
def test_sizes_that_do_not_make_the_devices_are_named(sizes: dict[str, int]) -> None:
    config = MeshConfig(**sizes)
    with pytest.raises(ConfigError) as caught:
        axis_sizes(config, 8)
    text = f"mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does not make 8"
    assert str(caught.value).startswith(text)


def test_mesh_holds_every_device_once() -> None:
    mesh = build_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
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
        sizes = dict(zip(AXES, mesh, strict=True))
        train = {"batch_tokens": examples * 16, "accumulate": accumulate}
        check_batch(run_config(train=train), build_mesh(MeshConfig(**sizes)))

    if examples != nearest:
        with pytest.raises(ConfigError, match=f"^train.batch_tokens: .*; the nearest that works is {nearest * 16}$"):
            check(examples)
    check(nearest)


def test_unknown_device_has_no_peak() -> None:
    assert peak_flops("cpu") is None
    assert peak_flops("NVIDIA H200") == 989.5e12  # dense; the sheet's 1,979 counts sparsity
