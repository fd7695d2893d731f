"""Rotary positions, in float32 whatever the type of activations. Axis letters as in layers.py."""

import jax
import jax.numpy as jnp


def rope_tables(positions_BS: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Sines and cosines [B, S, head_dim / 2] in float32 (Su et al. 2021)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BS[..., None].astype(jnp.float32) * frequency
    return jnp.sin(angle), jnp.cos(angle)


def apply_rope(x_BSHE: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotate the two halves of each head, in float32; the half-split layout of Llama checkpoints."""
    first, second = jnp.split(x_BSHE.astype(jnp.float32), 2, axis=-1)
    sin, cos = sin[:, :, None], cos[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BSHE.dtype)
