"""The parts of a decoder layer. Axis legend for this package:

B batch, S sequence (queries), T sequence (keys), D embed, H query heads, K key/value heads, G query heads per
key/value head, E head_dim, F mlp, V vocabulary, L layers.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config import ModelConfig, ParallelConfig, PipelineConfig
from maxlm.model.attention import Attended, KeyValues, attend
from maxlm.model.norms import RMSNorm
from maxlm.model.positions import apply_rope
from maxlm.parallel.sharding import all_gather, manual, replicated, reshard, shard, split_axes

TABLE = ("vocab", "table_embed")  # logical axes of the embedding table

RematPolicy = str | tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """How a model is computed; nothing here changes what it computes."""

    params_dtype: Any = jnp.float32
    dtype: Any = jnp.float32  # of activations and matrix products
    remat: RematPolicy = "none"
    pipeline: PipelineConfig = PipelineConfig()
    parallel: ParallelConfig = ParallelConfig()
    platform: str = "cpu"  # that the program is compiled for, by which kernels are chosen
    device_kind: str = ""  # likewise, as JAX names it; by which tiles are chosen
    attention: str = "auto"  # kernels.attention
    documents: bool = True  # segment ids part documents; else they only mark padding at a row's end

    @property
    def residual(self) -> tuple[str, str, None]:
        """Logical axes of the residual stream [B, S, D]."""
        return ("batch", "sequence_split" if self.parallel.sequence else "sequence", None)


def parameter(key: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], std: float, dtype) -> nnx.Param:
    """A truncated-normal parameter (cut at two standard deviations) with its logical axes."""
    value = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * std
    return nnx.Param(value.astype(dtype), logical_axes=axes)


def weight(param: nnx.Param, dtype: Any) -> jax.Array:
    """A matrix in the compute type, gathered for use: what travels is of that type."""
    axes = param.get_metadata("logical_axes")
    return reshard(param[...].astype(dtype), replicated(axes), axes)


def look_up(table_VD: jax.Array, axes: tuple[str | None, ...], tokens_BS: jax.Array) -> jax.Array:
    """Rows of the embedding table, which is stored with these logical axes, [B, S, D].

    Each device gathers the table's width and looks up its own tokens in its own part of the vocabulary: the gradient is
    added up locally and scattered. The partitioner would rather move the activations to where the table is.
    """

    def own(table_VD, tokens_BS):
        vocab_axes = split_axes("vocab")
        if axes[1]:
            table_VD = all_gather(table_VD, 1, axes[1])
        if not vocab_axes:
            return table_VD[tokens_BS][None]
        row_BS = tokens_BS - table_VD.shape[0] * jax.lax.axis_index(vocab_axes)
        present_BS = (row_BS >= 0) & (row_BS < table_VD.shape[0])
        return jnp.where(present_BS[..., None], table_VD[jnp.where(present_BS, row_BS, 0)], 0)[None]

    # One part per shard of the vocabulary, of which all but one are zero at each token.
    parts = manual(own, (axes, ("batch", "sequence")), ("vocab", "batch", "sequence", None))(table_VD, tokens_BS)
    return jnp.sum(parts, axis=0)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, window: int | None, out_std: float, key: jax.Array, options: Options):
        query, keys, value, out = jax.random.split(key, 4)
        embed, heads, kv_heads, width = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        std, dtype = config.init_std, options.params_dtype
        self.query = parameter(query, (embed, heads, width), ("embed", "heads", "head_dim"), std, dtype)
        self.key = parameter(keys, (embed, kv_heads, width), ("embed", "kv_heads", "head_dim"), std, dtype)
        self.value = parameter(value, (embed, kv_heads, width), ("embed", "kv_heads", "head_dim"), std, dtype)
        self.out = parameter(out, (heads, width, embed), ("heads", "head_dim", "embed"), out_std, dtype)
        self.query_norm = RMSNorm(width, config.norm_eps, dtype) if config.qk_norm else None
        self.key_norm = RMSNorm(width, config.norm_eps, dtype) if config.qk_norm else None
        self.attended = Attended(
            window=window,
            softcap=config.attention_softcap,
            kernel=options.attention,
            platform=options.platform,
            device_kind=options.device_kind,
            documents=options.documents,
            context=options.parallel.context,
        )

    def __call__(self, x_BSD, rope, segment_ids_BS, cache: KeyValues | None):
        dtype = x_BSD.dtype
        q_BSHE = jnp.einsum("BSD,DHE->BSHE", x_BSD, weight(self.query, dtype))
        k_BSKE = jnp.einsum("BSD,DKE->BSKE", x_BSD, weight(self.key, dtype))
        v_BSKE = jnp.einsum("BSD,DKE->BSKE", x_BSD, weight(self.value, dtype))
        if self.query_norm is not None:
            q_BSHE, k_BSKE = self.query_norm(q_BSHE), self.key_norm(k_BSKE)
        q_BSHE = checkpoint_name(shard(apply_rope(q_BSHE, *rope), "batch", "sequence", "heads", None), "query")
        k_BSKE = checkpoint_name(shard(apply_rope(k_BSKE, *rope), "batch", "sequence", "kv_heads", None), "key")
        v_BSKE = checkpoint_name(shard(v_BSKE, "batch", "sequence", "kv_heads", None), "value")
        mixed_BSHE, cache = attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, cache, self.attended)
        mixed_BSHE = shard(mixed_BSHE, "batch", "sequence", "heads", None)
        return jnp.einsum("BSHE,HED->BSD", mixed_BSHE, weight(self.out, dtype)), cache


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
    """SwiGLU: (silu(x gate) * (x up)) down (Shazeer 2020), `hidden` wide."""

    def __init__(self, config: ModelConfig, hidden: int, out_std: float, key: jax.Array, dtype):
        gate, up, down = jax.random.split(key, 3)
        embed, std = config.embed_dim, config.init_std
        self.gate = parameter(gate, (embed, hidden), ("embed", "mlp"), std, dtype)
        self.up = parameter(up, (embed, hidden), ("embed", "mlp"), std, dtype)
        self.down = parameter(down, (hidden, embed), ("mlp", "embed"), out_std, dtype)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        dtype = x_BSD.dtype
        gate_BSF = checkpoint_name(expand(x_BSD, weight(self.gate, dtype)), "mlp_gate")
        up_BSF = checkpoint_name(expand(x_BSD, weight(self.up, dtype)), "mlp_up")
        hidden_BSF = shard(jax.nn.silu(gate_BSF) * up_BSF, "batch", "sequence", "mlp")
        return jnp.einsum("BSF,FD->BSD", hidden_BSF, weight(self.down, dtype))
