"""Which tokens attention may see. Axis letters as in layers.py."""

import jax


def visible(index_S, index_T, segments_BS, segments_BT, window: int | None) -> jax.Array:
    """Which key each query may see, bool [B, S, T]: the same document, not later, within the window."""
    distance_ST = index_S[:, None] - index_T[None, :]
    allowed_ST = distance_ST >= 0
    if window is not None:
        allowed_ST &= distance_ST < window
    return allowed_ST & (segments_BS[:, :, None] == segments_BT[:, None, :])
