"""Rotary positions, in float32 whatever the type of activations. Axis letters as in layers.py; R rotated pairs.

A scaling changes the frequencies of rotation, so that longer sequences turn no further than those of training did.
Dynamic and longrope look at a sequence's length for that. Here it is the length of the document, so that a packed
document is what it is alone and padding changes nothing; transformers takes the longest row of a batch.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    RopeConfig,
    YarnScaling,
)
from maxlm.parallel.sharding import shard

Tables = tuple[jax.Array, jax.Array]  # sines and cosines [B, S, R], times the scaling's factor on queries and keys


class Rotations(NamedTuple):
    """The tables of layers without a window, and of those with one; None where positions are learned."""

    full: Tables | None
    local: Tables | None

    def of(self, window: int | None) -> Tables | None:
        return self.full if window is None else self.local


def rotations(positions_BS: jax.Array, config: ModelConfig, lengths_BS: jax.Array | None = None) -> Rotations:
    """The tables of one pass through the layers, of `ModelConfig.rope_dim` dimensions of a head.

    `lengths_BS` is what `rotation_lengths` gives, or None where that is None.
    """
    if config.learned_positions is not None:
        return Rotations(None, None)
    rope, width = config.rope, config.rope_dim
    full = _tables(positions_BS, _scaled_frequencies(rope, width, lengths_BS), attention_factor(rope))
    local = full if rope.local_theta is None else _tables(positions_BS, _frequencies(rope.local_theta, width))
    return Rotations(full, local)


def rotation_lengths(segment_ids_BS, positions_BS, config: ModelConfig, of_BT=None) -> jax.Array | None:
    """Length of every token's document, int32 [B, S], as far as rotations depend on it; None where they do not.

    A length up to `original_length` counts as that; with longrope a greater one as a token more. Columns may stand in
    any order. All pairs of tokens are compared, in a maximum that is never stored: at 128k tokens in a row a few
    milliseconds of a TPU, and nothing is assumed about the numbers of documents. With `of_BT`, segment ids of other
    tokens, theirs [B, T], of documents that end with the given tokens.
    """
    scaling = config.rope.scaling
    if not config.rope.by_length or config.learned_positions is not None:
        return None
    of_BT = segment_ids_BS if of_BT is None else of_BT
    segment_ids_BS, positions_BS = shard(segment_ids_BS, "batch", None), shard(positions_BS, "batch", None)
    same_BTS = of_BT[:, :, None] == segment_ids_BS[:, None, :]
    lengths_BT = 1 + jnp.max(jnp.where(same_BTS, positions_BS[:, None, :], 0), axis=2)
    most = scaling.original_length + 1 if isinstance(scaling, LongRopeScaling) else None
    return shard(jnp.clip(lengths_BT, scaling.original_length, most), "batch", "sequence")


def attention_factor(rope: RopeConfig) -> float:
    """The scaling's factor on rotated queries and on rotated keys."""
    scaling = rope.scaling
    if not isinstance(scaling, YarnScaling | LongRopeScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor is None or scaling.factor <= 1:
        return 1.0
    if isinstance(scaling, LongRopeScaling):
        # Ding et al. 2024 as in Phi-3's models.
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_length))
    growth = 0.1 * math.log(scaling.factor)  # Peng et al. 2023, section 3.4
    if scaling.mscale and scaling.mscale_all_dim:
        return (growth * scaling.mscale + 1) / (growth * scaling.mscale_all_dim + 1)
    return growth + 1


def _frequencies(theta: float | jax.Array, width: int) -> jax.Array:
    """Radians per position of each rotated pair [R], or [B, S, R] for a theta of [B, S, 1] (Su et al. 2021).

    Computed as PyTorch does, which models are trained and published with: exponents rounded to float32, then the
    power. That is within one unit in the last place; XLA's own division is off by up to 13 for a width of 96.
    """
    return theta ** (-np.arange(0, width, 2, dtype=np.float32) / np.float32(width))


def _scaled_frequencies(rope: RopeConfig, width: int, lengths_BS: jax.Array | None) -> jax.Array:
    """Frequencies [R], or [B, S, R] where they depend on the length of a document."""
    scaling, plain = rope.scaling, _frequencies(rope.theta, width)
    match scaling:
        case None:
            return plain
        case LinearScaling():
            return plain / scaling.factor
        case DynamicScaling():
            growth_BS1 = scaling.factor * lengths_BS[..., None] / scaling.original_length - (scaling.factor - 1)
            return _frequencies(rope.theta * growth_BS1 ** (width / (width - 2)), width)
        case LongRopeScaling():
            is_long_BS1 = lengths_BS[..., None] > scaling.original_length
            short, long = (np.array(f, np.float32) for f in (scaling.short_factors, scaling.long_factors))
            return plain / jnp.where(is_long_BS1, long, short)
        case Llama3Scaling():
            turns = scaling.original_length * plain / (2 * math.pi)
            ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            kept = jnp.clip(ramp, 0, 1)
        case YarnScaling():
            first, last = _yarn_ramp(scaling, rope.theta, width)
            kept = 1 - np.clip((np.arange(width // 2, dtype=np.float32) - first) / (last - first), 0, 1)
    return plain / scaling.factor * (1 - kept) + plain * kept


def _yarn_ramp(scaling: YarnScaling, theta: float, width: int) -> tuple[float, float]:
    """The last pair that is kept and the first that is divided by factor (Peng et al. 2023, section 3.2)."""

    def pair_of(turns: float) -> float:
        """Which pair turns so many times in the original length; not whole."""
        return width * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    # Bounded by dimensions, though the ramp counts pairs: so the published implementation has it.
    first, last = max(first, 0), min(last, width - 1)
    return first, last + 0.001 if first == last else last


def _tables(positions_BS: jax.Array, frequencies: jax.Array, factor: float = 1.0) -> Tables:
    angles_BSR = positions_BS[..., None].astype(jnp.float32) * frequencies
    sin_BSR, cos_BSR = jnp.sin(angles_BSR), jnp.cos(angles_BSR)
    return (sin_BSR, cos_BSR) if factor == 1 else (sin_BSR * factor, cos_BSR * factor)


def apply_rope(x_BSHE: jax.Array, tables: Tables | None) -> jax.Array:
    """Rotate the first 2 R dimensions of each head, in float32; the rest is passed through.

    The first half of them holds the real parts of what turns, the second the imaginary ones: the half-split layout of
    Llama checkpoints.
    """
    if tables is None:
        return x_BSHE
    sin, cos = (table[:, :, None] for table in tables)
    width = 2 * sin.shape[-1]
    first, second = jnp.split(x_BSHE[..., :width].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BSHE.dtype)
    return turned if width == x_BSHE.shape[-1] else jnp.concatenate([turned, x_BSHE[..., width:]], axis=-1)
