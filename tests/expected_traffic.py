"""What a train step may move between devices, and what must never happen, for any mesh.

Each check takes the transfers of a compiled step and its blueprint, and returns the lines that describe what breaks
the rule; an empty list is a pass. Axes that a mesh does not have pass.
"""

import itertools
import math
from collections.abc import Iterable

import jax

from maxlm.parallel import hlo
from maxlm.parallel.sharding import RULES
from maxlm.parallel.traffic import Transfer, totals
from maxlm.train.state import Blueprint

# Below this a buffer is bookkeeping: norms, counters, statistics of the loss.
SMALL = 2**17
BATCH_AXES = set(RULES["batch"])


def describe(transfer: Transfer) -> str:
    loops = " x ".join(f"{loop.trips:.0f}" for loop in transfer.loops) or "outside loops"
    size = f"{transfer.bytes / 2**20:.1f} MiB"
    return f"{transfer.axis} {transfer.opcode} of {transfer.shape}, {size} ({loops}), {transfer.where}"


def gathers_outside_layers(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Parameters of layers that are gathered or reduced outside the loop over the layers."""
    weights = _layer_weights(plan)
    return [
        describe(transfer)
        for transfer in _large(moved)
        if BATCH_AXES & set(transfer.axes) and not _in_layers(transfer, plan) and _arrays(transfer) & weights
    ]


def weights_over(axis: str, moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Parameters that travel over an axis that should move activations alone, such as `pipeline`."""
    weights = _layer_weights(plan) | _vocabulary_matrices(plan)
    return [describe(t) for t in _large(moved) if axis in t.axes and _arrays(t) & weights]


def gathers_of_activations(moved: Iterable[Transfer], plan: Blueprint, sequence: bool = False) -> list[str]:
    """What `tensor` moves besides sums of the residual stream (with `sequence`, its gathers and scatters too)."""
    allowed = {"all-reduce"} | ({"all-gather", "reduce-scatter"} if sequence else set())
    largest = _residual(plan) * 4
    return [
        describe(t)
        for t in _large(moved)
        if t.axes == ("tensor",) and (t.opcode not in allowed or _largest_array(t) > largest)
    ]


def repeated_reductions(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Gradients outside the layers that are reduced more than once per microbatch, as the head's per chunk of loss."""
    return [
        describe(transfer)
        for transfer in _large(moved)
        if BATCH_AXES & set(transfer.axes)
        and transfer.opcode in ("all-reduce", "reduce-scatter")
        and transfer.count > plan.config.train.accumulate
        and not _in_layers(transfer, plan)
    ]


def whole_gradients(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Gradients of layers that are summed in full over an axis that shards them: twice the bytes of a scatter."""
    weights = _layer_weights(plan)
    return [
        describe(transfer)
        for transfer in _large(moved)
        if "fsdp" in transfer.axes and transfer.opcode == "all-reduce" and _arrays(transfer) & weights
    ]


def limits(plan: Blueprint) -> dict[str, float]:
    """Bytes per step and chip that theory allows, by axis.

    fsdp: every parameter gathered for the forward and the backward pass, its gradient scattered once, per microbatch
    in the compute type. data: the gradients of a chip's parameters summed once, in float32 (per microbatch). tensor:
    two sums of the residual stream per layer in either direction, two more where the layer is recomputed, and four for
    embedding and head.
    """
    shape, count, width = plan.mesh.shape, plan.config.train.accumulate, plan.dtype.itemsize
    fsdp, data, tensor = (shape.get(axis, 1) for axis in ("fsdp", "data", "tensor"))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.abstract.params)) / tensor
    sums = plan.config.model.num_layers * (4 if plan.config.remat.policy == "none" else 6) + 4
    found = {
        "fsdp": 3 * (fsdp - 1) / fsdp * parameters * width * count,
        "data": 2 * (data - 1) / data * parameters / fsdp * 4 * count,
        "tensor": 2 * (tensor - 1) / tensor * _residual(plan) * width * sums * count,
    }
    return {axis: size for axis, size in found.items() if size}


def above_limits(moved: Iterable[Transfer], plan: Blueprint, slack: float = 1.1) -> list[str]:
    """Axes that move more than theory allows, small buffers left out; joint axes count for each of their members."""
    sums: dict[str, float] = {}
    for name, size in totals(_large(moved)).items():
        for axis in name.split("+"):
            sums[axis] = sums.get(axis, 0.0) + size
    allowed = limits(plan)
    return [
        f"{axis} sends {size / 2**20:.0f} MiB, theory allows {allowed.get(axis, 0.0) / 2**20:.0f}"
        for axis, size in sums.items()
        if size > allowed.get(axis, 0.0) * slack
    ]


def _large(moved: Iterable[Transfer]) -> list[Transfer]:
    return [transfer for transfer in moved if not transfer.size <= SMALL]


def _in_layers(transfer: Transfer, plan: Blueprint) -> bool:
    """Whether it sits in the scan over the layers; tests choose other numbers of chunks and microbatches."""
    repeats = plan.config.model.num_layers // len(plan.config.model.window_pattern)
    return any(loop.trips == repeats for loop in transfer.loops)


def _residual(plan: Blueprint) -> float:
    """Elements of the residual stream of one microbatch on one chip."""
    shards = math.prod(plan.mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    config = plan.config
    return config.batch_size / config.train.accumulate / shards * config.data.seq_len * config.model.embed_dim


def _arrays(transfer: Transfer) -> set[tuple[int, ...]]:
    return {_sizes(hlo.dimensions(shape)) for shape in transfer.shape.split(" + ")}


def _largest_array(transfer: Transfer) -> float:
    return max(hlo.num_bytes(shape) for shape in transfer.shape.split(" + "))


def _sizes(shape: Iterable[int]) -> tuple[int, ...]:
    """Sizes without their order and without ones: the compiler transposes as it likes."""
    return tuple(sorted(size for size in shape if size > 1))


def _forms(shape: tuple[int, ...], names: tuple[str, ...], plan: Blueprint) -> set[tuple[int, ...]]:
    """Sizes of a parameter with each of its axes whole or split over its mesh axes."""
    choices = []
    for size, name in zip(shape, names, strict=True):
        parts = math.prod(plan.mesh.shape.get(axis, 1) for axis in RULES[name])
        choices.append({size, size // parts})
    return {_sizes(form) for form in itertools.product(*choices)}


def _matrices(plan: Blueprint) -> Iterable[tuple[tuple[int, ...], tuple[str, ...]]]:
    axes = jax.tree.leaves(plan.axes, is_leaf=lambda node: isinstance(node, tuple))
    for leaf, names in zip(jax.tree.leaves(plan.abstract.params), axes, strict=True):
        if "norm" not in names:
            yield leaf.shape, names


def _layer_weights(plan: Blueprint) -> set[tuple[int, ...]]:
    """Forms of the layers' matrices, one layer or all of them."""
    forms = set()
    for shape, names in _matrices(plan):
        if names[0] == "layers":
            forms |= _forms(shape, names, plan) | _forms(shape[1:], names[1:], plan)
    return forms


def _vocabulary_matrices(plan: Blueprint) -> set[tuple[int, ...]]:
    return set().union(*(_forms(shape, names, plan) for shape, names in _matrices(plan) if "vocab" in names))
