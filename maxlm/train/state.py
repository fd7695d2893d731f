"""Everything of a run that lives on the devices, its abstract form, and where its parts are sharded."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm import saved
from maxlm.config import Config, DoremiConfig, ModelConfig, validate
from maxlm.errors import ConfigError
from maxlm.model import decoder, kernels
from maxlm.parallel.agreement import everywhere
from maxlm.parallel.batch import BATCH_AXES
from maxlm.parallel.mesh import check_layers
from maxlm.parallel.sharding import check_divisible, named_sharding, replicated
from maxlm.train import doremi, ema, optimizer
from maxlm.train.doremi import Domains
from maxlm.train.ema import Average
from maxlm.train.faults import Window, empty_window

DEVICE_MEMORY, HOST_MEMORY = "device", "pinned_host"


class Sums(NamedTuple):
    """What accumulates between two lines of the metrics; set to zero when the host takes it."""

    nll: jax.Array  # float32 [sources], nats
    targets: jax.Array  # uint32 [sources], target tokens
    skipped: jax.Array  # int32, steps
    load: dict[str, jax.Array]  # uint32 [blocks, experts] per position with experts: tokens that each expert processed
    dropped: jax.Array  # int32, assignments of tokens to experts that were not processed
    excess: jax.Array | None = None  # float32 [sources], excess loss in nats, of a proxy run (doremi.py)


def expert_load(sums: Sums) -> dict[str, Any]:
    """Fields of a line of the metrics, from sums on the host; none for a model without experts.

    Every expert's share of the assignments of all layers, the fullest expert of any layer as a multiple of that
    layer's mean, and the assignments that were dropped.
    """
    if not sums.load:
        return {}
    load_LE = np.concatenate([np.asarray(load, np.float64) for load in sums.load.values()])
    fullest = np.max(load_LE.max(1) / np.maximum(load_LE.mean(1), 1))
    share_E = load_LE.sum(0) / max(load_LE.sum(), 1)
    return {"expert_load": share_E.tolist(), "expert_max_load": float(fullest), "expert_dropped": int(sums.dropped)}


class TrainState(NamedTuple):
    params: dict
    optimizer: Any
    window: Window
    sums: Sums
    domains: Domains | None = None  # of a proxy run
    ema: Average | None = None  # with optimizer.ema

    @property
    def counters(self) -> tuple:
        """What a checkpoint holds besides parameters, moments and average; domain weights, where there are any."""
        return (self.window, self.sums) if self.domains is None else (self.window, self.sums, self.domains)


@dataclass(frozen=True)
class Blueprint:
    """What the step is made of besides arrays: structure, optimizer, logical axes and shardings."""

    config: Config
    num_sources: int
    mesh: Mesh
    graphdef: nnx.GraphDef
    axes: dict  # logical axes of the parameters, as gradients and moments are sharded
    state_axes: TrainState  # of everything, as it is stored between steps
    transform: optax.GradientTransformation
    abstract: TrainState  # shapes and types
    shardings: TrainState
    dtype: Any
    reference: "Blueprint | None" = None  # of a proxy run: the reference on the same mesh, of which no state is made


def compute_dtype(config: Config, platform: str) -> Any:
    """The type of activations and matrix products; `auto` is bfloat16 where the device has fast units for it."""
    name = config.precision.compute
    return jnp.dtype(("float32" if platform == "cpu" else "bfloat16") if name == "auto" else name)


def blueprint(config: Config, mesh: Mesh, num_sources: int) -> Blueprint:
    """Lay out a run on a mesh without touching a device; raises `ConfigError` where a size does not divide.

    Of a proxy run the reference's configuration is read from its checkpoint.
    """
    check_layers(config, mesh)
    device = mesh.devices.flat[0]
    dtype = compute_dtype(config, device.platform)
    kernels.chosen(config, mesh.shape, device.platform, dtype.name)  # what cannot be honoured is said before a compile
    options = {
        "params_dtype": jnp.dtype(config.precision.params),
        "dtype": dtype,
        "remat": config.remat.policy,
        "mlp_chunks": config.remat.mlp_chunks,
        "pipeline": config.pipeline,
        "parallel": config.parallel,
        "platform": device.platform,
        "device_kind": device.device_kind,
        "attention": config.kernels.attention,
        "documents": config.data.mask_documents,
    }
    graphdef, shapes, axes = decoder.abstract(config.model, **options)
    jax.tree.map(lambda leaf, names: check_divisible(names, leaf.shape, mesh), shapes, axes)
    transform = optimizer.build(config.optimizer, axes)
    abstract = jax.eval_shape(lambda: _initial(config, transform, num_sources))
    stored = axes if config.parallel.zero == 3 else jax.tree.map(lambda _, names: replicated(names), shapes, axes)
    average = abstract.ema and Average(axes, ())
    state_axes = TrainState(stored, _moment_axes(transform, abstract, axes), *_unsharded(abstract[2:-1]), average)
    shardings = jax.tree.map(lambda leaf, names: named_sharding(names, mesh, leaf.shape), abstract, state_axes)
    if config.remat.policy == "offload":
        check_host_memory(mesh.devices.flat[0], "remat.policy", "full")
    if config.optimizer.offload:
        check_host_memory(mesh.devices.flat[0], "optimizer.offload", "null")
        kept = {name: _on_host(getattr(abstract, name), getattr(shardings, name)) for name in ("optimizer", "ema")}
        shardings = shardings._replace(**kept)
    reference = _reference(config, mesh, num_sources, dtype) if _is_proxy(config) else None
    layout = axes, state_axes, transform, abstract, shardings
    return Blueprint(config, num_sources, mesh, graphdef, *layout, dtype, reference)


def _is_proxy(config: Config) -> bool:
    return isinstance(config.data.dynamic, DoremiConfig)


def _reference(config: Config, mesh: Mesh, num_sources: int, dtype: Any) -> Blueprint:
    """The reference's model run as this configuration says, with parameters in the type of the computation."""
    path = config.data.dynamic.reference
    values = config.model_dump(mode="json") | {"model": saved.find(path).model.model_dump(mode="json")}
    values["data"] |= {"dynamic": None}
    values["precision"] |= {"params": dtype.name}
    where = f"data.dynamic.reference {path}, run with this configuration"
    try:
        return blueprint(validate(values, Config, where), mesh, num_sources)
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _moment_axes(transform: optax.GradientTransformation, abstract: TrainState, axes: dict) -> Any:
    return optax.tree_map_params(
        transform,
        lambda moment, names: moment if isinstance(moment, optax.MaskedNode) else names,
        abstract.optimizer,
        axes,
        transform_non_params=_unsharded,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def _unsharded(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (None,) * len(leaf.shape), tree)


def check_host_memory(device: jax.Device, key: str, instead: str) -> None:
    """Raise `ConfigError` where the platform has no memory of the host that a program can use, as `key` asks for."""
    kinds = {memory.kind for memory in device.addressable_memories()}
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"{key}: {device.device_kind} offers {', '.join(sorted(kinds))} memory and no {HOST_MEMORY}; "
            f"set it to {instead}"
        )


def _on_host(arrays: Any, shardings: Any) -> Any:
    """Shardings in the hosts' memory, but for scalars."""
    return jax.tree.map(lambda leaf, s: s.with_memory_kind(HOST_MEMORY) if leaf.shape else s, arrays, shardings)


def initial_state(plan: Blueprint) -> TrainState:
    """The state before the first step, computed under jit straight into its shards; equal on every mesh."""
    with jax.set_mesh(plan.mesh):
        initial = jax.jit(lambda: _initial(plan.config, plan.transform, plan.num_sources), out_shardings=plan.shardings)
        return initial()


def state_around(params: dict, plan: Blueprint, moments: Any | None = None) -> TrainState:
    """The state before the first step of a run that begins with these parameters, which are as the run has them, and
    with these moments, or none yet."""
    given = (params,) if moments is None else (params, moments)
    begin = jax.jit(
        lambda params: tuple(_around(params, plan.config, plan.transform, plan.num_sources))[len(given) :],
        out_shardings=tuple(plan.shardings)[len(given) :],
    )
    with jax.set_mesh(plan.mesh):
        return TrainState(*given, *begin(params))


def initial_tables(plan: Blueprint) -> dict[str, jax.Array]:
    """Of the initial parameters those that have a row or a column per token, by their names, and no others."""
    names = [name for name, axes in plan.axes.items() if "vocab" in axes]

    def tables() -> dict[str, jax.Array]:
        params = _parameters(plan.config)
        return {name: params[name] for name in names}

    with jax.set_mesh(plan.mesh):
        return jax.jit(tables, out_shardings={name: plan.shardings.params[name] for name in names})()


def abstract_state(plan: Blueprint) -> TrainState:
    """The state as shapes, types and shardings: what a step is compiled for and a checkpoint restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        plan.abstract,
        plan.shardings,
    )


def abstract_inputs(plan: Blueprint) -> tuple:
    """What the compiled step takes, as shapes, types and shardings: state, batch, learning rate, and of a proxy run the
    reference's parameters."""
    inputs = abstract_state(plan), abstract_batch(plan), replicated_scalar(plan, jnp.float32)
    return inputs if plan.reference is None else (*inputs, abstract_state(plan.reference).params)


def abstract_batch(plan: Blueprint) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch [B, S] of a step as shapes, types and shardings."""
    size, length = plan.config.batch_size, plan.config.data.seq_len
    types = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), jnp.int32) | {"weights": jnp.float32}
    types |= {"prefix": jnp.bool_} if plan.config.data.has_prefixes else {}
    tokens, rows = (named_sharding(axes, plan.mesh) for axes in (BATCH_AXES, BATCH_AXES[:1]))
    batch = {name: jax.ShapeDtypeStruct((size, length), dtype, sharding=tokens) for name, dtype in types.items()}
    return batch | {"sources": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=rows)}


def replicated_scalar(plan: Blueprint, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype, sharding=NamedSharding(plan.mesh, PartitionSpec()))


def empty_sums(model: ModelConfig, num_sources: int, excess: bool = False) -> Sums:
    positions = [p for p in range(model.period) if model.has_experts(model.first_layers + p)]
    load = {str(p): jnp.zeros((model.num_blocks, model.moe.num_experts), jnp.uint32) for p in positions}
    nll, targets = jnp.zeros((num_sources,), jnp.float32), jnp.zeros((num_sources,), jnp.uint32)
    return Sums(nll, targets, jnp.int32(0), load, jnp.int32(0), nll if excess else None)


def _initial(config: Config, transform: optax.GradientTransformation, num_sources: int) -> TrainState:
    return _around(_parameters(config), config, transform, num_sources)


def _parameters(config: Config) -> dict:
    options = {"params_dtype": jnp.dtype(config.precision.params), "pipeline": config.pipeline}
    return decoder.initial_parameters(config.model, jax.random.key(config.seed), **options)


def _around(params: dict, config: Config, transform: optax.GradientTransformation, num_sources: int) -> TrainState:
    sums = empty_sums(config.model, num_sources, _is_proxy(config))
    domains = doremi.start(config.data) if _is_proxy(config) else None
    average = None if config.optimizer.ema is None else ema.start(params)
    # Moments in float32, as gradients are, whatever the type of the parameters.
    moments = transform.init(jax.tree.map(lambda p: p.astype(jnp.float32), params))
    return TrainState(params, moments, empty_window(config.faults), sums, domains, average)


def canonical_axes(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Logical axes of an array as a checkpoint holds it: layers in one row, whatever the pipeline's repeats."""
    return axes[1:] if axes[:1] == ("repeats",) else axes


def parameter_axes(plan: Blueprint) -> dict:
    """Logical axes of the parameters in a checkpoint's layout."""
    return jax.tree.map(lambda _, names: canonical_axes(names), plan.abstract.params, plan.axes)


def abstract_canonical(plan: Blueprint, num_sources: int | None = None) -> TrainState:
    """The state in a checkpoint's layout, sharded over this run's mesh; of a run of so many sources (default: this)."""

    def leaf_of(leaf, names, sharding):
        names, shape = canonical_axes(names), leaf.shape if canonical_axes(names) == names else _merged(leaf.shape)
        place = named_sharding(names, plan.mesh, shape).with_memory_kind(sharding.memory_kind)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)

    abstract = plan.abstract
    if num_sources is not None:
        sums = jax.eval_shape(lambda: empty_sums(plan.config.model, num_sources, _is_proxy(plan.config)))
        abstract = abstract._replace(sums=sums)
    return jax.tree.map(leaf_of, abstract, plan.state_axes, plan.shardings)


def with_sources(sums: Sums, old: list[str], new: list[str], plan: Blueprint) -> Sums:
    """Sums of a run with the sources `old` as those of one with `new`: by name, and 0 for those that were added."""
    if old == new:
        return sums

    def moved(values: jax.Array, place: NamedSharding) -> jax.Array:
        by_name = dict(zip(old, np.asarray(values), strict=True))
        return everywhere(np.array([by_name.get(name, 0) for name in new], values.dtype), place)

    places = plan.shardings.sums
    return sums._replace(nll=moved(sums.nll, places.nll), targets=moved(sums.targets, places.targets))


def to_canonical(state: TrainState, plan: Blueprint) -> TrainState:
    """The state in a checkpoint's layout; arrays that have it already are returned as they are."""
    wanted = abstract_canonical(plan)
    return _placed(state, wanted, jax.tree.map(lambda leaf: leaf.sharding, wanted))


def from_canonical(state: TrainState, plan: Blueprint) -> TrainState:
    """The inverse of `to_canonical`; an average that the plan keeps and the state has not begins anew."""
    lacking = {"ema": None} if state.ema is None else {}
    wanted, places = plan.abstract._replace(**lacking), plan.shardings._replace(**lacking)
    state = _placed(state, wanted, places)
    return with_average(state, plan) if lacking else state


def with_average(state: TrainState, plan: Blueprint) -> TrainState:
    """The state with an average that begins as the parameters are, where the plan keeps one."""
    if plan.abstract.ema is None:
        return state
    with jax.set_mesh(plan.mesh):
        return state._replace(ema=jax.jit(ema.start, out_shardings=plan.shardings.ema)(state.params))


def averaged_parameters(state: TrainState, plan: Blueprint) -> dict:
    """The average as parameters that a program takes: in the devices' memory, wherever it is kept."""
    places = jax.tree.map(lambda place: place.with_memory_kind(DEVICE_MEMORY), plan.shardings.ema.params)
    return jax.device_put(state.ema.params, places)


def restored_parameters(params: dict, plan: Blueprint) -> dict:
    """Parameters in a checkpoint's layout as a run has them."""
    return _placed(params, plan.abstract.params, plan.shardings.params)


def restored_moments(moments: Any, plan: Blueprint) -> Any:
    """Likewise of the optimizer's state."""
    return _placed(moments, plan.abstract.optimizer, plan.shardings.optimizer)


def _placed(tree: Any, abstract: Any, shardings: Any) -> Any:
    """The tree with the shapes of `abstract`; arrays that have theirs already are returned as they are.

    The others go through one program, which is kept: one for each array would compile as many, and on virtual CPU
    devices dozens of them behind a step stop the process (see maxlm/parallel/runtime.py).
    """
    leaves, structure = jax.tree.flatten(tree)
    shapes = [wanted.shape for wanted in jax.tree.leaves(abstract)]
    places = jax.tree.leaves(shardings)
    others = [i for i, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True)) if leaf.shape != shape]
    if others:
        reshape = _reshape(tuple(shapes[i] for i in others), tuple(places[i] for i in others))
        for i, leaf in zip(others, reshape([leaves[i] for i in others]), strict=True):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


@functools.cache
def _reshape(shapes: tuple[tuple[int, ...], ...], places: tuple[NamedSharding, ...]) -> Callable[[list], list]:
    """Kept, since a new function would be compiled at every checkpoint."""
    return jax.jit(lambda leaves: [x.reshape(s) for x, s in zip(leaves, shapes, strict=True)], out_shardings=[*places])


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0] * shape[1], *shape[2:])
