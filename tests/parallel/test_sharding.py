"""From logical axes to mesh axes."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.config import MeshConfig
from maxlm.errors import ConfigError
from maxlm.parallel import sharding
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import check_divisible, join_batch, partition_spec, shard, split_batch, tree_shardings


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return build_mesh(MeshConfig(data=1, fsdp=2, tensor=4))


def test_axes_of_size_one_are_left_out(mesh: Mesh) -> None:
    assert partition_spec(("batch", None, "vocab"), mesh) == PartitionSpec(("fsdp",), None, ("tensor",))
    assert partition_spec(("batch",), build_mesh(MeshConfig(data=4))) == PartitionSpec(("data", "fsdp"))
    assert partition_spec(("embed", "mlp"), build_mesh(MeshConfig(), jax.devices()[:1])) == PartitionSpec(None, None)


def test_two_logical_axes_on_one_mesh_axis_are_both_named(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="logical axes 'heads' and 'mlp' both claim the mesh axis 'tensor'"):
        partition_spec(("embed", "heads", "mlp"), mesh)
    with pytest.raises(ValueError, match="logical axes 'batch' and 'embed' both claim the mesh axis 'fsdp'"):
        partition_spec(("batch", "embed"), mesh)


def test_unknown_logical_axis_is_an_error(mesh: Mesh) -> None:
    with pytest.raises(KeyError, match="heds"):
        partition_spec(("heds",), mesh)


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (("vocab", "embed"), (66, 16), "model.vocab_size: 66 is not divisible by mesh.tensor = 4; .* nearest is 64"),
        (("vocab", "embed"), (64, 15), "model.embed_dim: 15 is not divisible by mesh.fsdp = 2; .* nearest is 16"),
        (("layers", "embed", "kv_heads", "head_dim"), (3, 16, 6, 5), "model.num_kv_heads: 6 .* nearest is 8"),
        (("embed", "mlp"), (16, 1), "model.mlp_dim: 1 is not divisible"),
        (("embed", "heads", "head_dim"), (16, 6, 4), "model.num_heads: 6 is not divisible"),
        (("experts", "expert_embed", "mlp"), (3, 16, 6), "model.moe.mlp_dim: 6 is not divisible"),
    ],
)
def test_indivisible_parameter_names_its_configuration_key(mesh: Mesh, axes, shape, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_divisible(axes, shape, mesh)


def test_every_sharded_parameter_axis_has_a_configuration_key() -> None:
    activations = {"batch", "sequence", "sequence_split"}
    sharded = {axis for axis, names in sharding.RULES.items() if names} - activations
    assert sharded - sharding.NARROW == set(sharding.CONFIG_KEYS)  # what is narrow always divides


def test_divisible_parameter_is_accepted_and_sharded(mesh: Mesh) -> None:
    check_divisible(("layers", "embed", "kv_heads", "head_dim"), (3, 16, 4, 5), mesh)
    shapes = {"a": {"b": jax.ShapeDtypeStruct((3, 16, 8), float)}, "c": jax.ShapeDtypeStruct((16,), float)}
    tree = tree_shardings({"a": {"b": ("layers", "embed", "mlp")}, "c": ("norm",)}, shapes, mesh)
    assert tree["a"]["b"].shard_shape((3, 16, 8)) == (3, 8, 2)
    assert tree["c"].shard_shape((16,)) == (16,)


def test_constraint_without_a_mesh_changes_nothing() -> None:
    x = jax.numpy.arange(4.0)
    assert shard(x, "batch") is x


def test_key_value_heads_fewer_than_the_tensor_shards_are_replicated(mesh: Mesh) -> None:
    axes, shape = ("embed", "kv_heads", "head_dim"), (16, 2, 4)
    check_divisible(axes, shape, mesh)
    assert partition_spec(axes, mesh, shape) == PartitionSpec(("fsdp",), None, None)
    assert partition_spec(axes, mesh, (16, 4, 4)) == PartitionSpec(("fsdp",), ("tensor",), None)


def test_axes_that_a_shard_map_has_split_are_left_out() -> None:
    mesh = build_mesh(MeshConfig(pipeline=2, fsdp=2, tensor=2))
    found = []

    def stage(x):
        inner = jax.sharding.get_abstract_mesh()
        found.extend([partition_spec(("batch", "mlp"), inner), partition_spec(("layers",), inner)])
        return shard(x, "batch", "mlp")

    with jax.set_mesh(mesh):
        spec = PartitionSpec("pipeline")
        x = jax.numpy.ones((4, 4))
        jax.jit(jax.shard_map(stage, in_specs=spec, out_specs=spec, axis_names={"pipeline"}, check_vma=False))(x)
    assert partition_spec(("batch", "mlp"), mesh) == PartitionSpec(("pipeline", "fsdp"), ("tensor",))
    assert found == [PartitionSpec(("fsdp",), ("tensor",)), PartitionSpec(None)]


def test_a_batch_is_split_and_joined_without_moving_a_row() -> None:
    mesh = build_mesh(MeshConfig(data=2, fsdp=4))
    x = np.arange(32.0).reshape(16, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, partition_spec(("batch", None), mesh)))
        split = jax.jit(lambda x: split_batch(x, 2, None))
        text = split.lower(placed).compile().as_text()
        assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", text)
        np.testing.assert_array_equal(join_batch(split(placed), None), x)
