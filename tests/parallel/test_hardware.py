"""The hardware table and the names of slices and clusters."""

import math
from pathlib import Path

import pytest
import yaml
from tiny import run_config

from maxlm.errors import ConfigError
from maxlm.parallel.hardware import CHIPS, SHAPES, chip_of, peak_flops, system, system_names
from maxlm.parallel.mesh import axis_sizes

FILES = Path(__file__).parents[2] / "configs" / "hardware"


@pytest.mark.parametrize(
    ("name", "chip", "devices", "chips", "shape", "topology"),
    [
        ("v5p-128", "v5p", 64, 64, (4, 4, 4), "v5p:4x4x4"),
        ("v5p-2048", "v5p", 1024, 1024, (8, 8, 16), "v5p:8x8x16"),
        ("v4-256", "v4", 128, 128, (4, 4, 8), "v4:4x4x8"),
        ("v5e-256", "v5e", 256, 256, (16, 16), "v5e:16x16"),
        ("v5litepod-16", "v5e", 16, 16, (4, 4), "v5e:4x4"),
        ("v6e-64", "v6e", 64, 64, (8, 8), "v6e:8x8"),
        ("v5p:4x4x12", "v5p", 192, 192, (4, 4, 12), "v5p:4x4x12"),
        # Two devices and two TensorCores a chip.
        ("tpu7x-128", "7x", 128, 64, (4, 4, 4), "tpu7x:4x4x4"),
        ("tpu7x:2x2x1", "7x", 8, 4, (2, 2, 1), "tpu7x:2x2x1"),
        ("h100x1", "h100", 1, 1, (1, 1), None),
        ("h100x64", "h100", 64, 64, (8, 8), None),
        ("a100-80gbx64", "a100-80gb", 64, 64, (8, 8), None),
    ],
)
def test_names_of_systems(name, chip, devices, chips, shape, topology) -> None:
    found = system(name)
    assert (found.chip, found.num_devices, found.num_chips) == (CHIPS[chip], devices, chips)
    assert (found.shape, found.topology) == (shape, topology)


def test_every_name_is_of_a_system_of_its_shape() -> None:
    for name in system_names():
        found = system(name)
        assert math.prod(found.shape) == found.num_chips
    assert len(system_names()) == len(set(system_names()))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5p-100", "v5p-128"),
        ("v5p:4x4", "v5p-8"),  # of three dimensions
        ("h100x12", "h100x16, h100x8"),  # a node and a half
        ("h100-64", "h100x64"),
        ("tpu9-8", ""),
    ],
)
def test_an_unknown_system_is_refused_with_near_names(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"hardware '{name}' is not known.*{near}"):
        system(name)


def test_peaks_are_dense_and_unknown_devices_have_none() -> None:
    assert chip_of("cpu") is None and peak_flops("cpu") is None
    assert peak_flops("NVIDIA H200") == 989.5e12  # the sheet's 1,979 counts sparsity
    assert peak_flops("TPU v5") == peak_flops("TPU v5p") == 459e12
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))


# Of a chip, both directions of all links together, GB/s: cloud.google.com/tpu/docs.
@pytest.mark.parametrize(("name", "stated"), [("v5e", 400), ("v5p", 1200), ("v6e", 800), ("7x", 1200)])
def test_link_bandwidth_adds_up_to_what_is_stated_of_a_chip(name: str, stated: int) -> None:
    chip = CHIPS[name]
    assert chip.link_bandwidth * chip.devices_per_chip * 2 * (2 * chip.torus_dims) == stated * 1e9
    assert all(len(shape.split("x")) == chip.torus_dims for shape in SHAPES[name])


@pytest.mark.parametrize("path", sorted(FILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_files_of_hardware_name_it_and_use_all_of_it(path: Path) -> None:
    config = run_config(**yaml.safe_load(path.read_text()))
    assert config.hardware.name == path.stem
    axis_sizes(config.mesh, system(path.stem).num_devices)  # refuses another product


@pytest.mark.parametrize("name", ["v4-16", "v5e-8", "v5e-1", "v5p-16", "v6e-8", "7x-16"])
def test_libtpu_knows_the_slices_and_their_devices(name: str) -> None:
    pytest.importorskip("libtpu")
    from maxlm.plan.compile import topology_devices

    found = system(name)
    devices = topology_devices(found.topology)
    assert len(devices) == found.num_devices
    assert {device.device_kind for device in devices} <= set(found.chip.kinds)
