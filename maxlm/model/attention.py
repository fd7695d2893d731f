"""Attention over packed documents. Axis letters as in layers.py.

`attend` is the reference: plain XLA with a float32 softmax, the truth that other implementations are held to.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyValues(NamedTuple):
    """What decoding remembers of one layer: keys and values of the first `length` of T slots."""

    key_BTKE: jax.Array
    value_BTKE: jax.Array
    segment_ids_BT: jax.Array  # 0 where a slot holds padding
    length: jax.Array  # int32 scalar

    def append(self, k_BSKE: jax.Array, v_BSKE: jax.Array, segment_ids_BS: jax.Array) -> "KeyValues":
        def write(slots, new):
            start = (0, self.length) + (0,) * (slots.ndim - 2)
            return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), start)

        return KeyValues(
            write(self.key_BTKE, k_BSKE),
            write(self.value_BTKE, v_BSKE),
            write(self.segment_ids_BT, segment_ids_BS),
            self.length + k_BSKE.shape[1],
        )


def visible(index_S, index_T, segments_BS, segments_BT, window: int | None) -> jax.Array:
    """Which key each query may see, bool [B, S, T]: the same document, not later, within the window."""
    distance_ST = index_S[:, None] - index_T[None, :]
    allowed_ST = distance_ST >= 0
    if window is not None:
        allowed_ST &= distance_ST < window
    return allowed_ST & (segments_BS[:, :, None] == segments_BT[:, None, :])


def attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, window: int | None, cache: KeyValues | None):
    """Grouped-query attention of new queries over the cache (where given) and the new keys and values.

    Returns the mixed values [B, S, H, E] and the extended cache. Padding (segment 0) sees only padding, so no
    row of the softmax is empty.
    """
    first = 0 if cache is None else cache.length
    segments_BT = segment_ids_BS
    if cache is not None:
        cache = cache.append(k_BSKE, v_BSKE, segment_ids_BS)
        k_BSKE, v_BSKE, segments_BT = cache.key_BTKE, cache.value_BTKE, cache.segment_ids_BT
    index_S, index_T = first + jnp.arange(q_BSHE.shape[1]), jnp.arange(k_BSKE.shape[1])
    allowed_BST = visible(index_S, index_T, segment_ids_BS, segments_BT, window)
    return reference(q_BSHE, k_BSKE, v_BSKE, allowed_BST), cache


def reference(q_BSHE, k_BTKE, v_BTKE, allowed_BST) -> jax.Array:
    """softmax(q k / sqrt(E)) v with masked scores, in float32; [B, S, H, E] in the queries' type.

    Scores are ordered as the product gives them, S before G: any other order is a copy of the largest array.
    """
    batch, length, heads, width = q_BSHE.shape
    kv_heads = k_BTKE.shape[2]
    q_BSKGE = q_BSHE.reshape(batch, length, kv_heads, heads // kv_heads, width) * width**-0.5
    scores_BKSGT = jnp.einsum("BSKGE,BTKE->BKSGT", q_BSKGE, k_BTKE, preferred_element_type=jnp.float32)
    scores_BKSGT = jnp.where(allowed_BST[:, None, :, None], scores_BKSGT, -1e30)
    weights_BKSGT = jax.nn.softmax(scores_BKSGT, axis=-1).astype(v_BTKE.dtype)
    mixed_BKSGE = jnp.einsum("BKSGT,BTKE->BKSGE", weights_BKSGT, v_BTKE)
    return jnp.moveaxis(mixed_BKSGE, 1, 2).reshape(batch, length, heads, width)
