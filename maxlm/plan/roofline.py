"""How long a step takes: a roofline over arithmetic, memory and the links of every mesh axis.

    predict(config, system("v5p-128")).step_seconds

Arithmetic takes its FLOPs over the dense peak times one efficiency per family of chips, memory traffic its bytes over
the bandwidth, and each mesh axis its bytes over the slowest link that it crosses. What overlaps:

    max(arithmetic, memory traffic, parameters and gradients on all axes)    these run side by side
    + activations on each axis     sums over tensor, exchanges of experts, keys and values, sends of a pipeline: the
                                   next operation waits for them
    + the update                   the optimizer's memory traffic, after the last gradient

Bubbles of a pipeline are arithmetic: idle stages compute what nobody uses.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maxlm.config import Config
from maxlm.model.counts import flops_per_token
from maxlm.parallel.hardware import Chip, System
from maxlm.parallel.mesh import axis_sizes, bubble_fraction
from maxlm.plan.communication import Layout, layout
from maxlm.plan.work import Work, estimated_work

# Share of the dense peak that a step's FLOPs reach, fitted to published runs by tools/fit_efficiency.py (results in
# benchmarks/2026-11-24-plan-time.md). Other GPUs take the H100's.
EFFICIENCY = {"v4": 0.70, "v5e": 0.77, "v5p": 0.78, "v6e": 0.51, "7x": 0.66, "h100": 0.40}

# A search asks for the same model again and again.
_flops_per_token = functools.lru_cache(maxsize=64)(flops_per_token)

MFU_FORMULA = (
    "6 x (matmul parameters + heads x (key + value dim) x causal keys per layer) x tokens/s / dense {dtype} peak"
)


@dataclass(frozen=True)
class Prediction:
    """Times are of one step, in seconds."""

    step_seconds: float
    parts: dict[str, float]  # what adds up to it
    overlapped: dict[str, float]  # what runs beside arithmetic: memory traffic, and weights by axis
    mfu: float
    mfu_formula: str
    tokens_per_second_per_chip: float


def predict(config: Config, system: System, work: Work | None = None, efficiency: float | None = None) -> Prediction:
    """The time of a step of data.seq_len and train.batch_tokens on `mesh.slices` such TPU slices, or on these GPUs.

    Args:
        work: what a compiled program does (`compiled_work`), in place of the estimate.
        efficiency: in place of the fitted one of the chip's family.

    Raises `ConfigError` where the mesh does not fit the number of devices.
    """
    plan = layout_for(config, system)
    work = estimated_work(plan) if work is None else work
    parts, overlapped = _seconds(work, plan, system, efficiency or efficiency_of(system.chip))
    step = math.fsum(parts.values())
    devices = plan.mesh.size
    chips = devices // system.chip.devices_per_chip
    useful = _flops_per_token(config.model, config.data.seq_len) * config.train.batch_tokens
    return Prediction(
        step_seconds=step,
        parts=parts,
        overlapped=overlapped,
        mfu=useful / step / (_peak(plan, system.chip) * devices),
        mfu_formula=MFU_FORMULA.format(dtype=_compute_type(plan)),
        tokens_per_second_per_chip=config.train.batch_tokens / step / chips,
    )


def layout_for(config: Config, system: System) -> Layout:
    """The configuration's mesh over the devices of a system."""
    slices = config.mesh.slices if system.chip.platform == "tpu" else 1
    return layout(config, axis_sizes(config.mesh, system.num_devices * slices), system.chip.platform)


def efficiency_of(chip: Chip) -> float:
    return EFFICIENCY.get(chip.name, EFFICIENCY["h100"])


def _seconds(work: Work, plan: Layout, system: System, efficiency: float) -> tuple[dict[str, float], dict[str, float]]:
    """(what adds up to the step, what runs beside arithmetic)."""
    chip = system.chip

    def sending(sent: Mapping[str, float]) -> dict[str, float]:
        return {name: size / bandwidth(plan, system, name.split("+")) for name, size in sent.items()}

    arithmetic = work.flops / (_peak(plan, chip) * efficiency)
    weights = sending(work.weights)
    memory = work.memory_bytes / chip.hbm_bandwidth
    bubble = bubble_fraction(plan.config, plan.mesh) * arithmetic if plan.stages > 1 else 0.0
    longest = max(arithmetic, memory, math.fsum(weights.values()))
    parts = {"compute": arithmetic - bubble, "bubble": bubble, "waiting": longest - arithmetic}
    parts |= sending(work.activations)
    parts["update"] = work.update_bytes / chip.hbm_bandwidth
    return parts, {"memory": memory} | weights


def _compute_type(plan: Layout) -> str:
    return "float32" if plan.width == 4 else "bfloat16"


def _peak(plan: Layout, chip: Chip) -> float:
    return chip.flops[_compute_type(plan)]


def bandwidth(plan: Layout, system: System, axes: Sequence[str]) -> float:
    """Bytes/s that one device can send in a collective over these mesh axes together, at their slowest link.

    Beyond a slice, or a node of GPUs, every member within shares the way out: w of them have w times a device's part
    of the network, as far as the links between them carry it.
    """
    chip, slices = system.chip, plan.config.mesh.slices
    crossing = plan.config.mesh.dcn_axis if slices > 1 else None
    inside = {name: size // (slices if name == crossing else 1) for name, size in plan.shape.items()}
    members = math.prod(inside[name] for name in axes)
    if chip.torus_dims:
        links, beyond = chip.link_bandwidth * _links(inside, system, axes), crossing in axes
    else:
        within = _within_node(inside, chip.node, axes)
        links, beyond = chip.link_bandwidth, crossing in axes or within < members
        members = within
    if not beyond:
        return links
    return min(links, members * chip.network_bandwidth) if members > 1 else chip.network_bandwidth


def _within_node(inside: Mapping[str, int], node: int, axes: Sequence[str]) -> int:
    """Members of a group that share a node: mesh axes take GPUs in order, the last axis the nearest ones."""
    members, stride = 1, 1
    for name in reversed(inside):
        if name in axes:
            members *= max(1, min(inside[name], node // stride))
        stride *= inside[name]
    return members


def _links(inside: Mapping[str, int], system: System, axes: Sequence[str]) -> float:
    """Links over which a device of a torus sends at once in a collective over these axes."""
    pieces = _pieces(inside, system)
    return math.fsum(pieces[name] for name in axes) or 1.0


def _pieces(inside: Mapping[str, int], system: System) -> dict[str, float]:
    """Links of every mesh axis: the last axis takes the last dimensions of the torus, and so on to the first.

    A dimension that one axis has whole is a ring, whose two directions work at once, where its ends are joined, else a
    line, whose ends have one link. Of an axis with a part of a dimension, neighbours are `stride` chips apart, and as
    many groups share the links between.
    """
    chip = system.chip
    free = [size for size in (*system.shape, chip.devices_per_chip) if size > 1]
    whole, found = list(free), {}
    for name in reversed(inside):
        need, links = inside[name], 0.0
        exact = [number for number, size in enumerate(free) if size == need > 1]
        order = exact[-1:] or list(reversed(range(len(free))))
        for number in order:
            part = math.gcd(need, free[number])
            if part > 1:
                stride = whole[number] // free[number]
                ring = part == whole[number] and _joined(chip, part)
                links += 2.0 if ring else 1.0 / stride
                need, free[number] = need // part, free[number] // part
        found[name] = links
    return found


def _joined(chip: Chip, size: int) -> bool:
    """Whether a dimension of a slice is closed to a ring: in 2-D pods the full 16, in 3-D ones multiples of 4."""
    return size == 16 if chip.torus_dims == 2 else size % 4 == 0
