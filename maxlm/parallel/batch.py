"""From a host's rows to the global batch: a host reads what its devices address, never what its number suggests."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from maxlm.parallel.sharding import named_sharding


def addressed_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """Rows of a global batch that this process's devices hold, ascending."""
    sharding = named_sharding(("batch",), mesh)
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in slices for row in range(*part.indices(batch_size))})


def place(batch: Mapping[str, np.ndarray], rows: Sequence[int], batch_size: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [B, ...] sharded over the batch, of which this process gives the rows `rows` [R, ...]."""
    place_of = {row: number for number, row in enumerate(rows)}

    def globalise(local: np.ndarray) -> jax.Array:
        sharding = named_sharding(("batch", *[None] * (local.ndim - 1)), mesh)

        def block(index: tuple[slice, ...]) -> np.ndarray:
            wanted = range(*index[0].indices(batch_size))
            first = place_of[wanted[0]]  # a device's rows are consecutive, and so are they among the sorted rows
            return local[first : first + len(wanted)]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, block)

    return {name: globalise(local) for name, local in batch.items()}
