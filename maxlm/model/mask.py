"""Which tokens attention may see. Axis letters as in layers.py."""

import jax
import jax.numpy as jnp


def visible(index_S, index_T, segments_BS, segments_BT, window: int | None, prefix_BS=None, prefix_BT=None):
    """Which key each query may see, bool [B, S, T]: the same document, not later, within the window.

    Tokens of one document that are marked as its prefix (bool, of the queries and of the keys; None where there is
    none) see each other in both directions (Raffel et al. 2020, section 3.2.1), a later one within the window as well.
    """
    distance_ST = index_S[:, None] - index_T[None, :]
    allowed = distance_ST >= 0
    if window is not None:
        allowed &= distance_ST < window
    if prefix_BS is not None:
        mutual_BST = prefix_BS[:, :, None] & prefix_BT[:, None, :]
        if window is not None:
            mutual_BST &= jnp.abs(distance_ST) < window
        allowed = allowed | mutual_BST
    return allowed & (segments_BS[:, :, None] == segments_BT[:, None, :])


def capped(scores: jax.Array, softcap: float | None) -> jax.Array:
    """Scores, or logits, bounded to +-softcap by tanh (Gemma 2, section 2), or as they are."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def slope(capped_scores: jax.Array, softcap: float) -> jax.Array:
    """The derivative of `capped` where these are its values."""
    return 1 - jnp.square(capped_scores / softcap)
