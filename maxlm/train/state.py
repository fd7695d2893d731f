"""Everything of a run that lives on the devices, its abstract form, and where its parts are sharded."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.config import Config
from maxlm.model import decoder
from maxlm.parallel.sharding import check_divisible, named_sharding, tree_shardings
from maxlm.train import optimizer
from maxlm.train.faults import Window, empty_window


class Sums(NamedTuple):
    """What accumulates between two lines of the metrics; set to zero when the host takes it."""

    nll: jax.Array  # float32 [sources], nats
    targets: jax.Array  # uint32 [sources], target tokens
    skipped: jax.Array  # int32, steps


class TrainState(NamedTuple):
    params: dict
    optimizer: Any
    window: Window
    sums: Sums


@dataclass(frozen=True)
class Blueprint:
    """What the step is made of besides arrays: structure, optimizer, logical axes and shardings."""

    config: Config
    num_sources: int
    mesh: Mesh
    graphdef: nnx.GraphDef
    axes: dict
    transform: optax.GradientTransformation
    abstract: TrainState  # shapes and types
    shardings: TrainState
    dtype: Any


def compute_dtype(config: Config, platform: str) -> Any:
    """The type of activations and matrix products; `auto` is bfloat16 where the device has fast units for it."""
    name = config.precision.compute
    return jnp.dtype(("float32" if platform == "cpu" else "bfloat16") if name == "auto" else name)


def blueprint(config: Config, mesh: Mesh, num_sources: int) -> Blueprint:
    """Lay out a run on a mesh without touching a device; raises `ConfigError` where a size does not divide."""
    dtype = compute_dtype(config, mesh.devices.flat[0].platform)
    options = {"params_dtype": jnp.dtype(config.precision.params), "dtype": dtype, "remat": config.remat.policy}
    graphdef, shapes, axes = decoder.abstract(config.model, **options)
    _check_shapes(shapes, axes, mesh)
    transform = optimizer.build(config.optimizer, axes)
    abstract = jax.eval_shape(lambda: _initial(config, transform, num_sources))
    replicated = NamedSharding(mesh, PartitionSpec())
    params = tree_shardings(axes, mesh)
    moments = optax.tree_map_params(
        transform,
        lambda moment, sharding: moment if isinstance(moment, optax.MaskedNode) else sharding,
        abstract.optimizer,
        params,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    rest = jax.tree.map(lambda _: replicated, (abstract.window, abstract.sums))
    shardings = TrainState(params, moments, *rest)
    return Blueprint(config, num_sources, mesh, graphdef, axes, transform, abstract, shardings, dtype)


def initial_state(plan: Blueprint) -> TrainState:
    """The state before the first step, computed under jit straight into its shards; equal on every mesh."""
    with jax.set_mesh(plan.mesh):
        initial = jax.jit(lambda: _initial(plan.config, plan.transform, plan.num_sources), out_shardings=plan.shardings)
        return initial()


def abstract_state(plan: Blueprint) -> TrainState:
    """The state as shapes, types and shardings: what a step is compiled for and a checkpoint restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        plan.abstract,
        plan.shardings,
    )


def abstract_batch(plan: Blueprint) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch [B, S] of a step as shapes, types and shardings."""
    size, length = plan.config.batch_size, plan.config.data.seq_len
    types = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), jnp.int32) | {"weights": jnp.float32}
    rows = named_sharding(("batch", None), plan.mesh)
    batch = {name: jax.ShapeDtypeStruct((size, length), dtype, sharding=rows) for name, dtype in types.items()}
    return batch | {"sources": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=named_sharding(("batch",), plan.mesh))}


def replicated_scalar(plan: Blueprint, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype, sharding=NamedSharding(plan.mesh, PartitionSpec()))


def empty_sums(num_sources: int) -> Sums:
    return Sums(jnp.zeros((num_sources,), jnp.float32), jnp.zeros((num_sources,), jnp.uint32), jnp.int32(0))


def _initial(config: Config, transform: optax.GradientTransformation, num_sources: int) -> TrainState:
    dtype = jnp.dtype(config.precision.params)
    params = decoder.initial_parameters(config.model, jax.random.key(config.seed), params_dtype=dtype)
    return TrainState(params, transform.init(params), empty_window(config.faults), empty_sums(num_sources))


def _check_shapes(shapes: dict, axes: dict, mesh: Mesh) -> None:
    for shape, names in zip(
        jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=lambda n: isinstance(n, tuple)), strict=True
    ):
        check_divisible(names, shape.shape, mesh)
