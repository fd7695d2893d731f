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
from maxlm.parallel.sharding import GATHERED, RULES, mesh_axes
from maxlm.parallel.traffic import Transfer, totals
from maxlm.train.state import Blueprint

# Below this a buffer is bookkeeping: norms, counters, statistics of the loss.
SMALL = 2**17
# Axes whose devices see different tokens, so that gradients are summed over them.
BATCH_AXES = {*RULES["batch"], *RULES["sequence"]}
STACKED = {"repeats", "layers"}


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
    largest = max(_rows(plan), _rows_of_stage(plan)) * plan.config.model.embed_dim * plan.dtype.itemsize
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


def limits(plan: Blueprint) -> dict[str, float]:
    """Bytes per step and chip that theory allows, by axis; what is moved over joint axes counts for each of them."""
    found = Counter()
    for part in (_parameter_limits, _residual_limits, _context_limits, _expert_limits):
        found.update(part(plan))
    return {axis: size for axis, size in found.items() if size}


def _parameter_limits(plan: Blueprint) -> Counter:
    """Every parameter is gathered for the forward and for the backward pass, and its gradient scattered, over the axes
    that split it, in the compute type and per microbatch; of vocabulary matrices gradients are float32. Zero 1 gathers
    nothing but the new parameters, once. data: a chip's part of the gradients is summed in float32.

    A pipeline does so at every tick, in bubbles too, for the layers of one repeat; a recomputed stage gathers thrice.
    """
    config, shape, found = plan.config, plan.mesh.shape, Counter()
    for leaf, names in _leaves(plan):
        split = {name: mesh_axes(name, plan.mesh, size) for name, size in zip(names, leaf.shape, strict=True)}
        sharders = [axis for name in GATHERED & set(names) for axis in split[name]]
        shards = math.prod(shape[axis] for axis in sharders)
        others = math.prod(shape[axis] for name in set(names) - GATHERED for axis in split[name])
        whole, stacked = math.prod(leaf.shape) / others, bool(STACKED & set(names))
        times = config.train.accumulate * (_ticks(plan) / config.pipeline.repeats if stacked else 1)
        gathers = 2 + (stacked and _stages_recompute(plan))
        width, gradient = plan.dtype.itemsize, 4 if "vocab" in names else plan.dtype.itemsize
        if config.parallel.zero == 3:
            passes = (gathers * width + gradient) * times
        else:
            passes = leaf.dtype.itemsize + gradient * times
        found.update({axis: (shards - 1) / shards * whole * passes for axis in sharders})
        found["data"] += 2 * (1 - 1 / shape["data"]) * whole / shards * 4 * times
    return found


def _residual_limits(plan: Blueprint) -> Counter:
    """tensor: two sums of the residual stream per layer in either direction, two more where the layer is recomputed,
    and four for embedding and head. With parallel.sequence each sum is a scatter and a gather, as many bytes.

    pipeline: at every tick each stage hands its output to the next one and an input that waits to the one before; with
    repeats, an input of the next repeat too. The backward pass returns as much. Parameters stay where they are.
    """
    config, width, tensor = plan.config, plan.dtype.itemsize, plan.mesh.shape["tensor"]
    embed, count = config.model.embed_dim, config.train.accumulate
    sums = (2 + 2 * _forward_passes(plan)) * _layers_of_stage(plan) * _ticks(plan) * _rows_of_stage(plan)
    found = Counter(tensor=2 * (1 - 1 / tensor) * (sums + 4 * _rows(plan)) * embed * width * count)
    if plan.mesh.shape["pipeline"] > 1:
        handed_on = 2 * (3 if config.pipeline.repeats > 1 else 2)
        split = tensor if config.parallel.sequence else 1
        found["pipeline"] = handed_on * _ticks(plan) * _rows_of_stage(plan) / split * embed * width * count
    return found


def _context_limits(plan: Blueprint) -> Counter:
    """context, for every layer with S tokens of a chip's own: keys and values of S go to each of the c - 1 others, in
    the forward pass and in its recomputation. all_gather: their gradients come back from as many, in float32. ring:
    the backward pass sends keys and values round once more, and gradients in float32 all the way home, c steps.
    """
    config, context, tensor = plan.config, plan.mesh.shape["context"], plan.mesh.shape["tensor"]
    if context == 1:
        return Counter()
    model, width = config.model, plan.dtype.itemsize
    both = 2 * _rows_of_stage(plan) * max(1, model.num_kv_heads / tensor) * model.head_dim
    passes = _forward_passes(plan)
    if config.parallel.context == "ring":
        moved = (context - 1) * (passes + 1) * width + context * 4
    else:
        moved = (context - 1) * (passes * width + 4)
    return Counter(context=both * moved * _layers_of_stage(plan) * _ticks(plan) * config.train.accumulate)


def _expert_limits(plan: Blueprint) -> Counter:
    """expert, for every layer with experts: rows go out and come back, in the forward pass, in its recomputation and
    in the backward pass. A buffer is counted as full. The one in which a device receives is as large as the worst case:
    all rows of all x devices on one, as far as different experts of a token allow. The one from which it sends is as
    large where it is padded, and where it is ragged it has a row per chosen expert.
    """
    config, experts = plan.config, plan.mesh.shape["expert"]
    if experts == 1 or config.model.moe is None:
        return Counter()
    moe, tokens = config.model.moe, _rows_of_stage(plan)
    worst = experts * tokens * min(moe.experts_per_token, moe.num_experts // experts)
    sent = worst if config.parallel.exchange == "padded" else tokens * moe.experts_per_token
    layers = _layers_of_stage(plan) / moe.every * _ticks(plan) * config.train.accumulate
    passes = _forward_passes(plan) + 1
    size = (1 - 1 / experts) * (sent + worst) * config.model.embed_dim * plan.dtype.itemsize
    return Counter(expert=size * passes * layers)


def above_limits(moved: Iterable[Transfer], plan: Blueprint, slack: float = 1.15) -> list[str]:
    """Axes that move more than theory allows, small buffers left out; joint axes count for each of their members.

    The slack is for what the compiler chooses: over 8 chips its windowed loops scatter in 9 steps what takes 7, and
    tables are summed whole. A third gather of the weights would be a third more.
    """
    allowed = limits(plan)
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
    blocks = _layers_of_stage(plan) / plan.config.model.period
    return len(transfer.loops) > around and transfer.loops[around].trips == blocks


def _layers_of_stage(plan: Blueprint) -> float:
    """Layers that one run of a stage has."""
    model, parts = plan.config.model, plan.mesh.shape["pipeline"] * plan.config.pipeline.repeats
    return model.num_blocks * model.period / parts


def _ticks(plan: Blueprint) -> int:
    """Runs of a stage per microbatch of the optimizer step."""
    stages, schedule = plan.mesh.shape["pipeline"], plan.config.pipeline
    return schedule.microbatches * schedule.repeats + stages - 1 if stages > 1 else 1


def _stages_recompute(plan: Blueprint) -> bool:
    schedule = plan.config.pipeline
    return plan.mesh.shape["pipeline"] > 1 and (schedule.remat_stages or schedule.repeats > 1)


def _forward_passes(plan: Blueprint) -> int:
    """Times that a layer is computed forward."""
    return 1 + (plan.config.remat.policy != "none") + _stages_recompute(plan)


def _rows(plan: Blueprint) -> float:
    """Rows of the residual stream, tokens, of one microbatch on one chip."""
    shards = math.prod(plan.mesh.shape[axis] for axis in BATCH_AXES)
    return plan.config.train.batch_tokens / plan.config.train.accumulate / shards


def _rows_of_stage(plan: Blueprint) -> float:
    """The same where layers are computed: a pipeline's stage has one of its microbatches, of all stages' rows."""
    stages = plan.mesh.shape["pipeline"]
    return _rows(plan) * (stages / plan.config.pipeline.microbatches if stages > 1 else 1)


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
