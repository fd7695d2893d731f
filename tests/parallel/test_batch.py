"""Rows that a process reads, and the global batch that is made of them."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from maxlm.config import MeshConfig
from maxlm.parallel.batch import addressed_rows, place, sequence_order
from maxlm.parallel.mesh import build_mesh

MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]


@pytest.fixture(params=MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def mesh(request: pytest.FixtureRequest) -> Mesh:
    data, fsdp, tensor = request.param
    return build_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def test_addressed_rows_are_every_row_once(mesh: Mesh) -> None:
    assert addressed_rows(24, mesh) == list(range(24))


def test_placed_batch_gives_the_rows_back(mesh: Mesh) -> None:
    rows = addressed_rows(8, mesh)
    batch = {"tokens": np.arange(8 * 3, dtype=np.int32).reshape(8, 3), "sources": np.arange(8, dtype=np.int32)}
    placed = place({name: array[rows] for name, array in batch.items()}, rows, 8, mesh)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        assert {part.data.shape[0] for part in placed[name].addressable_shards} == {8 // shards}
    assert len({device for array in placed.values() for device in array.devices()}) == len(jax.devices())


def test_each_device_holds_the_rows_of_its_place_in_the_mesh(mesh: Mesh) -> None:
    placed = place({"row": np.arange(8)}, range(8), 8, mesh)["row"]
    held = {part.device: np.asarray(part.data).tolist() for part in placed.addressable_shards}
    for (_, data, fsdp, *_), device in np.ndenumerate(mesh.devices):
        block, size = data * mesh.shape["fsdp"] + fsdp, 8 // (mesh.shape["data"] * mesh.shape["fsdp"])
        assert held[device] == list(range(block * size, (block + 1) * size))


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_context_shards_hold_an_early_and_a_late_part(shards: int) -> None:
    order = sequence_order(32, shards)
    assert sorted(order) == list(range(32))
    size = 32 // (2 * shards)
    for shard, part in enumerate(order.reshape(shards, 2, size)):
        assert part.tolist() == [
            list(range(chunk * size, (chunk + 1) * size)) for chunk in (shard, 2 * shards - 1 - shard)
        ]


def test_columns_are_placed_in_the_order_of_the_context_shards() -> None:
    mesh = build_mesh(MeshConfig(pipeline=2, fsdp=1, context=2, expert=2))
    tokens = np.arange(8 * 16, dtype=np.int32).reshape(8, 16)
    assert addressed_rows(8, mesh) == list(range(8))
    placed = place({"tokens": tokens}, range(8), 8, mesh)["tokens"]
    np.testing.assert_array_equal(placed, tokens[:, sequence_order(16, 2)])
    # Rows over pipeline and expert, columns over context.
    assert {part.data.shape for part in placed.addressable_shards} == {(2, 8)}
