"""Where arrays live: one table from logical axes to mesh axes, used for parameters and activations alike.

Model code names what an axis means ("heads", "embed"); this table alone says which mesh axes it is split over.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from maxlm.errors import ConfigError

# The mesh axes that only share the batch shard the parameters as well, or every parameter would stand on each of them.
SHARDERS = ("fsdp", "context", "expert")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("pipeline", "data", "fsdp", "expert"),
    "sequence": ("context",),
    "sequence_split": ("context", "tensor"),  # of the residual stream, with parallel.sequence
    # parameters
    "vocab": ("tensor",),
    "positions": (),
    "table_embed": ("pipeline", *SHARDERS),  # tables and output matrix, which no stage owns
    "embed": SHARDERS,
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "query_rank": SHARDERS,  # width of a latent, where a matrix widens it: as many of these as divide it
    "kv_rank": SHARDERS,
    "latent": (),  # and where a matrix makes it
    "mlp": ("tensor",),
    "norm": (),  # scales and biases of the residual stream's width, or of a head's
    "experts": ("expert",),
    "expert_embed": ("fsdp", "context"),
    "experts_router": (),
    "layers": ("pipeline",),
    "repeats": (),
}

# Axes of parameters that are gathered where they are used; parallel.zero = 1 does not split them in the first place.
GATHERED = frozenset({"table_embed", "embed", "expert_embed", "query_rank", "kv_rank"})

# Axes shorter than meshes are wide, 512 in DeepSeek's models: what does not divide them replicates them.
NARROW = frozenset({"query_rank", "kv_rank"})

# The configuration key that sets the length of a logical axis, for error messages.
CONFIG_KEYS = {
    "vocab": "model.vocab_size",
    "table_embed": "model.embed_dim",
    "embed": "model.embed_dim",
    "expert_embed": "model.embed_dim",
    "heads": "model.num_heads",
    "kv_heads": "model.num_kv_heads",
    "mlp": "model.mlp_dim",
    "experts": "model.moe.num_experts",
    "layers": "model.num_layers",
}

# The mesh as it was before the `manual` whose function is being traced: its automatic axes are those that it split.
_mesh_of_manual: ContextVar[AbstractMesh | None] = ContextVar("mesh_of_manual", default=None)

LogicalAxes = Sequence[str | None]
AnyMesh = Mesh | AbstractMesh


def partition_spec(
    axes: LogicalAxes, mesh: AnyMesh, shape: Sequence[int] | None = None, ignored: Sequence[str] = ()
) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes.

    Mesh axes of size 1 are left out, those in `ignored`, and those that a surrounding `shard_map` has split already.
    With a shape, key/value heads that are fewer than the tensor shards, and divide them, are replicated; what is narrow
    is split over the first mesh axes that divide it.

    Raises ValueError naming both logical axes when two of them claim one mesh axis.
    """
    claimed: dict[str, str] = {}
    entries: list[tuple[str, ...] | None] = []
    for number, axis in enumerate(axes):
        names = mesh_axes(axis, mesh, None if shape is None else shape[number])
        names = tuple(name for name in names if name not in ignored)
        for name in names:
            if name in claimed:
                raise ValueError(f"logical axes '{claimed[name]}' and '{axis}' both claim the mesh axis '{name}'")
            claimed[name] = axis
        entries.append(names or None)
    return PartitionSpec(*entries)


def mesh_axes(axis: str | None, mesh: AnyMesh | None = None, size: int | None = None) -> tuple[str, ...]:
    """The mesh axes that split a logical axis of this size, on the mesh given or set by `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if axis is None or mesh.empty:
        return ()
    names = tuple(name for name in RULES[axis] if mesh.shape.get(name, 1) > 1 and name not in _manual_axes(mesh))
    while axis in NARROW and size is not None and size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    shards = math.prod(mesh.shape[name] for name in names)
    replicated = axis == "kv_heads" and size is not None and size < shards and shards % size == 0
    return () if replicated else names


def _manual_axes(mesh: AnyMesh) -> set[str]:
    return {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Manual}


def named_sharding(axes: LogicalAxes, mesh: Mesh, shape: Sequence[int] | None = None) -> NamedSharding:
    return NamedSharding(mesh, partition_spec(axes, mesh, shape))


def tree_shardings(axes: dict, shapes: dict, mesh: Mesh) -> dict:
    """Shardings of a nested dict of parameters, given the dicts of their logical axes and of their shapes."""
    return jax.tree.map(lambda leaf, names: named_sharding(names, mesh, leaf.shape), shapes, axes)


def replicated(axes: LogicalAxes) -> tuple[str | None, ...]:
    """The logical axes of a parameter once it is gathered for use."""
    return tuple(None if axis in GATHERED else axis for axis in axes)


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation inside jit to the mesh set by `jax.set_mesh`; without a mesh, return it unchanged."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(mesh.axis_names) - _manual_axes(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, mesh, x.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def reshard(x: jax.Array, axes: tuple[str | None, ...], gradient_axes: tuple[str | None, ...]) -> jax.Array:
    """`shard` with a place of its own for the gradient.

    Where x is gathered for use its gradient is to be scattered; the transposed constraint of `shard` would first ask
    for the sum whole on every device. Several mesh axes are gathered one after the other, as by `all_gather`.
    """
    return _gathered(x, axes, gradient_axes)


def _gathered(x: jax.Array, axes: tuple[str | None, ...], stored: tuple[str | None, ...]) -> jax.Array:
    """`shard(x, *axes)` by way of constraints that each leave out one of the stored mesh axes more, the last first."""
    for spec in reversed(_steps(x.shape, axes, stored)):
        x = jax.lax.with_sharding_constraint(x, spec)
    return shard(x, *axes)


def _scattered(x: jax.Array, axes: tuple[str | None, ...], stored: tuple[str | None, ...]) -> jax.Array:
    """`shard(x, *stored)`, the other way."""
    for spec in _steps(x.shape, axes, stored):
        x = jax.lax.with_sharding_constraint(x, spec)
    return shard(x, *stored)


def _steps(shape: tuple[int, ...], axes: tuple[str | None, ...], stored: tuple[str | None, ...]) -> list[PartitionSpec]:
    """What lies between gathered and stored: one mesh axis of a dimension's, the first two, and so on."""
    mesh, steps = jax.sharding.get_abstract_mesh(), []
    for dimension, (name, wanted) in enumerate(zip(stored, axes, strict=True)):
        names = () if name == wanted else mesh_axes(name, mesh, shape[dimension])
        for count in range(1, len(names)):
            parts = list(partition_spec(stored, mesh, shape))
            parts[dimension] = names[:count]
            steps.append(PartitionSpec(*parts))
    return steps


reshard.defvjp(
    lambda x, axes, gradient_axes: (_gathered(x, axes, gradient_axes), None),
    lambda axes, gradient_axes, _, gradient: (_scattered(gradient, axes, gradient_axes),),
)


def manual(function: Callable, in_axes: tuple, out_axes: Any, automatic: tuple[str, ...] = ()) -> Callable:
    """`function` on every device's own shards (a `shard_map` over all axes of the mesh but those in `automatic`).

    `in_axes` has for each argument, `out_axes` for the result, a tuple of logical axes, or a tree of such tuples.
    Inside, collectives run over `split_axes`. Without a mesh it is the function itself, and those are empty.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function

    def specs(axes: Any) -> Any:
        spec = functools.partial(partition_spec, mesh=mesh, ignored=automatic)
        return jax.tree.map(spec, axes, is_leaf=_is_axes)

    def run(*arguments: Any) -> Any:
        outer = _mesh_of_manual.set(mesh)
        try:
            return function(*arguments)
        finally:
            _mesh_of_manual.reset(outer)

    split = set(mesh.axis_names) - _manual_axes(mesh) - set(automatic)
    return jax.shard_map(run, in_specs=specs(in_axes), out_specs=specs(out_axes), axis_names=split, check_vma=False)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple) and all(axis is None or isinstance(axis, str) for axis in node)


def split_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes over which the surrounding `manual` has split a logical axis: what a collective in it runs over."""
    mesh = _mesh_of_manual.get()
    if mesh is None:
        return ()
    split = _manual_axes(jax.sharding.get_abstract_mesh())
    return tuple(name for name in mesh_axes(axis, mesh) if name in split)


def all_gather(x: jax.Array, dimension: int, axis: str) -> jax.Array:
    """Inside `manual`: x whole along a dimension, which is split as this logical axis; its gradient is scattered.

    One mesh axis after the other, the last one first: for several at once TPUs use all-reduces, twice the bytes.
    """
    for name in reversed(split_axes(axis)):
        x = jax.lax.all_gather(x, name, axis=dimension, tiled=True)
    return x


def reduce_scatter(x: jax.Array, dimension: int, axis: str) -> jax.Array:
    """Inside `manual`: the sum of all shards' x, of which each keeps its part of a dimension; undoes `all_gather`."""
    for name in split_axes(axis):
        x = jax.lax.psum_scatter(x, name, scatter_dimension=dimension, tiled=True)
    return x


def sum_gradient(gradient: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Inside `manual`: a parameter's gradient, whole in its gathered axes, added up over the devices of all tokens.

    Each keeps its part of it, as `axes` splits the parameter.
    """
    scattered: tuple[str, ...] = ()
    for dimension, axis in enumerate(axes):
        if axis in GATHERED:
            gradient = reduce_scatter(gradient, dimension, axis)
            scattered += split_axes(axis)
    tokens = split_axes("batch") + split_axes("sequence")
    return jax.lax.psum(gradient, tuple(name for name in tokens if name not in scattered))


def axis_size(name: str) -> int:
    """Size of an axis of the mesh set by `jax.set_mesh`; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def split_batch(x_B: jax.Array, count: int, *rest: str | None) -> jax.Array:
    """[B, ...] -> [count, B / count, ...], each shard of the batch giving a part of its own rows: nothing moves.

    `rest` names the logical axes after the first.
    """
    shards = _shards("batch")
    parts = x_B.reshape(shards, count, -1, *x_B.shape[1:]).swapaxes(0, 1)
    return shard(parts.reshape(count, -1, *x_B.shape[1:]), None, "batch", *rest)


def join_batch(x_Ab: jax.Array, *rest: str | None) -> jax.Array:
    """The inverse of `split_batch`."""
    count, shards = x_Ab.shape[0], _shards("batch")
    joined = x_Ab.reshape(count, shards, -1, *x_Ab.shape[2:]).swapaxes(0, 1)
    return shard(joined.reshape(-1, *x_Ab.shape[2:]), "batch", *rest)


def split_sequence(x_BS: jax.Array, count: int, *rest: str | None) -> jax.Array:
    """[B, S, ...] -> [count, B, S / count, ...], each shard of the sequence giving a part of its own."""
    batch, shards = x_BS.shape[0], _shards("sequence")
    parts = jnp.moveaxis(x_BS.reshape(batch, shards, count, -1, *x_BS.shape[2:]), 2, 0)
    return shard(parts.reshape(count, batch, -1, *x_BS.shape[2:]), None, "batch", "sequence", *rest)


def join_sequence(x_CBs: jax.Array, *rest: str | None) -> jax.Array:
    """The inverse of `split_sequence`."""
    count, batch, shards = *x_CBs.shape[:2], _shards("sequence")
    joined = jnp.moveaxis(x_CBs.reshape(count, batch, shards, -1, *x_CBs.shape[3:]), 0, 2)
    return shard(joined.reshape(batch, -1, *x_CBs.shape[3:]), "batch", "sequence", *rest)


def _shards(axis: str) -> int:
    return math.prod(axis_size(name) for name in mesh_axes(axis))


def check_divisible(axes: LogicalAxes, shape: Sequence[int], mesh: Mesh) -> None:
    """Raise `ConfigError` when a parameter's axis does not divide over its mesh axes."""
    for axis, size in zip(axes, shape, strict=True):
        names = mesh_axes(axis, mesh, size)
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            key = "model.moe.mlp_dim" if axis == "mlp" and "experts" in axes else CONFIG_KEYS[axis]
            raise ConfigError(
                f"{key}: {size} is not divisible by mesh.{' x mesh.'.join(names)} = {parts}; "
                f"use a multiple of {parts}, the nearest is {max(1, round(size / parts)) * parts}, or a smaller axis"
            )
