"""The device mesh: one mesh for everything, its axes in the order of how much they talk (least first)."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from maxlm.config import Config, MeshConfig
from maxlm.errors import ConfigError
from maxlm.parallel.sharding import RULES

AXES = tuple(MeshConfig().axes)


def axis_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Size of every axis, with -1 resolved; raises `ConfigError` unless their product is the device count."""
    fixed = math.prod(size for size in config.axes.values() if size != -1)
    resolved = {axis: num_devices // fixed if size == -1 else size for axis, size in config.axes.items()}
    if math.prod(resolved.values()) != num_devices:
        text = " x ".join(f"{axis} {size}" for axis, size in config.axes.items() if size != 1) or "every axis 1"
        raise ConfigError(
            f"mesh: {text} does not make {num_devices}, the number of devices; the product of the axes must equal it, "
            "and one axis may be -1 for what is left"
        )
    return resolved


def build_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (default: all), laid out along the hardware's links."""
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    by = _joined_by(config, devices)
    # An axis may take a part of a torus dimension: 2 x 8 x 4 is a mesh of 4 x 4 x 4 chips too.
    options = {"devices": devices, "allow_split_physical_axes": True}
    if config.slices == 1:
        layout = mesh_utils.create_device_mesh(tuple(sizes.values()), **options)
    else:
        over_dcn = _slices_by_axis(config, sizes)
        within = [size // over_dcn[axis] for axis, size in sizes.items()]
        options["process_is_granule"] = by == "process_index"
        layout = mesh_utils.create_hybrid_device_mesh(within, tuple(over_dcn.values()), **options)
    return Mesh(layout, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _joined_by(config: MeshConfig, devices: Sequence[jax.Device]) -> str:
    """What devices of one slice have in common; raises `ConfigError` where they do not form so many slices.

    JAX numbers the slices of TPUs, and hosts or NVLink domains elsewhere; there processes may stand for slices too.
    One slice may span several hosts there: their axes over the network are in the order of the mesh.
    """
    counts = {name: len({getattr(device, name, 0) for device in devices}) for name in ("slice_index", "process_index")}
    on_tpu = devices[0].platform == "tpu"
    if counts["slice_index"] == config.slices or (config.slices == 1 and not on_tpu):
        return "slice_index"
    if counts["process_index"] == config.slices and not on_tpu:
        return "process_index"
    found = counts["slice_index"]
    raise ConfigError(
        f"mesh.slices: the devices form {found} slice{'s' * (found > 1)}, found {config.slices}; set it to {found}, or "
        "other axes would cross the data-centre network"
    )


def _slices_by_axis(config: MeshConfig, sizes: dict[str, int]) -> dict[str, int]:
    """Parts of every axis that lie on different slices: `slices` for the axis that may cross, 1 for the others."""
    axis, size = config.dcn_axis, sizes[config.dcn_axis]
    if size % config.slices:
        raise ConfigError(
            f"mesh.{axis}: {size} is not a multiple of mesh.slices = {config.slices}, so other axes would cross the "
            f"data-centre network; make mesh.{axis} a multiple of {config.slices}, or choose another mesh.dcn_axis"
        )
    return {name: config.slices if name == axis else 1 for name in AXES}


def check_shapes(config: Config, mesh: Mesh) -> None:
    """`check_batch` for the batch of the configuration and those of all stages."""
    check_batch(config, mesh)
    for number, stage in enumerate(config.data.mixture):
        keys = (f"data.mixture[{number}].{key}" for key in ("batch_tokens", "seq_len"))
        check_batch(config.with_shape(*config.shape_of(stage)), mesh, *keys)


def check_batch(
    config: Config, mesh: Mesh, batch_key: str = "train.batch_tokens", length_key: str = "data.seq_len"
) -> None:
    """Every microbatch must divide evenly over the devices that share the batch, and every sequence over theirs.

    Errors name the keys that the batch and the length of a sequence were set by, and the nearest value that works.
    """
    stages, sizes = mesh.shape["pipeline"], {name: mesh.shape[name] for name in RULES["batch"][1:]}
    microbatches = config.pipeline.microbatches if stages > 1 else 1
    if microbatches % stages:
        nearest = max(1, round(microbatches / stages)) * stages
        raise ConfigError(
            f"pipeline.microbatches: {microbatches} is not a multiple of mesh.pipeline = {stages}; "
            f"the nearest that works is {nearest}; the more there are, the less the stages idle"
        )
    factors = {f"mesh.{name}": size for name, size in sizes.items()}
    factors |= {"train.accumulate": config.train.accumulate, "pipeline.microbatches": microbatches}
    unit = math.prod(factors.values())
    if config.batch_size % unit:
        used = {name: size for name, size in factors.items() if size > 1}
        product = f"{' x '.join(used)} = {' x '.join(map(str, used.values()))}" + f" = {unit}" * (len(used) > 1)
        nearest = max(1, round(config.batch_size / unit)) * unit * config.data.seq_len
        raise ConfigError(
            f"{batch_key}: {config.train.batch_tokens} tokens are {config.batch_size} examples of "
            f"{config.data.seq_len}, not divisible by {product}; the nearest that works is {nearest}"
        )
    _check_sequence(config, mesh, length_key)


def _check_sequence(config: Config, mesh: Mesh, key: str) -> None:
    context, tensor = mesh.shape["context"], mesh.shape["tensor"]
    # Each context shard holds an early and a late part of the sequence (see `batch.sequence_order`).
    parts = 2 if context > 1 else 1, tensor if config.parallel.sequence else 1, config.remat.mlp_chunks
    unit = context * math.lcm(*parts)
    if config.data.seq_len % unit:
        nearest = max(1, round(config.data.seq_len / unit)) * unit
        raise ConfigError(
            f"{key}: {config.data.seq_len} is not a multiple of {unit}, needed by mesh.context = {context}"
            + (f" and mesh.tensor = {tensor} with parallel.sequence" if config.parallel.sequence else "")
            + (f" and remat.mlp_chunks = {config.remat.mlp_chunks}" if config.remat.mlp_chunks > 1 else "")
            + f"; the nearest that works is {nearest}"
        )


def check_layers(config: Config, mesh: Mesh) -> None:
    """The groups of layers must divide evenly over the stages and repeats of the pipeline."""
    model, stages, repeats = config.model, mesh.shape["pipeline"], config.pipeline.repeats
    if stages == 1 and repeats > 1:
        raise ConfigError(f"pipeline.repeats: {repeats} needs a pipeline; set it to 1, or mesh.pipeline above 1")
    blocks, parts = model.num_blocks, stages * repeats
    if blocks % parts == 0:
        return
    layers = [model.first_layers + model.period * parts * count for count in (blocks // parts, blocks // parts + 1)]
    possible = [str(count) for count in range(1, blocks + 1) if blocks % count == 0]
    grouped = f" in {blocks} groups of {model.period}" if model.period > 1 else ""
    raise ConfigError(
        f"model.num_layers: {model.num_layers} layers{grouped} are not divisible by mesh.pipeline x pipeline.repeats = "
        f"{stages} x {repeats} = {parts}; num_layers of {' or '.join(str(count) for count in layers if count)} works, "
        f"or pipeline x repeats of {', '.join(possible)}"
    )


def bubble_fraction(config: Config, mesh: Mesh) -> float:
    """Share of the pipeline's ticks in which a stage has nothing to do: (p - 1) / (m r + p - 1)."""
    idle = mesh.shape["pipeline"] - 1
    return idle / (config.pipeline.microbatches * config.pipeline.repeats + idle)
