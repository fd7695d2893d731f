"""What a train step may move between devices, and what must never happen, for any mesh.

Each check takes the transfers of a compiled step and its blueprint, and returns the lines that describe what breaks
the rule; an empty list is a pass. Axes that a mesh does not have pass.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import jax
import numpy as np

from maxlm.parallel import hlo
from maxlm.parallel.sharding import mesh_axes
from maxlm.parallel.traffic import Transfer, totals
from maxlm.plan.communication import BATCH_AXES, STACKED, Layout, layout, limits
from maxlm.train.state import Blueprint

# Below this a buffer is bookkeeping: norms, counters, statistics of the loss.
SMALL = 2**17


def layout_of(plan: Blueprint) -> Layout:
    return layout(plan.config, plan.mesh.shape, plan.mesh.devices.flat[0].platform)


def describe(transfer: Transfer) -> str:
    loops = " x ".join(f"{loop.trips:.0f}" for loop in transfer.loops) or "outside loops"
    size = f"{transfer.bytes / 2**20:.1f} MiB"
    return f"{transfer.axis} {transfer.opcode} of {transfer.shape}, {size} ({loops}), {transfer.where}"


def gathers_outside_layers(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Parameters of layers that are gathered or reduced outside the loop over the layers.

    With zero 1 the new parameters come together there, once.
    """
    weights = _layer_weights(plan)
    renewed = plan.config.parallel.zero == 1
    return [
        describe(t)
        for t in _large(moved)
        if BATCH_AXES & set(t.axes) and not _in_layers(t, plan) and _arrays(t) & weights
        if not (renewed and t.opcode == "all-gather" and t.count == 1)
    ]


def weights_over(axis: str, moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Parameters of layers that travel over an axis that should move activations alone, such as `pipeline`."""
    weights = _layer_weights(plan)
    return [describe(t) for t in _large(moved) if axis in t.axes and _arrays(t) & weights]


def gathers_of_activations(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """What `tensor` moves besides sums of the residual stream; with parallel.sequence, its gathers and scatters too."""
    allowed = {"all-reduce"} | ({"all-gather", "reduce-scatter"} if plan.config.parallel.sequence else set())
    laid = layout_of(plan)
    largest = max(laid.rows, laid.rows_of_stage) * plan.config.model.embed_dim * plan.dtype.itemsize
    return [
        describe(t)
        for t in _large(moved)
        if t.axes == ("tensor",) and (t.opcode not in allowed or _largest_array(t) > largest)
    ]


def repeated_reductions(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Gradients outside the layers that are reduced more than once per microbatch, as the head's per chunk of loss."""
    return [
        describe(t)
        for t in _large(moved)
        if BATCH_AXES & set(t.axes)
        and t.opcode in ("all-reduce", "reduce-scatter")
        and t.count > plan.config.train.accumulate
        and not _in_layers(t, plan)
    ]


def whole_gradients(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Gradients of layers that are summed in full over an axis that shards them: twice the bytes of a scatter."""
    return _summed(moved, _layer_weights(plan))


def whole_tables(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """Gradients of embedding table and output matrix that are summed so."""
    return _summed(moved, _vocabulary_matrices(plan))


def _summed(moved: Iterable[Transfer], forms: set[tuple[int, ...]]) -> list[str]:
    return [describe(t) for t in _large(moved) if "fsdp" in t.axes and t.opcode == "all-reduce" and _arrays(t) & forms]


def between_slices(moved: Iterable[Transfer], plan: Blueprint) -> list[str]:
    """What crosses the data-centre network besides sums of a chip's own part of the gradients."""
    slices = np.vectorize(lambda device: getattr(device, "slice_index", 0))(plan.mesh.devices)
    crossing = {name for number, name in enumerate(plan.mesh.axis_names) if np.ptp(slices, axis=number).any()}
    # The runtime is sent buffers of another shape than the gradients.
    gradients = {math.prod(form) for form in _layer_weights(plan) | _vocabulary_matrices(plan)}
    return [
        describe(t)
        for t in _large(moved)
        if crossing & set(t.axes)
        and (t.opcode != "all-reduce" or set(t.axes) != {"data"} or {math.prod(a) for a in _arrays(t)} - gradients)
    ]


def above_limits(moved: Iterable[Transfer], plan: Blueprint, slack: float = 1.15) -> list[str]:
    """Axes that move more than theory allows, small buffers left out; joint axes count for each of their members.

    The slack is for what the compiler chooses: over 8 chips its windowed loops scatter in 9 steps what takes 7, and
    tables are summed whole. A third gather of the weights would be a third more.
    """
    allowed = limits(layout_of(plan))
    return [
        f"{axis} sends {size / 2**20:.0f} MiB, theory allows {allowed.get(axis, 0.0) / 2**20:.0f}"
        for axis, size in by_axis(moved).items()
        if size > allowed.get(axis, 0.0) * slack
    ]


def by_axis(moved: Iterable[Transfer]) -> dict[str, float]:
    """Bytes of large buffers per axis, in each of joint axes."""
    sums = Counter()
    for name, size in totals(_large(moved)).items():
        sums.update(dict.fromkeys(name.split("+"), size))
    return dict(sums)


def _large(moved: Iterable[Transfer]) -> list[Transfer]:
    return [transfer for transfer in moved if not transfer.size <= SMALL]


def _in_layers(transfer: Transfer, plan: Blueprint) -> bool:
    """Whether it sits in the scan over the blocks, inside those over microbatches and ticks."""
    around = (plan.config.train.accumulate > 1) + (plan.mesh.shape["pipeline"] > 1)
    blocks = layout_of(plan).layers_of_stage / plan.config.model.period
    return len(transfer.loops) > around and transfer.loops[around].trips == blocks


def _arrays(transfer: Transfer) -> set[tuple[int, ...]]:
    shapes = transfer.shape.split(" + ")
    return {_sizes(hlo.dimensions(shape)) for shape in shapes if hlo.num_bytes(shape) > SMALL}


def _largest_array(transfer: Transfer) -> float:
    return max(hlo.num_bytes(shape) for shape in transfer.shape.split(" + "))


def _sizes(shape: Iterable[int]) -> tuple[int, ...]:
    """Sizes without their order and without ones: the compiler transposes as it likes."""
    return tuple(sorted(size for size in shape if size > 1))


def _forms(shape: tuple[int, ...], names: tuple[str, ...], plan: Blueprint) -> set[tuple[int, ...]]:
    """Sizes of a parameter with each of its axes whole or split over some of its mesh axes."""
    choices = []
    for size, name in zip(shape, names, strict=True):
        axes = [plan.mesh.shape[axis] for axis in mesh_axes(name, plan.mesh, size)]
        some = itertools.chain.from_iterable(itertools.combinations(axes, count) for count in range(len(axes) + 1))
        choices.append({size // math.prod(parts) for parts in some})
    return {_sizes(form) for form in itertools.product(*choices)}


def _leaves(plan: Blueprint) -> Iterable[tuple[jax.ShapeDtypeStruct, tuple[str, ...]]]:
    axes = jax.tree.leaves(plan.axes, is_leaf=lambda node: isinstance(node, tuple))
    return zip(jax.tree.leaves(plan.abstract.params), axes, strict=True)


def _layer_weights(plan: Blueprint) -> set[tuple[int, ...]]:
    """Forms of the layers' matrices, one layer or all of them."""
    forms = set()
    for leaf, names in _leaves(plan):
        stack = len(STACKED & set(names))
        if stack and "norm" not in names:
            forms |= _forms(leaf.shape, names, plan) | _forms(leaf.shape[stack:], names[stack:], plan)
    return forms


def _vocabulary_matrices(plan: Blueprint) -> set[tuple[int, ...]]:
    return set().union(*(_forms(leaf.shape, names, plan) for leaf, names in _leaves(plan) if "vocab" in names))
