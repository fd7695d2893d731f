"""From a host's rows to the global batch: a host reads what its devices address, never what its number suggests."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from maxlm.parallel.sharding import named_sharding

# Logical axes of a batch's arrays [B], [B, S].
BATCH_AXES = ("batch", "sequence")


def addressed_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """Rows of a global batch that this process's devices hold, ascending."""
    sharding = named_sharding(("batch",), mesh)
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in slices for row in range(*part.indices(batch_size))})


def sequence_order(seq_len: int, shards: int) -> np.ndarray:
    """Index in the sequence of each position as the context shards hold them, int32 [S].

    The sequence is cut into 2 x shards chunks, and shard r holds chunks r and 2 x shards - 1 - r: an early and a late
    one, so that under a causal mask every shard has equally many keys to look at.
    """
    if shards == 1:
        return np.arange(seq_len, dtype=np.int32)
    chunks = np.arange(seq_len, dtype=np.int32).reshape(2 * shards, -1)
    return np.concatenate([chunks[[shard, 2 * shards - 1 - shard]].reshape(-1) for shard in range(shards)])


def place(batch: Mapping[str, np.ndarray], rows: Sequence[int], batch_size: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [B, ...] on the mesh, of which this process gives the rows `rows` [R, ...].

    Rows are sharded over the batch's axes and columns over the context, in the order of `sequence_order`.
    """
    place_of = {row: number for number, row in enumerate(rows)}

    def globalise(local: np.ndarray) -> jax.Array:
        sharding = named_sharding(BATCH_AXES[: local.ndim], mesh)
        if local.ndim > 1 and (shards := mesh.shape["context"]) > 1:
            local = local[:, sequence_order(local.shape[1], shards)]

        def block(index: tuple[slice, ...]) -> np.ndarray:
            wanted = range(*index[0].indices(batch_size))
            first = place_of[wanted[0]]  # a device's rows are consecutive, and so are they among the sorted rows
            return local[(slice(first, first + len(wanted)), *index[1:])]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, block)

    return {name: globalise(local) for name, local in batch.items()}
