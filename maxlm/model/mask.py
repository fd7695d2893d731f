"""Which tokens attention may see. Axis letters as in layers.py."""

import jax
import jax.numpy as jnp


def visible(index_S, index_T, segments_BS, segments_BT, window: int | None) -> jax.Array:
    """Which key each query may see, bool [B, S, T]: the same document, not later, within the window."""
    distance_ST = index_S[:, None] - index_T[None, :]
    allowed_ST = distance_ST >= 0
    if window is not None:
        allowed_ST &= distance_ST < window
    return allowed_ST & (segments_BS[:, :, None] == segments_BT[:, None, :])


def capped(scores: jax.Array, softcap: float | None) -> jax.Array:
    """Scores bounded to +-softcap by tanh (Gemma 2, section 2), or as they are."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)
