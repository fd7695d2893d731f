"""Attention over packed documents. Axis letters as in layers.py.

`reference` is plain XLA with a float32 softmax, the truth that other implementations are held to; `attend` takes the
one that kernels.py chooses.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.model import kernels
from maxlm.model.cache import KEYS, KeyValues
from maxlm.model.flash import flash_attention
from maxlm.model.mask import capped, visible
from maxlm.model.ring import ring_attention, tiled_attention
from maxlm.model.splash import splash_attention
from maxlm.parallel.batch import sequence_order
from maxlm.parallel.sharding import axis_size, join_sequence, manual, shard, split_sequence

QUERIES = 512  # at most so many see a cache at one time


@dataclass(frozen=True)
class Attended:
    """How a layer attends: its masks, and by what they are computed."""

    window: int | None = None
    softcap: float | None = None
    kernel: str = "auto"
    platform: str = "cpu"
    device_kind: str = ""
    documents: bool = True  # segment ids part documents; else they only mark padding at a row's end
    context: str = "all_gather"  # how a split sequence is seen whole: all_gather | ring


def attend(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, cache: KeyValues | None, how: Attended, prefix_BS=None):
    """Grouped-query attention of new queries over the cache (where given) and the new keys and values.

    It is causal but for the tokens of `prefix_BS` (bool), as `visible` says; not with a cache. Values may be of another
    width than queries and keys; with a cache of keys alone they are the keys, and None here.
    Under a context axis each shard holds its part of the sequence in `sequence_order`. Returns the mixed values
    [B, S, H, width of v], named "attention" for remat policies together with what else the backward pass of the
    implementation needs, and the extended cache. Padding (segment 0) sees only padding, so no row of the softmax is
    empty. (cudnn alone lets padding at a row's end see the text before it; nothing reads what comes of that.)
    """
    if cache is None:  # which keeps what there is, once
        k_BSKE, v_BSKE = (_per_shard(x, "sequence") for x in (k_BSKE, v_BSKE))
    shards, name = axis_size("context"), _choose(q_BSHE, v_BSKE, cache, how, prefix_BS is not None)
    if name == "reference":
        return _attend_by_reference(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, cache, how, prefix_BS)
    if name == "splash":
        blocks = kernels.splash_blocks(how.device_kind)
        mixed_BSHE = splash_attention(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, how.window, how.softcap, blocks)
        return mixed_BSHE, cache
    if name == "cudnn":
        own = functools.partial(_cudnn, window=how.window)
    else:
        own = {"blocked": ring_attention if shards > 1 else tiled_attention, "flash": flash_attention}[name]
        own = functools.partial(own, window=how.window, softcap=how.softcap)
    queries, keys, tokens = (("batch", "sequence", *rest) for rest in (("heads", None), ("kv_heads", None), ()))
    about_tokens = (segment_ids_BS,) if prefix_BS is None else (segment_ids_BS, prefix_BS)
    axes = (queries, keys, keys, *(tokens for _ in about_tokens))
    return manual(own, axes, queries)(q_BSHE, k_BSKE, v_BSKE, *about_tokens), cache


def _choose(q_BSHE, v_BSKE, cache: KeyValues | None, how: Attended, prefix: bool) -> str:
    asked = kernels.Asked(
        platform=how.platform,
        seq_len=q_BSHE.shape[1],
        num_heads=q_BSHE.shape[2],
        head_dim=q_BSHE.shape[3],
        value_dim=None if v_BSKE is None else v_BSKE.shape[3],
        dtype=q_BSHE.dtype.name,
        documents=how.documents,
        window=how.window is not None,
        softcap=how.softcap is not None,
        prefix=prefix,
        cache=cache is not None,
        context=how.context,
        shards=axis_size("context"),
    )
    return kernels.choose(how.kernel, asked)


def _attend_by_reference(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, cache: KeyValues | None, how: Attended, prefix_BS):
    if cache is not None:
        return _attend_to_cache(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, cache, how)
    index_S = jnp.asarray(sequence_order(q_BSHE.shape[1], axis_size("context")))
    k_BTKE, v_BTKE = (shard(x, *KEYS) for x in (k_BSKE, v_BSKE))
    segments_BT = shard(segment_ids_BS, "batch", None)
    prefix_BT = None if prefix_BS is None else shard(prefix_BS, "batch", None)
    allowed_BST = visible(index_S, index_S, segment_ids_BS, segments_BT, how.window, prefix_BS, prefix_BT)
    return checkpoint_name(reference(q_BSHE, k_BTKE, v_BTKE, allowed_BST, how.softcap), "attention"), None


def _attend_to_cache(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, cache: KeyValues, how: Attended):
    """Many queries, those of a prompt, in parts: what is held of scores and masks is linear in the slots."""
    length, first = q_BSHE.shape[1], cache.length
    seen, cache = cache.extend(k_BSKE, v_BSKE, segment_ids_BS, how.window)
    k_BTKE = _per_shard(seen.key_BTKE, None)
    v_BTKE = k_BTKE if seen.value_BTKE is None else _per_shard(seen.value_BTKE, None)

    def mixed(part: tuple) -> jax.Array:
        q_BsHE, segments_Bs, index_s = part
        allowed_BsT = visible(index_s, seen.number_T, segments_Bs, seen.segment_ids_BT, how.window)
        return reference(q_BsHE, k_BTKE, v_BTKE, allowed_BsT, how.softcap)

    parts = -(-length // QUERIES)
    if parts == 1:
        return mixed((q_BSHE, segment_ids_BS, first + jnp.arange(length))), cache
    rest = -length % parts
    q_BSHE, segment_ids_BS = (
        jnp.pad(x, ((0, 0), (0, rest)) + ((0, 0),) * (x.ndim - 2)) for x in (q_BSHE, segment_ids_BS)
    )
    index_cs = first + jnp.arange(length + rest).reshape(parts, -1)
    split = split_sequence(q_BSHE, parts, "heads", None), split_sequence(segment_ids_BS, parts), index_cs
    return join_sequence(jax.lax.map(mixed, split), "heads", None)[:, :length], cache


def _cudnn(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, window: int | None) -> jax.Array:
    """Rows of one document and, at its end, padding: that alone may see what it should not.

    Its log-sum-exp has no name, so wherever a layer is recomputed the kernel runs again.
    """
    back = None if window is None else (window - 1, 0)
    mixed_BSHE = jax.nn.dot_product_attention(
        q_BSHE, k_BSKE, v_BSKE, is_causal=True, local_window_size=back, implementation="cudnn"
    )
    return checkpoint_name(mixed_BSHE, "attention")


def _per_shard(k_BSKE: jax.Array, sequence: str | None) -> jax.Array:
    """Key/value heads repeated until every tensor shard has one; every shard has computed them all."""
    shards, heads = axis_size("tensor"), k_BSKE.shape[2]
    if heads >= shards:
        return k_BSKE
    return shard(jnp.repeat(k_BSKE, shards // heads, axis=2), "batch", sequence, "kv_heads", None)


def reference(q_BSHE, k_BTKE, v_BTKE, allowed_BST, softcap: float | None = None) -> jax.Array:
    """softmax(q k / sqrt(E)) v with masked scores, in float32; [B, S, H, width of v] in the queries' type.

    Scores are ordered as the product gives them, S before G: any other order is a copy of the largest array.
    """
    batch, length, heads, width = q_BSHE.shape
    kv_heads = k_BTKE.shape[2]
    q_BSKGE = q_BSHE.reshape(batch, length, kv_heads, heads // kv_heads, width) * width**-0.5
    scores_BKSGT = jnp.einsum("BSKGE,BTKE->BKSGT", q_BSKGE, k_BTKE, preferred_element_type=jnp.float32)
    scores_BKSGT = jnp.where(allowed_BST[:, None, :, None], capped(scores_BKSGT, softcap), -1e30)
    weights_BKSGT = jax.nn.softmax(scores_BKSGT, axis=-1).astype(v_BTKE.dtype)
    mixed_BKSGE = jnp.einsum("BKSGT,BTKE->BKSGE", weights_BKSGT, v_BTKE)
    return jnp.moveaxis(mixed_BKSGE, 1, 2).reshape(batch, length, heads, v_BTKE.shape[-1])
