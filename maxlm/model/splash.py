"""Attention by JAX's splash kernel for TPUs (Pallas). Axis letters as in layers.py.

The kernel works in tiles and skips those that the causal mask or the window empties; each query head finds its
key/value head by itself, so keys are not repeated. Documents are masked by segment ids inside a tile. Its backward pass
recomputes the tiles from the saved log-sum-exp, in two kernels: the fused one would write a part of dq per block of
keys, 3 GiB more for 8B parameters at 2 x 8192 tokens a chip.
"""

import functools

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_infos

from maxlm.model.kernels import Blocks
from maxlm.parallel.batch import sequence_order
from maxlm.parallel.sharding import all_gather, axis_size, manual

LANES = 128


def splash_attention(
    q_BSHE,
    k_BSKE,
    v_BSKE,
    segment_ids_BS,
    window: int | None,
    softcap: float | None,
    blocks: Blocks,
    interpret: bool = False,
) -> jax.Array:
    """Causal grouped-query attention [B, S, H, width of v] of whole arrays, each device computing its rows, heads and
    queries.

    Under a context axis the sequence is in `sequence_order`, and every device gathers keys and values. S, and then each
    chunk of `sequence_order`, is a multiple of 128. The result is named "attention" for remat policies, and so is the
    log-sum-exp: with the result alone the backward pass would run the forward kernel again.
    """
    shards = axis_size("context")
    kernel = _kernel(q_BSHE.shape[1], shards, window, softcap, blocks, interpret)
    # The description of the tiles is split as the queries are.
    infos, structure = jax.tree.flatten(kernel)
    of_infos = tuple((None, "sequence", None) if info.ndim == 3 else ("sequence",) for info in infos)
    queries, keys = ("batch", "sequence", "heads", None), ("batch", "sequence", "kv_heads", None)

    def own(infos, q_BSHE, k_BTKE, v_BTKE, segment_ids_BS):
        segments_BT = segment_ids_BS
        if shards > 1:
            k_BTKE, v_BTKE, segments_BT = (_natural(x, shards) for x in (k_BTKE, v_BTKE, segment_ids_BS))
        q_BHSE = (q_BSHE * q_BSHE.shape[-1] ** -0.5).swapaxes(1, 2)
        segments = kernels.SegmentIds(segment_ids_BS, segments_BT)
        attend = jax.vmap(jax.tree.unflatten(structure, infos))
        return attend(q_BHSE, k_BTKE.swapaxes(1, 2), v_BTKE.swapaxes(1, 2), segments).swapaxes(1, 2)

    run = manual(own, (of_infos, queries, keys, keys, queries[:2]), queries)
    return run(tuple(infos), q_BSHE, k_BSKE, v_BSKE, segment_ids_BS)


def _natural(x_BS: jax.Array, shards: int) -> jax.Array:
    """A shard's part of [B, S, ...] -> the whole of it, in the sequence's own order."""
    whole_BT = all_gather(x_BS, 1, "sequence")
    batch, length, *rest = whole_BT.shape
    place = np.argsort(sequence_order(2 * shards, shards))
    return whole_BT.reshape(batch, 2 * shards, -1, *rest)[:, place].reshape(batch, length, *rest)


@functools.lru_cache
def _kernel(length: int, shards: int, window: int | None, softcap: float | None, blocks: Blocks, interpret: bool):
    """The kernel over queries in `sequence_order` and keys in their own order; what it prefetches are numpy arrays."""
    (forward_q, forward_kv), (dq_q, dq_kv), (dkv_q, dkv_kv) = (
        # Not across two chunks: a tile of both would be masked more than either.
        (_block(length // (2 * shards if shards > 1 else 1), q), _block(length, kv))
        for q, kv in (blocks.forward, blocks.dq, blocks.dkv)
    )
    sizes = kernels.BlockSizes(
        block_q=forward_q,
        block_kv=forward_kv,
        block_q_dq=dq_q,
        block_kv_dq=dq_kv,
        block_q_dkv=dkv_q,
        block_kv_dkv=dkv_kv,
        use_fused_bwd_kernel=False,
    )
    visible = masks.MultiHeadMask([Visible(sequence_order(length, shards), window)])  # the same for all heads
    split = {"head_shards": 1, "q_seq_shards": shards}
    of_forward, mask_function = mask_infos.process_mask(visible, (forward_q, forward_kv), **split)
    of_dq, _ = mask_infos.process_mask(visible, (dq_q, dq_kv), **split)
    of_dkv, _ = mask_infos.process_mask_dkv(visible, (dkv_q, dkv_kv), **split)
    # As `make_splash_mha` makes it, but for its device arrays: it is called while a program is traced.
    return kernels.SplashAttentionKernel(
        of_forward,
        of_dq,
        of_dkv,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name="attention",
        mask_function=mask_function,
        interpret=interpret,
    )


def _block(length: int, largest: int) -> int:
    """The longest block of at most `largest` positions, a multiple of the lanes, that divides the length."""
    lanes = length // LANES
    return LANES * max(count for count in range(1, largest // LANES + 1) if lanes % count == 0)


class Visible(masks.LocalMask):
    """`mask.visible` but for the documents, over queries in the given order: the kernel computes it in its tiles."""

    def __init__(self, order_S: np.ndarray, window: int | None):
        length = len(order_S)
        super().__init__((length, length), (None if window is None else window - 1, 0), 0)
        self.q_sequence = order_S

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """A part of the mask, in short [1, 1] where it is the same all over: long sequences have many such parts."""
        q_S, keys = self.q_sequence[index[0]], index[1]
        nearest, farthest = q_S.min() - (keys.stop - 1), q_S.max() - keys.start
        back = farthest if self.window_size[0] is None else self.window_size[0]
        if nearest >= 0 and farthest <= back:
            return np.ones((1, 1), bool)
        if farthest < 0 or nearest > back:
            return np.zeros((1, 1), bool)
        return super().__getitem__(index)
