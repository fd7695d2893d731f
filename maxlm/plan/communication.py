"""Bytes that one chip sends per step, by mesh axis: from the configuration and the axes' sizes, nothing compiled.

`expected` is what a step is planned with, `limits` the most that theory allows. They are one set of formulas and
differ in three places: an exchange of experts' rows sends the rows that there are, or full buffers; gradients of
layers, and of gathered keys and values, are summed in the compute type, as XLA does, or in float32; sums over `tensor`
that nothing needs are left out, or counted.

Bytes are those of ring algorithms, as `maxlm/parallel/traffic.py` counts them in a compiled program: of n devices each
sends (n - 1) / n of the whole for a gather or a scatter, and twice that for a sum. What runs over several axes together
has their joint name, "fsdp+expert", as there.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from maxlm.config import Config, ModelConfig, PipelineConfig
from maxlm.model import decoder
from maxlm.parallel.sharding import GATHERED, NARROW, RULES, mesh_axes

# Axes whose devices see different tokens, so that gradients are summed over them.
BATCH_AXES = frozenset({*RULES["batch"], *RULES["sequence"]})
STACKED = frozenset({"repeats", "layers"})

Leaves = tuple[tuple[tuple[str, ...], jax.ShapeDtypeStruct, tuple[str | None, ...]], ...]


@dataclass(frozen=True)
class Layout:
    """A run laid out on a mesh of which only the sizes are known."""

    config: Config
    mesh: AbstractMesh
    platform: str = "tpu"  # tpu | cuda | cpu; on CPU `auto` computes in float32 and pads exchanges

    @property
    def shape(self) -> Mapping[str, int]:
        return self.mesh.shape

    @property
    def width(self) -> int:
        """Bytes of one number of the activations."""
        name = self.config.precision.compute
        return jnp.dtype(("float32" if self.platform == "cpu" else "bfloat16") if name == "auto" else name).itemsize

    @property
    def leaves(self) -> Leaves:
        """Path, shape and logical axes of every parameter."""
        return _leaves(self.config.model, self.config.precision.params, self.config.pipeline)

    @property
    def stages(self) -> int:
        return self.shape["pipeline"]

    @property
    def layers_of_stage(self) -> float:
        """Layers that one run of a stage has."""
        model, parts = self.config.model, self.stages * self.config.pipeline.repeats
        return model.num_blocks * model.period / parts

    @property
    def ticks(self) -> int:
        """Runs of a stage per microbatch of the optimizer step."""
        schedule = self.config.pipeline
        return schedule.microbatches * schedule.repeats + self.stages - 1 if self.stages > 1 else 1

    @property
    def stages_recompute(self) -> bool:
        schedule = self.config.pipeline
        return self.stages > 1 and (schedule.remat_stages or schedule.repeats > 1)

    @property
    def forward_passes(self) -> int:
        """Times that a layer is computed forward."""
        return 1 + (self.config.remat.policy != "none") + self.stages_recompute

    @property
    def last_product_recomputed(self) -> bool:
        """Whether the backward pass of a layer needs the result of its last product: where a norm follows."""
        return self.config.model.norm_place != "before"

    @property
    def rows(self) -> float:
        """Rows of the residual stream, tokens, of one microbatch on one chip."""
        shards = math.prod(self.shape[axis] for axis in BATCH_AXES)
        return self.config.train.batch_tokens / self.config.train.accumulate / shards

    @property
    def rows_of_stage(self) -> float:
        """The same where layers are computed: a pipeline's stage has one of its microbatches, of all stages' rows."""
        return self.rows * (self.stages / self.config.pipeline.microbatches if self.stages > 1 else 1)

    def split(self, names: tuple[str | None, ...], shape: tuple[int, ...]) -> dict[str | None, tuple[str, ...]]:
        """The mesh axes that split each logical axis of a parameter."""
        return {name: mesh_axes(name, self.mesh, size) for name, size in zip(names, shape, strict=True)}

    def size(self, axes) -> int:
        """Number of devices over these mesh axes."""
        return math.prod(self.shape[axis] for axis in axes)


def layout(config: Config, sizes: Mapping[str, int], platform: str = "tpu") -> Layout:
    """A layout on a mesh of these sizes (`maxlm.parallel.mesh.axis_sizes` resolves a configuration's)."""
    return Layout(config, AbstractMesh(tuple(sizes.values()), tuple(sizes)), platform)


@functools.lru_cache(maxsize=64)
def _leaves(model: ModelConfig, params_dtype: str, schedule: PipelineConfig) -> Leaves:
    _, shapes, axes = decoder.abstract(model, params_dtype=jnp.dtype(params_dtype), pipeline=schedule)
    names = jax.tree.leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(shapes), strict=True)
    keys = [tuple(str(entry.key) for entry in path) for path in paths]
    return tuple(zip(keys, leaves, names, strict=True))


@dataclass(frozen=True)
class Traffic:
    """Bytes per step and chip by mesh axis, joint axes by their joint name."""

    weights: Counter = field(default_factory=Counter)  # parameters and gradients
    activations: Counter = field(default_factory=Counter)

    @property
    def total(self) -> dict[str, float]:
        return {axis: size for axis, size in (self.weights + self.activations).items() if size}


def expected(plan: Layout) -> Traffic:
    """Bytes per step and chip."""
    return _traffic(plan, worst=False)


def limits(plan: Layout) -> dict[str, float]:
    """Bytes per step and chip that theory allows; what moves over joint axes counts for each of them."""
    found = Counter()
    for name, size in _traffic(plan, worst=True).total.items():
        found.update(dict.fromkeys(name.split("+"), size))
    return dict(found)


def _traffic(plan: Layout, worst: bool) -> Traffic:
    activations = _residuals(plan, worst) + _keys_and_values(plan, worst) + _exchanges(plan, worst)
    return Traffic(_parameters(plan, worst), activations)


def _parameters(plan: Layout, worst: bool) -> Counter:
    """Every parameter is gathered for the forward and for the backward pass, and its gradient scattered, over the axes
    that split it, in the compute type and per microbatch; of vocabulary matrices gradients are float32. Zero 1 gathers
    nothing but the new parameters, once. data, and what a latent is too narrow for: a chip's part of the gradients is
    summed.

    A pipeline does so at every tick, in bubbles too, for the layers of one repeat; a recomputed stage gathers thrice.
    """
    config, found = plan.config, Counter()
    for _, leaf, names in plan.leaves:
        split = plan.split(names, leaf.shape)
        sharders = [axis for name in split if name in GATHERED for axis in split[name]]
        shards = plan.size(sharders)
        others = plan.size(axis for name in split if name not in GATHERED for axis in split[name])
        whole, stacked = math.prod(leaf.shape) / others, bool(STACKED & set(names))
        times = config.train.accumulate * (plan.ticks / config.pipeline.repeats if stacked else 1)
        gathers = 2 + (stacked and plan.stages_recompute)
        gradient = 4 if "vocab" in names else plan.width
        if config.parallel.zero == 3:
            passes = (gathers * plan.width + gradient) * times
        else:
            passes = leaf.dtype.itemsize + gradient * times
        found["+".join(axis for axis in plan.shape if axis in sharders)] += (shards - 1) / shards * whole * passes
        summed = 4 if worst else gradient
        undivided = set(RULES["embed"]) - set(sharders) if NARROW & set(names) else set()
        for axis in ("data", *undivided):
            found[axis] += 2 * (1 - 1 / plan.shape[axis]) * whole / shards * summed * times
    return +found  # without what is nothing


def _residuals(plan: Layout, worst: bool) -> Counter:
    """tensor: two sums of the residual stream per layer in either direction, and again where the layer is recomputed
    (one, where nothing needs the last), and one each for the embedding and for the gradient of what the head reads;
    the limit is two of these and two more. With parallel.sequence each sum is a scatter and a gather, as many bytes.
    Latents are summed besides; where queries are made of one too, in place of what attention reads.

    pipeline: at every tick each stage hands its output to the next one and an input that waits to the one before; with
    repeats, an input of the next repeat too. The backward pass returns as much. Parameters stay where they are.
    """
    config, tensor = plan.config, plan.shape["tensor"]
    model, count, policy = config.model, config.train.accumulate, config.remat.policy
    embed = model.embed_dim
    again = 2.0 * (plan.forward_passes - 1)
    if not worst and policy != "none":
        again -= not plan.last_product_recomputed
        again -= isinstance(policy, tuple) and "attention_out" in policy
    sums = (4 + again) * embed + model.latent_width * (2 if worst else 1)
    if model.latent is not None and model.latent.query_rank is not None and not worst:
        sums -= embed
    sums *= plan.layers_of_stage * plan.ticks * plan.rows_of_stage
    outside = (4 if worst else 2) * plan.rows * embed
    found = Counter(tensor=2 * (1 - 1 / tensor) * (sums + outside) * plan.width * count)
    if plan.stages > 1:
        handed_on = 2 * (3 if config.pipeline.repeats > 1 else 2)
        split = tensor if config.parallel.sequence else 1
        found["pipeline"] = handed_on * plan.ticks * plan.rows_of_stage / split * embed * plan.width * count
    return +found


def _keys_and_values(plan: Layout, worst: bool) -> Counter:
    """context, for every layer with S tokens of a chip's own: keys and values of S go to each of the c - 1 others, in
    the forward pass and in its recomputation. all_gather: their gradients come back from as many, by the limit in
    float32. ring: the backward pass sends keys and values round once more, and gradients in float32 all the way home,
    c steps.
    """
    config, context = plan.config, plan.shape["context"]
    if context == 1:
        return Counter()
    model = config.model
    heads = max(1, model.num_kv_heads / plan.shape["tensor"])
    both = plan.rows_of_stage * heads * (model.head_dim + model.value_dim)
    if config.parallel.context == "ring":
        moved = (context - 1) * (plan.forward_passes + 1) * plan.width + context * 4
    else:
        moved = (context - 1) * (plan.forward_passes * plan.width + (4 if worst else plan.width))
    return Counter(context=both * moved * plan.layers_of_stage * plan.ticks * config.train.accumulate)


def _exchanges(plan: Layout, worst: bool) -> Counter:
    """expert, for every layer with experts: rows go out and come back, in the forward pass, in its recomputation and
    in the backward pass. A ragged exchange sends a row per chosen expert. Its limit is a full buffer, as a compiled
    program shows it: the one in which a device receives is as large as the worst case, all rows of all x devices on
    one, as far as different experts of a token allow. A padded exchange does send full buffers, both ways.
    """
    config, experts = plan.config, plan.shape["expert"]
    moe = config.model.moe
    if experts == 1 or moe is None:
        return Counter()
    exchange = config.parallel.exchange
    padded = exchange == "padded" or (exchange == "auto" and plan.platform == "cpu")
    chosen = plan.rows_of_stage * moe.experts_per_token
    full = experts * plan.rows_of_stage * min(moe.experts_per_token, moe.num_experts // experts)
    out, back = full if padded else chosen, full if padded or worst else chosen
    layers = plan.layers_of_stage / moe.every * plan.ticks * config.train.accumulate
    passes = plan.forward_passes + 1
    size = (1 - 1 / experts) * (out + back) * config.model.embed_dim * plan.width
    return Counter(expert=size * passes * layers)
