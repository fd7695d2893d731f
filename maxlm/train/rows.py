"""Rows of tables for the new pieces of an extended vocabulary. V old rows, W new ones in all, P new pieces, D embed, K
old pieces of the longest new one."""

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.data.tokenizer import Extension


def padded(extension: Extension) -> np.ndarray:
    """The old ids of every new piece, int32 [P, K], with -1 behind the last."""
    lengths = np.diff(extension.bounds)
    ids_PK = np.full((len(lengths), lengths.max()), -1, np.int32)
    ids_PK[np.arange(ids_PK.shape[1]) < lengths[:, None]] = extension.ids
    return ids_PK


def means(table_VD: jax.Array, ids_PK: jax.Array) -> jax.Array:
    """The mean of the rows of every new piece's old ones, float32 [P, D], added up in the order of the text."""

    def add(place: jax.Array, sum_PD: jax.Array) -> jax.Array:
        ids_P = ids_PK[:, place]
        rows_PD = table_VD[jnp.maximum(ids_P, 0)].astype(jnp.float32)
        return sum_PD + jnp.where(ids_P[:, None] < 0, 0, rows_PD)

    zeros_PD = jnp.zeros((len(ids_PK), table_VD.shape[1]), jnp.float32)
    sum_PD = jax.lax.fori_loop(0, ids_PK.shape[1], add, zeros_PD)
    return sum_PD / jnp.sum(ids_PK >= 0, axis=1, keepdims=True).astype(jnp.float32)


def mean(table_VD: jax.Array) -> jax.Array:
    """The mean of all rows, float32 [D]."""
    return _total(table_VD.astype(jnp.float32)) / len(table_VD)


def scaled(rows_PD: jax.Array, as_PD: jax.Array) -> jax.Array:
    """The rows in their own directions, with the mean absolute values of the others, float32 [P, D]; zeros stay."""
    sizes_P, wanted_P = _total(jnp.abs(rows_PD.T)), _total(jnp.abs(as_PD.T))
    return rows_PD * (wanted_P / jnp.where(sizes_P > 0, sizes_P, 1))[:, None]


def _total(array_XY: jax.Array) -> jax.Array:
    """The sum over the first axis, [Y], of halves and their halves, so that it is the same to the bit on every mesh."""
    while len(array_XY) > 1:
        half = -(-len(array_XY) // 2)
        array_XY = array_XY[:half] + jnp.pad(array_XY[half:], ((0, 2 * half - len(array_XY)), (0, 0)))
    return array_XY[0]


def grown(table_VD: jax.Array, tail_xD: jax.Array, first: int, rows_PD: jax.Array) -> jax.Array:
    """The table with more rows behind its own, and the rows from `first` on replaced."""
    return jnp.concatenate([table_VD, tail_xD]).at[first : first + len(rows_PD)].set(rows_PD)
