"""Normalisation of activations, in float32 whatever their type."""

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config import ModelConfig


class Norm(nnx.Module):
    """RMSNorm, x / rms(x) * scale (Zhang and Sennrich 2019); with `center` LayerNorm, of x less its mean and with a
    bias (Ba et al. 2016).

    It runs over as many of the last axes as `shape` has; `axes` are its logical axes. With `offset` the scale is stored
    less one (Gemma).
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], eps: float, dtype, *, center: bool, offset: bool):
        self.scale = nnx.Param(jnp.full(shape, 0 if offset else 1, dtype), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(shape, dtype), logical_axes=axes) if center else None
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        x32, scale = x.astype(jnp.float32), self.scale[...].astype(jnp.float32)
        over = tuple(range(-scale.ndim, 0))
        if self.bias is not None:
            x32 = x32 - jnp.mean(x32, over, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), over, keepdims=True) + self.eps)
        x32 = x32 * (1 + scale if self.offset else scale)
        if self.bias is not None:
            x32 = x32 + self.bias[...].astype(jnp.float32)
        return x32.astype(x.dtype)


def stream_norm(config: ModelConfig, dtype) -> Norm:
    """A norm of the residual stream [B, S, D]."""
    center = config.norm == "layer"
    return Norm((config.embed_dim,), ("norm",), config.norm_eps, dtype, center=center, offset=config.norm_offset)


def heads_norm(config: ModelConfig, heads: int, axis: str, dtype) -> Norm | None:
    """The norm of queries or keys [B, S, heads, E], whose heads have this logical axis; None where there is none."""
    if not config.qk_norm:
        return None
    together = config.qk_norm == "all_heads"
    shape, axes = ((heads, config.head_dim), (axis, "head_dim")) if together else ((config.head_dim,), ("norm",))
    return Norm(shape, axes, config.norm_eps, dtype, center=False, offset=config.norm_offset)
