"""The parts of a decoder layer. Axis legend for this package:

B batch, S sequence (queries), T sequence (keys), D embed, H query heads, K key/value heads, G query heads per
key/value head, E head_dim, F mlp, V vocabulary, L layers.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config import ModelConfig, ParallelConfig, PipelineConfig
from maxlm.model.attention import Attended, attend
from maxlm.model.cache import KeyValues
from maxlm.model.norms import heads_norm
from maxlm.model.parts import in_parts
from maxlm.model.positions import Rotations, apply_rope
from maxlm.parallel.sharding import all_gather, manual, replicated, reshard, shard, split_axes

WHOLE = ("batch", "sequence", None)  # logical axes of activations of which every tensor shard has all
TABLE = ("vocab", "table_embed")  # logical axes of the embedding table
POSITIONS = ("positions", "table_embed")  # and of the table of learned positions

# Logical axes in matrices of the residual stream's width, and of a latent's that they widen.
WIDTHS = frozenset({"embed", "expert_embed", "table_embed", "query_rank", "kv_rank"})

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
}

RematPolicy = str | tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """How a model is computed; nothing here changes what it computes."""

    params_dtype: Any = jnp.float32
    dtype: Any = jnp.float32  # of activations and matrix products
    remat: RematPolicy = "none"
    mlp_chunks: int = 1  # parts of the sequence in which a dense MLP is computed
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


def is_matrix(axes: tuple[str, ...]) -> bool:
    """Whether a parameter with these logical axes multiplies the rows of tokens: no norm, no bias and no table."""
    return axes not in (TABLE, POSITIONS) and not WIDTHS.isdisjoint(axes)


def is_cast(axes: tuple[str, ...]) -> bool:
    """Whether a parameter with these logical axes is used in the compute type alone: matrices but the router's, and
    tables."""
    return not WIDTHS.isdisjoint(axes) and "experts_router" not in axes


def bias(present: bool, shape: tuple[int, ...], axes: tuple[str, ...], dtype) -> nnx.Param | None:
    """What is added to a product, zero at first; None where it has no bias."""
    return nnx.Param(jnp.zeros(shape, dtype), logical_axes=axes) if present else None


def plus(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    return x if bias is None else x + weight(bias, x.dtype)


def weight(param: nnx.Param, dtype: Any) -> jax.Array:
    """A matrix in the compute type, gathered for use: what travels is of that type."""
    axes = param.get_metadata("logical_axes")
    return reshard(param[...].astype(dtype), replicated(axes), axes)


def whole(x_BSD: jax.Array, residual: tuple[str, str, None]) -> jax.Array:
    """The sequence gathered from the tensor shards, where the residual stream is split over them."""
    # Pinned before it travels, or the partitioner may gather the float32 from which the norm rounds it.
    return reshard(shard(x_BSD, *residual), WHOLE, residual)


def look_up(table_VD: jax.Array, axes: tuple[str | None, ...], tokens_BS: jax.Array) -> jax.Array:
    """Rows [B, S, D] of a table, of embeddings or positions, which is stored with these logical axes.

    Each device gathers the table's width and looks up its own tokens in its own part of the rows: the gradient is
    added up locally and scattered. The partitioner would rather move the activations to where the table is.
    """
    rows = axes[0]

    def own(table_VD, tokens_BS):
        row_axes = split_axes(rows)
        if axes[1]:
            table_VD = all_gather(table_VD, 1, axes[1])
        if not row_axes:
            return table_VD[tokens_BS][None]
        row_BS = tokens_BS - table_VD.shape[0] * jax.lax.axis_index(row_axes)
        present_BS = (row_BS >= 0) & (row_BS < table_VD.shape[0])
        return jnp.where(present_BS[..., None], table_VD[jnp.where(present_BS, row_BS, 0)], 0)[None]

    # One part per shard of the rows, of which all but one are zero at each token.
    parts = manual(own, (axes, ("batch", "sequence")), (rows, "batch", "sequence", None))(table_VD, tokens_BS)
    return jnp.sum(parts, axis=0)


def attended(config: ModelConfig, window: int | None, options: Options) -> Attended:
    """How a layer with this window attends."""
    return Attended(
        window=window,
        softcap=config.attention_softcap,
        kernel=options.attention,
        platform=options.platform,
        device_kind=options.device_kind,
        documents=options.documents,
        context=options.parallel.context,
    )


def scaled(q_BSHE: jax.Array, factor: float) -> jax.Array:
    """Queries times a factor, in float32: rounded to bfloat16 the factor would be off, and all scores with it."""
    return (q_BSHE.astype(jnp.float32) * factor).astype(q_BSHE.dtype)


class Attention(nnx.Module):
    """Grouped-query attention, causal but within prefixes."""

    def __init__(self, config: ModelConfig, window: int | None, out_std: float, key: jax.Array, options: Options):
        query, keys, value, out = jax.random.split(key, 4)
        embed, heads, kv_heads, width = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        std, dtype = config.init_std, options.params_dtype
        self.query = parameter(query, (embed, heads, width), ("embed", "heads", "head_dim"), std, dtype)
        self.key = parameter(keys, (embed, kv_heads, width), ("embed", "kv_heads", "head_dim"), std, dtype)
        self.value = parameter(value, (embed, kv_heads, width), ("embed", "kv_heads", "head_dim"), std, dtype)
        self.out = parameter(out, (heads, width, embed), ("heads", "head_dim", "embed"), out_std, dtype)
        self.query_bias = bias(config.qkv_bias, (heads, width), ("heads", "head_dim"), dtype)
        self.key_bias = bias(config.qkv_bias, (kv_heads, width), ("kv_heads", "head_dim"), dtype)
        self.value_bias = bias(config.qkv_bias, (kv_heads, width), ("kv_heads", "head_dim"), dtype)
        self.out_bias = bias(config.out_bias, (embed,), ("norm",), dtype)
        self.query_norm = heads_norm(config, heads, "heads", dtype)
        self.key_norm = heads_norm(config, kv_heads, "kv_heads", dtype)
        # `attend` divides scores by the root of the width.
        self.query_factor = None if config.query_scale is None else config.query_scale * width**0.5
        self.attended, self.residual = attended(config, window, options), options.residual

    def __call__(self, x_BSD, rope: Rotations, segment_ids_BS, cache: KeyValues | None, prefix_BS=None):
        x_BSD, dtype, tables = whole(x_BSD, self.residual), x_BSD.dtype, rope.of(self.attended.window)
        q_BSHE = plus(jnp.einsum("BSD,DHE->BSHE", x_BSD, weight(self.query, dtype)), self.query_bias)
        k_BSKE = plus(jnp.einsum("BSD,DKE->BSKE", x_BSD, weight(self.key, dtype)), self.key_bias)
        v_BSKE = plus(jnp.einsum("BSD,DKE->BSKE", x_BSD, weight(self.value, dtype)), self.value_bias)
        if self.query_norm is not None:
            q_BSHE, k_BSKE = self.query_norm(q_BSHE), self.key_norm(k_BSKE)
        if self.query_factor is not None:
            q_BSHE = scaled(q_BSHE, self.query_factor)
        q_BSHE = checkpoint_name(shard(apply_rope(q_BSHE, tables), "batch", "sequence", "heads", None), "query")
        k_BSKE = checkpoint_name(shard(apply_rope(k_BSKE, tables), "batch", "sequence", "kv_heads", None), "key")
        v_BSKE = checkpoint_name(shard(v_BSKE, "batch", "sequence", "kv_heads", None), "value")
        mixed_BSHE, cache = attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, cache, self.attended, prefix_BS)
        mixed_BSHE = shard(mixed_BSHE, "batch", "sequence", "heads", None)
        return plus(jnp.einsum("BSHE,HED->BSD", mixed_BSHE, weight(self.out, dtype)), self.out_bias), cache


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
    """(activation(x gate) * (x up)) down (Shazeer 2020), `hidden` wide; without a gate activation(x up) down."""

    def __init__(self, config: ModelConfig, hidden: int, out_std: float, key: jax.Array, dtype):
        gate, up, down = jax.random.split(key, 3)
        embed, std, gated, biased = config.embed_dim, config.init_std, config.mlp_gated, config.mlp_bias
        self.gate = parameter(gate, (embed, hidden), ("embed", "mlp"), std, dtype) if gated else None
        self.up = parameter(up, (embed, hidden), ("embed", "mlp"), std, dtype)
        self.down = parameter(down, (hidden, embed), ("mlp", "embed"), out_std, dtype)
        self.gate_bias = bias(gated and biased, (hidden,), ("mlp",), dtype)
        self.up_bias = bias(biased, (hidden,), ("mlp",), dtype)
        self.down_bias = bias(biased, (embed,), ("norm",), dtype)
        self.activation = config.activation

    def __call__(self, x_BSD: jax.Array, chunks: int = 1) -> jax.Array:
        """[B, S, D] -> [B, S, D]; the hidden layer of one of `chunks` parts of the sequence exists at one time.

        Each part is recomputed in the backward pass. Where the layer around it is recomputed anyway that costs nothing.
        """
        params = {name: getattr(self, name) for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")}
        params = {name: param for name, param in params.items() if param is not None}
        arrays = {name: weight(param, x_BSD.dtype) for name, param in params.items()}
        product = functools.partial(_mlp, ACTIVATIONS[self.activation])
        if chunks == 1:
            return product(arrays, x_BSD)
        axes = {name: tuple(param.get_metadata("logical_axes")) for name, param in params.items()}
        return in_parts(product, chunks, axes, arrays, x_BSD)


def _mlp(activation, params: dict, x_BSD: jax.Array) -> jax.Array:
    def plus(x, name: str) -> jax.Array:
        return x + params[name] if name in params else x

    up_BSF = checkpoint_name(plus(expand(x_BSD, params["up"]), "up_bias"), "mlp_up")
    if "gate" in params:
        gate_BSF = checkpoint_name(plus(expand(x_BSD, params["gate"]), "gate_bias"), "mlp_gate")
        hidden_BSF = activation(gate_BSF) * up_BSF
    else:
        hidden_BSF = activation(up_BSF)
    hidden_BSF = shard(hidden_BSF, "batch", "sequence", "mlp")
    return plus(jnp.einsum("BSF,FD->BSD", hidden_BSF, params["down"]), "down_bias")
