"""Multi-head latent attention (DeepSeek-V2, section 2.1; V3, section 2.1.1). Axis letters as in layers.py, and:

Q latent of the queries, R latent of keys and values, N and P dimensions of a head that are not rotated and that are
(E is N + P), W width of a value's head.

    query_down [D, Q], query_norm [Q], query_up [Q, H, E]     or, without a latent of queries, query [D, H, E]
    kv_down [D, R], kv_norm [R], key_up [R, H, N], value_up [R, H, W]
    key_rope [D, P]                                           one rotated part of the keys for all heads
    out [H, W, D]
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config import ModelConfig
from maxlm.model.attention import attend
from maxlm.model.cache import KeyValues
from maxlm.model.layers import Options, attended, parameter, scaled, weight, whole
from maxlm.model.norms import Norm
from maxlm.model.positions import Rotations, Tables, apply_rope
from maxlm.parallel.sharding import shard


class LatentAttention(nnx.Module):
    """Attention whose queries, keys and values are made of narrow latents, causal but within prefixes.

    Where there is a cache it holds the normed latent and the rotated key of each token, R + P numbers, and attention
    works on these: a product with key_up can as well be one of the queries, and one with value_up one of what was
    mixed. That is attention with one key/value head, R + P wide. Elsewhere keys and values are made of the latent for
    every head, which takes fewer products where all tokens are queries.

    Where the residual stream is split over the tensor shards, each makes the latents of its own tokens, and these
    travel in place of the wider stream.
    """

    def __init__(self, config: ModelConfig, window: int | None, out_std: float, key: jax.Array, options: Options):
        latent, std, dtype = config.latent, config.init_std, options.params_dtype
        embed, heads, width, rank = config.embed_dim, config.num_heads, config.head_dim, latent.kv_rank
        keys = jax.random.split(key, 7)
        if latent.query_rank is None:
            self.query = parameter(keys[0], (embed, heads, width), ("embed", "heads", "head_dim"), std, dtype)
            self.query_down = self.query_norm = self.query_up = None
        else:
            narrow, wide = (embed, latent.query_rank), (latent.query_rank, heads, width)
            self.query = None
            self.query_down = parameter(keys[0], narrow, ("embed", "latent"), std, dtype)
            self.query_norm = _norm(latent.query_rank, config, dtype)
            self.query_up = parameter(keys[1], wide, ("query_rank", "heads", "head_dim"), std, dtype)
        up = ("kv_rank", "heads", "head_dim")
        self.kv_down = parameter(keys[2], (embed, rank), ("embed", "latent"), std, dtype)
        self.kv_norm = _norm(rank, config, dtype)
        self.key_rope = parameter(keys[3], (embed, latent.rope_head_dim), ("embed", "head_dim"), std, dtype)
        self.key_up = parameter(keys[4], (rank, heads, latent.nope_head_dim), up, std, dtype)
        self.value_up = parameter(keys[5], (rank, heads, latent.value_head_dim), up, std, dtype)
        out = (heads, latent.value_head_dim, embed)
        self.out = parameter(keys[6], out, ("heads", "head_dim", "embed"), out_std, dtype)
        # `attend` divides scores by the root of the width.
        self.scale = config.query_scale or width**-0.5
        self.attended, self.residual = attended(config, window, options), options.residual

    def __call__(self, x_BSD, rope: Rotations, segment_ids_BS, cache: KeyValues | None, prefix_BS=None):
        dtype, tables = x_BSD.dtype, rope.of(self.attended.window)
        q_BSHN, q_BSHP = self._queries(x_BSD, tables)
        c_BSR = self._latent(x_BSD, self.kv_down, self.kv_norm)
        k_BS1P = apply_rope(self._latent(x_BSD, self.key_rope)[:, :, None], tables)
        k_BS1P = shard(k_BS1P, "batch", "sequence", None, None)
        key_up, value_up = weight(self.key_up, dtype), weight(self.value_up, dtype)
        if cache is None:
            k_BSHN = jnp.einsum("BSR,RHN->BSHN", c_BSR, key_up)
            k_BSHP = jnp.broadcast_to(k_BS1P, (*k_BSHN.shape[:3], k_BS1P.shape[-1]))
            q_BSHE, k_BSHE = self._scaled(q_BSHN, q_BSHP), jnp.concatenate([k_BSHN, k_BSHP], -1)
            k_BSHE = checkpoint_name(shard(k_BSHE, "batch", "sequence", "kv_heads", None), "key")
            v_BSHW = jnp.einsum("BSR,RHW->BSHW", c_BSR, value_up)
            v_BSHW = checkpoint_name(shard(v_BSHW, "batch", "sequence", "kv_heads", None), "value")
            mixed_BSHW, cache = attend(q_BSHE, k_BSHE, v_BSHW, segment_ids_BS, cache, self.attended, prefix_BS)
        else:
            q_BSHE = self._scaled(jnp.einsum("BSHN,RHN->BSHR", q_BSHN, key_up), q_BSHP)
            # The latent is the values too; what the rotated key adds to them is dropped.
            k_BS1E = jnp.concatenate([c_BSR[:, :, None], k_BS1P], -1)
            mixed_BSHE, cache = attend(q_BSHE, k_BS1E, None, segment_ids_BS, cache, self.attended)
            mixed_BSHW = jnp.einsum("BSHR,RHW->BSHW", mixed_BSHE[..., : c_BSR.shape[-1]], value_up)
        mixed_BSHW = shard(mixed_BSHW, "batch", "sequence", "heads", None)
        return jnp.einsum("BSHW,HWD->BSD", mixed_BSHW, weight(self.out, dtype)), cache

    def _queries(self, x_BSD: jax.Array, tables: Tables | None) -> tuple[jax.Array, jax.Array]:
        """The parts of the queries that are not rotated, and that are."""
        dtype = x_BSD.dtype
        if self.query is None:
            c_BSQ = self._latent(x_BSD, self.query_down, self.query_norm)
            q_BSHE = jnp.einsum("BSQ,QHE->BSHE", c_BSQ, weight(self.query_up, dtype))
        else:
            q_BSHE = jnp.einsum("BSD,DHE->BSHE", whole(x_BSD, self.residual), weight(self.query, dtype))
        q_BSHN, q_BSHP = jnp.split(q_BSHE, [self.key_up.shape[-1]], axis=-1)
        return q_BSHN, apply_rope(q_BSHP, tables)

    def _latent(self, x_BSD: jax.Array, down: nnx.Param, norm: Norm | None = None) -> jax.Array:
        """The product with a narrow matrix, named for remat policies, and normed where there is a norm."""
        c_BSR = jnp.einsum("BSD,DR->BSR", shard(x_BSD, *self.residual), weight(down, x_BSD.dtype))
        c_BSR = checkpoint_name(shard(c_BSR, *self.residual), "latent")
        return whole(c_BSR if norm is None else norm(c_BSR), self.residual)

    def _scaled(self, q_BSHN: jax.Array, q_BSHP: jax.Array) -> jax.Array:
        """Queries as `attend` takes them."""
        q_BSHE = jnp.concatenate([q_BSHN, q_BSHP], -1)
        q_BSHE = scaled(q_BSHE, self.scale * q_BSHE.shape[-1] ** 0.5)
        return checkpoint_name(shard(q_BSHE, "batch", "sequence", "heads", None), "query")


def _norm(width: int, config: ModelConfig, dtype) -> Norm:
    return Norm((width,), ("norm",), config.latent.norm_eps, dtype, center=False, offset=config.norm_offset)
