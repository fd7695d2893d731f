"""Where arrays live: one table from logical axes to mesh axes, used for parameters and activations alike.

Model code names what an axis means ("heads", "embed"); this table alone says which mesh axis it is split over.
"""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from maxlm.errors import ConfigError

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp", "expert"),
    "sequence": ("context",),
    "residual": (),
    # parameters
    "vocab": ("tensor",),
    "embed": ("fsdp", "context", "expert"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "expert_embed": ("fsdp", "context"),
    "experts_router": (),
    "norm": (),
    "layers": (),
}

# The configuration key that sets the length of a logical axis, for error messages.
CONFIG_KEYS = {
    "vocab": "model.vocab_size",
    "embed": "model.embed_dim",
    "heads": "model.num_heads",
    "kv_heads": "model.num_kv_heads",
    "mlp": "model.mlp_dim",
    "experts": "model.moe.num_experts",
    "expert_embed": "model.embed_dim",
}

LogicalAxes = Sequence[str | None]


def partition_spec(axes: LogicalAxes, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes; mesh axes of size 1 are left out.

    Raises ValueError naming both logical axes when two of them claim one mesh axis.
    """
    claimed: dict[str, str] = {}
    entries: list[tuple[str, ...] | None] = []
    for axis in axes:
        names = _mesh_axes(axis, mesh)
        for name in names:
            if name in claimed:
                raise ValueError(f"logical axes '{claimed[name]}' and '{axis}' both claim the mesh axis '{name}'")
            claimed[name] = axis
        entries.append(names or None)
    return PartitionSpec(*entries)


def _mesh_axes(axis: str | None, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    return tuple(name for name in RULES[axis] if mesh.shape.get(name, 1) > 1) if axis else ()


def named_sharding(axes: LogicalAxes, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, partition_spec(axes, mesh))


def tree_shardings(axes: dict, mesh: Mesh) -> dict:
    """Shardings of a nested dict of parameters, given the dict of their logical axes."""
    return jax.tree.map(lambda names: named_sharding(names, mesh), axes, is_leaf=lambda node: isinstance(node, tuple))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation inside jit to the mesh set by `jax.set_mesh`; without a mesh, return it unchanged."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, mesh))


def manual(function: Callable, in_axes, out_axes) -> Callable:
    """The function run once per device on its shards, with collectives of its own, under the mesh of `jax.set_mesh`.

    `in_axes` holds the logical axes of every argument and `out_axes` those of the result, in its structure. All mesh
    axes that are still automatic become manual (some are manual already inside a pipeline's stage): a Pallas kernel
    is compiled only where none is left. Without a mesh of several devices it is the function itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    automatic = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}

    def specs(axes):
        return jax.tree.map(lambda names: partition_spec(names, mesh), axes, is_leaf=_is_axes)

    # The check of what varies over which axis refuses kernels that do not declare it, as megablox's.
    return jax.shard_map(
        function, in_specs=specs(in_axes), out_specs=specs(out_axes), axis_names=automatic, check_vma=False
    )


def split_axes(axis: str) -> tuple[str, ...]:
    """Mesh axes of more than one device that split a logical axis: what a collective inside `manual` runs over."""
    return _mesh_axes(axis, jax.sharding.get_abstract_mesh())


def _is_axes(node) -> bool:
    return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)


def batch_shards() -> int:
    """Number of shards of the batch on the mesh set by `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(name, 1) for name in RULES["batch"])


def check_divisible(axes: LogicalAxes, shape: Sequence[int], mesh: Mesh) -> None:
    """Raise `ConfigError` when a parameter's axis does not divide over its mesh axes."""
    for axis, size in zip(axes, shape, strict=True):
        names = _mesh_axes(axis, mesh)
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            raise ConfigError(
                f"{CONFIG_KEYS[axis]}: {size} is not divisible by mesh.{' x mesh.'.join(names)} = {parts}; "
                f"use a multiple of {parts}, the nearest is {max(1, round(size / parts)) * parts}, or a smaller axis"
            )
