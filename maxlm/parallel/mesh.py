"""The device mesh: one mesh for everything, its axes in the order of how much they talk (least first)."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from maxlm.config import Config, MeshConfig
from maxlm.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


def axis_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Size of every axis, with -1 resolved; raises `ConfigError` unless their product is the device count."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    resolved = {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}
    if math.prod(resolved.values()) != num_devices:
        text = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ConfigError(
            f"mesh: {text} does not make {num_devices}, the number of devices; the product of the axes must equal it, "
            "and one axis may be -1 for what is left"
        )
    return resolved


def build_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (default: all), laid out along the hardware's links."""
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    # An axis may take a part of a torus dimension: 2 x 8 x 4 is a mesh of 4 x 4 x 4 chips too.
    layout = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(layout, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(config: Config, mesh: Mesh) -> None:
    """Every microbatch must divide evenly over the devices that share the batch."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = shards * config.train.accumulate
    if config.batch_size % unit:
        nearest = max(1, round(config.batch_size / unit)) * unit * config.data.seq_len
        parts = f"{mesh.shape['data']} x {mesh.shape['fsdp']} x {config.train.accumulate} = {unit}"
        raise ConfigError(
            f"train.batch_tokens: {config.train.batch_tokens} tokens are {config.batch_size} examples of "
            f"{config.data.seq_len}, not divisible by mesh.data x mesh.fsdp x train.accumulate = {parts}; "
            f"the nearest that works is {nearest}"
        )
