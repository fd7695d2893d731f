"""Every legal way to lay a step out: meshes x remat x microbatches, for the search.

A candidate is the configuration itself with another `mesh`, `remat.policy`, `train.accumulate` and `pipeline`; what the
model computes and the tokens of a step stay as they are. `within` restricts keys to values:

    candidates(config, system, {"mesh.tensor": [1, 2], "remat.policy": ["full"]})
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maxlm.config import Config, MeshConfig, PipelineConfig
from maxlm.errors import ConfigError
from maxlm.parallel.hardware import System
from maxlm.parallel.mesh import check_layers, check_shapes
from maxlm.parallel.sharding import check_divisible
from maxlm.plan import memory
from maxlm.plan.communication import Layout
from maxlm.plan.roofline import layout_for

REMAT = ("none", "dots", ("query", "key", "value", "attention"), "full")
# Larger axes make products too narrow, or let most of a pipeline wait.
MAX_TENSOR, MAX_PIPELINE, MAX_REPEATS, MAX_CONTEXT = 16, 16, 8, 16
LONG = 32768  # tokens; shorter sequences are better split by rows

Within = Mapping[str, Sequence[Any]]


def candidates(config: Config, system: System, within: Within | None = None) -> Iterator[Config]:
    """The legal variants of the configuration on this hardware."""
    within = within or {}
    for mesh in _meshes(config, system, within):
        for pipeline in _pipelines(config, mesh, within):
            laid_out = config.model_copy(update={"mesh": mesh, "pipeline": pipeline})
            if not _divides(laid_out, system):
                continue
            for accumulate in _accumulations(laid_out, within):
                for policy in _allowed(within, "remat.policy", REMAT):
                    yield laid_out.model_copy(
                        update={
                            "train": config.train.model_copy(update={"accumulate": accumulate}),
                            "remat": config.remat.model_copy(update={"policy": policy}),
                        }
                    )


def _meshes(config: Config, system: System, within: Within) -> Iterator[MeshConfig]:
    devices, model, moe = system.num_devices * config.mesh.slices, config.model, config.model.moe
    # Heads, key/value heads or whole groups of them; within an NVLink domain, where there is one.
    widest = min(MAX_TENSOR, model.num_heads, devices if system.chip.torus_dims else system.chip.node)
    options = {
        "pipeline": _divisors(model.num_blocks, MAX_PIPELINE),
        "context": _powers(MAX_CONTEXT) if max(length for _, length in config.shapes) >= LONG else [1],
        "expert": _divisors(moe.num_experts, moe.num_experts) if moe else [1],
        "tensor": _powers(widest),
        "data": _powers(devices),
    }
    options = {axis: _allowed(within, f"mesh.{axis}", sizes) for axis, sizes in options.items()}

    def fill(axes: list[str], chosen: dict[str, int], left: int) -> Iterator[dict[str, int]]:
        if not axes:
            if left in _allowed(within, "mesh.fsdp", [left]):
                yield chosen | {"fsdp": left}
            return
        for size in options[axes[0]]:
            if left % size == 0:
                yield from fill(axes[1:], chosen | {axes[0]: size}, left // size)

    for sizes in fill(list(options), {}, devices):
        if sizes[config.mesh.dcn_axis] % config.mesh.slices == 0:
            yield config.mesh.model_copy(update=sizes)


def _pipelines(config: Config, mesh: MeshConfig, within: Within) -> Iterator[PipelineConfig]:
    if mesh.pipeline == 1:
        yield PipelineConfig()
        return
    possible = _divisors(config.model.num_blocks // mesh.pipeline, MAX_REPEATS)
    for times in _powers(8):
        for repeats in _allowed(within, "pipeline.repeats", possible):
            microbatches = mesh.pipeline * times
            if microbatches in _allowed(within, "pipeline.microbatches", [microbatches]):
                yield config.pipeline.model_copy(update={"microbatches": microbatches, "repeats": repeats})


def _accumulations(config: Config, within: Within) -> Iterator[int]:
    """Powers of two up to one sequence per device and microbatch; a pipeline has microbatches of its own."""
    axes, schedule = config.mesh.axes, config.pipeline
    shards = math.prod(axes[name] for name in ("pipeline", "data", "fsdp", "expert"))
    rows, left = divmod(
        math.gcd(config.batch_size, *(size for size, _ in config.shapes)), shards * schedule.microbatches
    )
    if left or not rows:
        return
    counts = _powers(rows) if axes["pipeline"] == 1 else [1]
    for count in _allowed(within, "train.accumulate", counts):
        if rows % count == 0:
            yield count


def _divides(config: Config, system: System) -> bool:
    """Whether the step can be built so, before accumulation."""
    unsplit = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": 1})})
    try:
        check_layout(unsplit, system)
    except ConfigError:
        return False
    return True


def check_layout(config: Config, system: System) -> Layout:
    """The configuration laid out on the hardware; raises `ConfigError` where a size of any stage does not divide."""
    found = layout_for(config, system)
    check_shapes(config, found.mesh)
    check_layers(config, found.mesh)
    for _, leaf, names in found.leaves:
        check_divisible(names, leaf.shape, found.mesh)
    return found


def needed_bytes(config: Config, system: System) -> float:
    """Estimated memory of a device at the fullest moment of any stage's step."""
    layouts = (layout_for(config.with_shape(*shape), system) for shape in config.shapes)
    return max(sum(memory.estimate(layout).values()) for layout in layouts)


def _divisors(number: int, largest: int) -> list[int]:
    return [size for size in range(1, min(number, largest) + 1) if number % size == 0]


def _powers(number: int) -> list[int]:
    """Powers of two up to a number."""
    return [2**power for power in range(number.bit_length()) if 2**power <= number]


def _allowed(within: Within, key: str, values: Sequence[Any]) -> list[Any]:
    """What is left of the values where the key is restricted; a value asked for by name is taken as it is."""
    if key not in within:
        return list(values)
    return [value for value in within[key] if key == "remat.policy" or value in values]
