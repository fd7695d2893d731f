"""The parts of a decoder layer. Axis legend for this package:

B batch, S sequence (queries), T sequence (keys), D embed, H query heads, K key/value heads, G query heads per
key/value head, E head_dim, F mlp, V vocabulary, L layers.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config import ModelConfig
from maxlm.model.attention import KeyValues, attend
from maxlm.parallel.sharding import shard


def parameter(key: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], std: float, dtype) -> nnx.Param:
    """A truncated-normal parameter (cut at two standard deviations) with its logical axes."""
    value = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * std
    return nnx.Param(value.astype(dtype), logical_axes=axes)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float, dtype):
        self.scale = nnx.Param(jnp.ones((width,), dtype), logical_axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        return (x32 * self.scale[...].astype(jnp.float32)).astype(x.dtype)


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


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, window: int | None, out_std: float, key: jax.Array, dtype):
        query, keys, value, out = jax.random.split(key, 4)
        embed, heads, kv_heads, width = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        std = config.init_std
        self.query = parameter(query, (embed, heads, width), ("embed", "heads", "head_dim"), std, dtype)
        self.key = parameter(keys, (embed, kv_heads, width), ("embed", "kv_heads", "head_dim"), std, dtype)
        self.value = parameter(value, (embed, kv_heads, width), ("embed", "kv_heads", "head_dim"), std, dtype)
        self.out = parameter(out, (heads, width, embed), ("heads", "head_dim", "embed"), out_std, dtype)
        self.query_norm = RMSNorm(width, config.norm_eps, dtype) if config.qk_norm else None
        self.key_norm = RMSNorm(width, config.norm_eps, dtype) if config.qk_norm else None
        self.window = window

    def __call__(self, x_BSD, rope, segment_ids_BS, cache: KeyValues | None):
        dtype = x_BSD.dtype
        q_BSHE = jnp.einsum("BSD,DHE->BSHE", x_BSD, self.query[...].astype(dtype))
        k_BSKE = jnp.einsum("BSD,DKE->BSKE", x_BSD, self.key[...].astype(dtype))
        v_BSKE = jnp.einsum("BSD,DKE->BSKE", x_BSD, self.value[...].astype(dtype))
        if self.query_norm is not None:
            q_BSHE, k_BSKE = self.query_norm(q_BSHE), self.key_norm(k_BSKE)
        q_BSHE = checkpoint_name(shard(apply_rope(q_BSHE, *rope), "batch", "sequence", "heads", None), "query")
        k_BSKE = checkpoint_name(shard(apply_rope(k_BSKE, *rope), "batch", "sequence", "kv_heads", None), "key")
        v_BSKE = checkpoint_name(shard(v_BSKE, "batch", "sequence", "kv_heads", None), "value")
        mixed_BSHE, cache = attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, self.window, cache)
        mixed_BSHE = checkpoint_name(mixed_BSHE, "attention")
        out_BSD = jnp.einsum("BSHE,HED->BSD", mixed_BSHE, self.out[...].astype(dtype))
        return checkpoint_name(out_BSD, "attention_out"), cache


@jax.custom_vjp
def expand(x_BSD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """The product [B, S, F] of a narrow input with a matrix that widens it.

    It differs from a plain einsum in the order of its weight gradient's factors, x first. Backends without a
    transposed product copy the first factor: here the narrow one, not the wide one with the activation's derivative
    fused into the copy. That is a tenth of a step on CPU, and the same product on TPU and GPU.
    """
    return jnp.einsum("BSD,DF->BSF", x_BSD, w_DF)


def _expand_backward(inputs, d_out_BSF):
    x_BSD, w_DF = inputs
    return jnp.einsum("BSF,DF->BSD", d_out_BSF, w_DF), jnp.einsum("BSD,BSF->DF", x_BSD, d_out_BSF)


expand.defvjp(lambda x_BSD, w_DF: (expand(x_BSD, w_DF), (x_BSD, w_DF)), _expand_backward)


class MLP(nnx.Module):
    """SwiGLU: (silu(x gate) * (x up)) down (Shazeer 2020); `width` is that of the hidden layer."""

    def __init__(self, config: ModelConfig, width: int, out_std: float, key: jax.Array, dtype):
        gate, up, down = jax.random.split(key, 3)
        embed, hidden, std = config.embed_dim, width, config.init_std
        self.gate = parameter(gate, (embed, hidden), ("embed", "mlp"), std, dtype)
        self.up = parameter(up, (embed, hidden), ("embed", "mlp"), std, dtype)
        self.down = parameter(down, (hidden, embed), ("mlp", "embed"), out_std, dtype)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        dtype = x_BSD.dtype
        gate_BSF = checkpoint_name(expand(x_BSD, self.gate[...].astype(dtype)), "mlp_gate")
        up_BSF = checkpoint_name(expand(x_BSD, self.up[...].astype(dtype)), "mlp_up")
        hidden_BSF = shard(jax.nn.silu(gate_BSF) * up_BSF, "batch", "sequence", "mlp")
        return jnp.einsum("BSF,FD->BSD", hidden_BSF, self.down[...].astype(dtype))


class Layer(nnx.Module):
    """Pre-norm residual layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, window: int | None, key: jax.Array, dtype):
        attention, mlp = jax.random.split(key)
        # GPT-2's scaling of what is added to the residual stream, two additions a layer.
        out_std = config.init_std / (2 * config.num_layers) ** 0.5
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps, dtype)
        self.attention = Attention(config, window, out_std, attention, dtype)
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps, dtype)
        self.mlp = MLP(config, config.mlp_dim, out_std, mlp, dtype)

    def __call__(self, x_BSD, rope, segment_ids_BS, cache: KeyValues | None):
        x_BSD = shard(x_BSD, "batch", "sequence", "residual")
        mixed_BSD, cache = self.attention(self.attention_norm(x_BSD), rope, segment_ids_BS, cache)
        x_BSD = shard(x_BSD + mixed_BSD, "batch", "sequence", "residual")
        x_BSD = x_BSD + self.mlp(self.mlp_norm(x_BSD))
        return shard(x_BSD, "batch", "sequence", "residual"), cache
