"""On which devices, and in which type, a model decodes."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maxlm.config import MeshConfig, ModelConfig, validate
from maxlm.errors import ConfigError
from maxlm.evaluate.load import Loaded, find_source, load_source
from maxlm.model import decoder
from maxlm.parallel.hardware import chip_of
from maxlm.parallel.mesh import axis_sizes, build_mesh
from maxlm.parallel.sharding import check_divisible
from maxlm.saved import PARAMS

AXES = ("data", "fsdp", "expert", "tensor")  # decoding splits neither layers nor sequences
DTYPES = ("bfloat16", "float32")
WEIGHTS_SHARE = 0.5  # of a device's memory; the rest is for caches and for what the programs need


def open_model(path: Path, mesh: str | None, dtype: str | None, texts: int, weights: str = PARAMS) -> Loaded:
    """The model of a run or checkpoint, placed for decoding so many texts at one time.

    Args:
        mesh: as in data=2,tensor=4; None for `default_mesh`.
        dtype: of activations, caches and of the matrices in memory; None for what the run says (precision.compute),
            with auto bfloat16 on accelerators and float32 on a CPU.
        weights: params, or ema for the average of them that the run kept.
    """
    source, devices = find_source(path, weights), jax.devices()
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype: found {dtype}, expected {' or '.join(DTYPES)}")
    if dtype is None and source.compute != "auto":
        dtype = source.compute
    dtype = dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16")
    if mesh is None:
        placed = default_mesh(source.model, devices, texts, jnp.dtype(dtype).itemsize)
    else:
        placed = named_mesh(mesh, devices)
    return load_source(source, mesh=placed, dtype=dtype)


def named_mesh(text: str, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of a text such as data=2,tensor=4, over as many of the devices; one axis may be -1 for what is left."""
    sizes = dict.fromkeys(MeshConfig().axes, 1)
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or not size.lstrip("-").isdecimal():
            raise ConfigError(f"--mesh {text}: found '{part}', expected AXIS=SIZE with an axis of {', '.join(AXES)}")
        sizes[name] = int(size)
    config = validate(sizes, MeshConfig, f"--mesh {text}")
    count = len(devices) if -1 in sizes.values() else math.prod(sizes.values())
    if count > len(devices):
        raise ConfigError(f"--mesh {text}: needs {count} devices, found {len(devices)}")
    axis_sizes(config, count)
    return build_mesh(config, devices[:count])


def default_mesh(model: ModelConfig, devices: Sequence[jax.Device], texts: int, itemsize: int) -> Mesh:
    """As many copies of the model as there are texts and its weights leave room for, each split over `tensor`.

    Texts beside each other cost no communication, and a model that is split over more devices is read faster: the
    least split whose weights fit, or a larger one where texts would leave devices idle. On a CPU one device, since
    virtual ones share its cores. Devices over which the model cannot be split stay idle.
    """
    if devices[0].platform == "cpu":
        return build_mesh(MeshConfig(), devices[:1])
    _, shapes, _ = decoder.abstract(model)
    weights = itemsize * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    chip = chip_of(devices[0].device_kind)
    memory = math.inf if chip is None else WEIGHTS_SHARE * chip.hbm_bytes
    splits = [size for size in range(1, len(devices) + 1) if _can_split(model, devices, size)]
    enough = (size for size in splits if weights / size <= memory and len(devices) // size <= texts)
    tensor = next(enough, splits[-1])
    data = max(1, min(len(devices) // tensor, texts))
    return build_mesh(MeshConfig(fsdp=1, data=data, tensor=tensor), devices[: data * tensor])


def _can_split(model: ModelConfig, devices: Sequence[jax.Device], size: int) -> bool:
    if len(devices) % size:
        return False
    _, shapes, axes = decoder.abstract(model)
    mesh = build_mesh(MeshConfig(fsdp=1, tensor=size), devices[:size])
    try:
        jax.tree.map(lambda leaf, names: check_divisible(names, leaf.shape, mesh), shapes, axes)
    except ConfigError:
        return False
    return True
