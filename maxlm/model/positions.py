"""Rotary positions, in float32 whatever the type of activations. Axis letters as in layers.py."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.config import ModelConfig

Tables = tuple[jax.Array, jax.Array]  # sines and cosines [B, S, E / 2]


class Rotations(NamedTuple):
    """The tables of layers without a window, and of those with one; None where positions are learned."""

    full: Tables | None
    local: Tables | None

    def of(self, window: int | None) -> Tables | None:
        return self.full if window is None else self.local


def rotations(positions_BS: jax.Array, config: ModelConfig) -> Rotations:
    if config.learned_positions is not None:
        return Rotations(None, None)
    rope, factor = config.rope, config.rope.scaling.factor if config.rope.scaling else 1.0
    full = rope_tables(positions_BS, config.head_dim, rope.theta, factor)
    local = full if rope.local_theta is None else rope_tables(positions_BS, config.head_dim, rope.local_theta)
    return Rotations(full, local)


def rope_tables(positions_BS: jax.Array, head_dim: int, theta: float, factor: float = 1.0) -> Tables:
    """Sines and cosines [B, S, head_dim / 2] in float32 (Su et al. 2021), of positions divided by a factor
    (Chen et al. 2023, section 2.3)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim) / factor
    angle = positions_BS[..., None].astype(jnp.float32) * frequency
    return jnp.sin(angle), jnp.cos(angle)


def apply_rope(x_BSHE: jax.Array, tables: Tables | None) -> jax.Array:
    """Rotate the two halves of each head, in float32; the half-split layout of Llama checkpoints."""
    if tables is None:
        return x_BSHE
    first, second = jnp.split(x_BSHE.astype(jnp.float32), 2, axis=-1)
    sin, cos = (table[:, :, None] for table in tables)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BSHE.dtype)
