"""Attention over a sequence that is split over a ring of devices: exact, balanced, nothing gathered.

Every device keeps its queries; keys and values go round the ring (Liu et al. 2023, Ring Attention), and softmax is
merged as they pass, by running maximum and sum (Milakov and Gimelshein 2018). A causal mask would leave the holder of
the first tokens idle, so the sequence is cut in 2 * shards chunks and shard r holds chunks r and 2 * shards - 1 - r
(Brandon et al. 2023 stripe for the same reason; Llama 3's context parallelism cuts as here, section 3.3.2). Write
early and late for a shard's two chunks. Of the four pairs of chunks between a device's queries and another shard's
keys, causality allows exactly two, and these wholly: late queries see early keys always; and, where the keys' owner
stands before the device, early queries see early keys, else late queries see late keys. All devices thus do equal
work at every step, and which pair it is decides a number added to a block's index, not a branch. Where documents have
prefixes, within which tokens see later ones too, the other pairs hold what is ahead; of their tiles only those are
worked through that a prefix reaches, found from the batch as it comes.

A shard is worked through in tiles, a block of queries against a block of keys, so no scores larger than a tile
exist, in the backward pass neither: it recomputes each tile from the saved log-sum-exp (Dao 2023, FlashAttention-2).

Axis letters as in layers.py, and: N blocks of a shard, S and T positions of one block, R its query rows (S positions
times the G query heads that share a key/value head, heads fastest), P tiles.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from maxlm.model.mask import capped, slope, visible

# Positions of a block. Float32 scores of 512 x 512 positions and 32 heads are 32 MiB a row of the batch; smaller blocks
# read and write the running sums more often, larger ones take more memory for little.
BLOCK = 512
# The score of what is masked, and where running maxima start: the first lies so far below the second that its
# exponential is 0 even in a row that has seen nothing yet.
MASKED, START = -1e30, -1e20


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def ring_attention(
    q_BSHE,
    k_BSKE,
    v_BSKE,
    segment_ids_BS,
    prefix_BS=None,
    window: int | None = None,
    softcap: float | None = None,
    axis: str | None = "context",
) -> jax.Array:
    """Grouped-query attention, to be called where the mesh axis `axis` is manual; returns [B, S, H, E].

    The arguments are this device's shards, S positions, of sequences in `sequence_order`; without an axis they are
    whole. Values may be wider or narrower than keys, and the result is as wide as they are. Equals `reference` under
    the mask of `visible` over the sequence's own order: causal, but for the tokens that `prefix_BS` (bool) marks.
    Scores, statistics of the softmax and all sums are float32. The result is named "attention" for remat policies. For
    speed, half of S should have a divisor near, not above, BLOCK.
    """
    return _forward(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, prefix_BS, window, softcap, axis)[0]


def _forward(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, prefix_BS, window: int | None, softcap: float | None, axis):
    tokens_BS, kv_heads = (segment_ids_BS, prefix_BS), k_BSKE.shape[2]
    queries, shard = _queries(q_BSHE, tokens_BS, kv_heads, axis), _keys(k_BSKE, v_BSKE, tokens_BS)
    q_NBKRE = queries[0]
    start_NBKR = jnp.full(q_NBKRE.shape[:-1], START, jnp.float32)
    start_NBKRE = jnp.zeros((*start_NBKR.shape, v_BSKE.shape[-1]), jnp.float32)
    start = (start_NBKR, jnp.zeros_like(start_NBKR), start_NBKRE)
    tile = functools.partial(_tile_forward, window=window, softcap=softcap)
    (max_NBKR, sum_NBKR, mixed_NBKRE), _ = _around(tile, queries, shard, start, (), window, axis)
    # Every query sees at least itself: no sum is 0.
    out_BSHE = _from_blocks(mixed_NBKRE / sum_NBKR[..., None], q_BSHE.shape[:3]).astype(q_BSHE.dtype)
    # Named here: a remat policy that saves the result alone would go round the ring again for the log-sum-exp.
    out_BSHE = checkpoint_name(out_BSHE, "attention")
    lse_NBKR = checkpoint_name(max_NBKR + jnp.log(sum_NBKR), "attention")
    return out_BSHE, (q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, prefix_BS, out_BSHE, lse_NBKR)


def _backward(window: int | None, softcap: float | None, axis: str | None, residuals, d_out_BSHE):
    q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, prefix_BS, out_BSHE, lse_NBKR = residuals
    tokens_BS, kv_heads = (segment_ids_BS, prefix_BS), k_BSKE.shape[2]
    queries, shard = _queries(q_BSHE, tokens_BS, kv_heads, axis), _keys(k_BSKE, v_BSKE, tokens_BS)
    # The derivative of softmax subtracts sum over T of weights * d_weights, which is d_out . out (Dao et al. 2022).
    dot_BSH1 = jnp.sum(d_out_BSHE.astype(jnp.float32) * out_BSHE.astype(jnp.float32), -1, keepdims=True)
    dot_NBKR = _to_blocks(dot_BSH1, kv_heads)[..., 0]
    queries += (_to_blocks(d_out_BSHE, kv_heads), lse_NBKR, dot_NBKR)
    zeros_q, zeros_k, zeros_v = (jnp.zeros(x.shape, jnp.float32) for x in (queries[0], *shard[:2]))
    tile = functools.partial(_tile_backward, window=window, softcap=softcap)
    dq, (dk, dv) = _around(tile, queries, shard, zeros_q, (zeros_k, zeros_v), window, axis)
    dq_BSHE = _from_blocks(dq, q_BSHE.shape[:3]) * q_BSHE.shape[-1] ** -0.5
    dk_BSKE, dv_BSKE = _from_blocks(dk, k_BSKE.shape[:3]), _from_blocks(dv, v_BSKE.shape[:3])
    return dq_BSHE.astype(q_BSHE.dtype), dk_BSKE.astype(k_BSKE.dtype), dv_BSKE.astype(v_BSKE.dtype), None, None


ring_attention.defvjp(_forward, _backward)


def tiled_attention(
    q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, prefix_BS=None, *, window: int | None, softcap: float | None
) -> jax.Array:
    """`ring_attention` on one device, over sequences of any length S: it pads what does not make two even chunks."""
    length = q_BSHE.shape[1]
    padding = length % 2 if length <= 2 * BLOCK else -length % (BLOCK // 4)

    def padded(x_BS):
        return jnp.pad(x_BS, [(0, 0), (0, padding)] + [(0, 0)] * (x_BS.ndim - 2))  # segment 0, later than all

    arrays = (q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, prefix_BS)
    arrays = jax.tree.map(padded, arrays) if padding else arrays
    return ring_attention(*arrays, window, softcap, None)[:, :length]


def _scores(q_BKRE, k_BKTE, softcap: float | None) -> jax.Array:
    return capped(jnp.einsum("BKRE,BKTE->BKRT", q_BKRE, k_BKTE, preferred_element_type=jnp.float32), softcap)


def _tile_forward(queries, keys, totals, nothing, window: int | None, softcap: float | None):
    """One tile's part of the softmax, merged into the running maxima, sums [B, K, R] and mixed values."""
    q_BKRE, index_R, segments_BR, prefix_BR = queries
    k_BKTE, v_BKTE, segments_BT, prefix_BT, index_T = keys
    old_BKR, sum_BKR, mixed_BKRE = totals
    allowed_BRT = visible(index_R, index_T, segments_BR, segments_BT, window, prefix_BR, prefix_BT)
    scores_BKRT = jnp.where(allowed_BRT[:, None], _scores(q_BKRE, k_BKTE, softcap), MASKED)
    max_BKR = jnp.maximum(old_BKR, jnp.max(scores_BKRT, axis=-1))
    weights_BKRT = jnp.exp(scores_BKRT - max_BKR[..., None])
    rescale_BKR = jnp.exp(old_BKR - max_BKR)
    new_BKRE = _product("BKRT,BKTE->BKRE", weights_BKRT.astype(v_BKTE.dtype), v_BKTE)
    sum_BKR = sum_BKR * rescale_BKR + jnp.sum(weights_BKRT, axis=-1)
    return (max_BKR, sum_BKR, mixed_BKRE * rescale_BKR[..., None] + new_BKRE), nothing


def _tile_backward(queries, keys, dq_BKRE, d_keys, window: int | None, softcap: float | None):
    """One tile's part of the gradients, added to them."""
    q_BKRE, index_R, segments_BR, prefix_BR, d_out_BKRE, lse_BKR, dot_BKR = queries
    k_BKTE, v_BKTE, segments_BT, prefix_BT, index_T = keys
    dk_BKTE, dv_BKTE = d_keys
    allowed_BRT = visible(index_R, index_T, segments_BR, segments_BT, window, prefix_BR, prefix_BT)
    scores_BKRT = _scores(q_BKRE, k_BKTE, softcap)
    weights_BKRT = jnp.exp(jnp.where(allowed_BRT[:, None], scores_BKRT, MASKED) - lse_BKR[..., None])
    dv_BKTE += _product("BKRT,BKRE->BKTE", weights_BKRT.astype(d_out_BKRE.dtype), d_out_BKRE)
    d_weights_BKRT = _product("BKRE,BKTE->BKRT", d_out_BKRE, v_BKTE)
    d_scores_BKRT = weights_BKRT * (d_weights_BKRT - dot_BKR[..., None])
    if softcap is not None:
        d_scores_BKRT *= slope(scores_BKRT, softcap)
    d_scores_BKRT = d_scores_BKRT.astype(q_BKRE.dtype)
    dq_BKRE += _product("BKRT,BKTE->BKRE", d_scores_BKRT, k_BKTE)
    dk_BKTE += _product("BKRT,BKRE->BKTE", d_scores_BKRT, q_BKRE)
    return dq_BKRE, (dk_BKTE, dv_BKTE)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _around(tile, queries, shard, totals, zeros, window: int | None, axis: str | None):
    """Apply `tile` to all visible tiles while every shard of the keys passes by once.

    `tile(query block, key block, totals block, sums block)` returns the last two updated: totals stay with the
    queries; sums (the trees of `zeros`) belong to the keys and come home at the end. Returns both.
    """
    shards, rank = _place(axis)
    blocks, block = shard[2].shape[0], shard[2].shape[2]
    prefixes = shard[3] is not None
    schedule = _schedule(shards, blocks // 2, block, window, prefixes)

    def visit(totals, shard, step, tiles_P3, count):
        if not len(tiles_P3):  # all lie outside the window
            return totals, zeros
        keys = (*shard, _indices((rank - step) % shards, shards, blocks, block))
        # Owners after this device have gone past the end of the ring: their step exceeds its rank.
        later = jnp.where(step > rank, blocks // 2, 0)
        tiles_P3 = jnp.asarray(tiles_P3)
        if prefixes:
            tiles_P3, count = _needed(tiles_P3, count, later, queries, keys)

        def run(carry):
            number, totals, sums = carry
            query, key, switched = tiles_P3[number]
            query, key = query + switched * later, key + switched * later
            block = tile(_get(queries, query), _get(keys, key), _get(totals, query), _get(sums, key))
            return number + 1, _set(totals, query, block[0]), _set(sums, key, block[1])

        # Not a scan, nor a fori_loop, which becomes one: masks depend on no activation, so differentiating a scan over
        # layers would take the masks of all tiles out of it, and keep what is quadratic in the sequence.
        start = (jnp.int32(0), totals, zeros)
        return jax.lax.while_loop(lambda carry: carry[0] < count, run, start)[1:]

    # XLA learns the length of the loop over tiles where all steps have the same, as they do without a window.
    middle = schedule[1:-1]
    counts = [len(tiles_P3) for tiles_P3 in middle]
    known = len(set(counts)) == 1

    def advance(carry, step_tiles_count):
        # Neither permute awaits this step's tiles, so both can hide behind them: keys leave for the next device
        # before they are used here, and sums follow one step behind, those of the last step being complete.
        totals, shard, sums = carry
        step, tiles_P3, count = step_tiles_count
        arriving, sums = _pass_on((shard, sums), axis, shards)
        totals, more = visit(totals, shard, step, tiles_P3, counts[0] if known else count)
        return (totals, arriving, jax.tree.map(jnp.add, sums, more)), None

    arriving = _pass_on(shard, axis, shards) if shards > 1 else None
    totals, sums = visit(totals, shard, 0, schedule[0], len(schedule[0]))
    if middle:
        tiles = np.stack([np.resize(tiles_P3, (max(counts), 3)) for tiles_P3 in middle])  # what is added is not run
        xs = (np.arange(1, shards - 1), tiles, np.array(counts))
        (totals, arriving, sums), _ = jax.lax.scan(advance, (totals, arriving, sums), xs)
    if shards > 1:
        sums = _pass_on(sums, axis, shards)
        totals, more = visit(totals, arriving, shards - 1, schedule[-1], len(schedule[-1]))
        sums = _pass_on(jax.tree.map(jnp.add, sums, more), axis, shards)
    return totals, sums


def _schedule(shards: int, half: int, block: int, window: int | None, prefixes: bool = False) -> list[np.ndarray]:
    """For every step of the ring its tiles [P, 3]: query block, key block, and 1 where `half` is to be added to both
    when the keys' owner stands after the device (early with early becomes late with late), -1 where to be subtracted.

    All devices have one schedule. A tile is left out if its keys are outside the window on every device, or later than
    its queries, unless there are `prefixes`, where those ahead follow the others. Steps away from the owner, chunks of
    the pair that depends on the rank are at least min(step, shards - step) chunks apart, those of late queries and
    early keys (ahead: of early queries and late keys) at least one more.
    """

    def within(query, key, switched: int, blocks_apart) -> np.ndarray:
        nearest = np.maximum((blocks_apart - 1) * block + 1, 0)  # distance of the closest two positions
        seen = nearest < (window or np.inf)
        return np.stack([query, key, np.full_like(query, switched)], -1)[seen].astype(np.int32)

    # A shard's blocks stand in the sequence's order, so its own tiles are a triangle; its chunks may be neighbours.
    late, early = np.tril_indices(2 * half)
    tiles = [within(late, early, 0, late - early)]
    if prefixes:
        late, early = np.tril_indices(2 * half, -1)
        tiles.append(within(early, late, 0, late - early))
    schedule = [np.concatenate(tiles)]
    late, early = np.indices((half, half)).reshape(2, -1)
    for step in range(1, shards):
        apart = min(step, shards - step) * half + late - early
        tiles = [within(late, early, 1, apart), within(late + half, early, 0, apart + half)]
        if prefixes:
            tiles += [within(early + half, late + half, -1, apart), within(early, late + half, 0, apart + half)]
        schedule.append(np.concatenate(tiles))
    return schedule


def _needed(tiles_P3, count, half, queries, keys):
    """Of the first `count` tiles those in which there is something to see, first, and their number.

    A tile whose keys are ahead is needed where a prefix lies in both of its blocks: where, in a row, the segments of
    their prefixes' tokens overlap as ranges. In documents much shorter than the sequence these are few.
    """
    (_, index_NR, *query_tokens), (_, _, *key_tokens, index_NT) = queries[:4], keys
    query_P, key_P = (tiles_P3[:, place] + tiles_P3[:, 2] * half for place in range(2))
    (low_NB, high_NB), (key_low_NB, key_high_NB) = (_prefix_segments(*tokens) for tokens in (query_tokens, key_tokens))
    overlap_PB = (low_NB[query_P] <= key_high_NB[key_P]) & (key_low_NB[key_P] <= high_NB[query_P])
    needed_P = (index_NT[key_P, 0] <= index_NR[query_P, 0]) | jnp.any(overlap_PB, axis=1)
    needed_P &= jnp.arange(len(tiles_P3)) < count
    return tiles_P3[jnp.argsort(~needed_P, stable=True)], jnp.sum(needed_P)


def _prefix_segments(segments_NBS, prefix_NBS) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest segment of a block's prefixes [N, B]; where it has none, what overlaps nothing."""
    none = jnp.iinfo(jnp.int32)
    least = jnp.min(jnp.where(prefix_NBS, segments_NBS, none.max), axis=-1)
    return least, jnp.max(jnp.where(prefix_NBS, segments_NBS, none.min), axis=-1)


def _place(axis: str | None):
    """Devices of the ring, and this one's number."""
    return (1, 0) if axis is None else (jax.lax.axis_size(axis), jax.lax.axis_index(axis))


def _pass_on(tree, axis: str, shards: int):
    """What the device before this one in the ring holds."""
    return jax.lax.ppermute(tree, axis, [(device, (device + 1) % shards) for device in range(shards)])


def _get(tree, block):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, block, keepdims=False), tree)


def _set(tree, block, values):
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, block, 0), tree, values)


def _queries(q_BSHE, tokens_BS, kv_heads: int, axis: str | None):
    """Scaled queries [N, B, K, R, E], their indices in the sequence [N, R], segments and prefix (or None) [N, B, R]."""
    group, width = q_BSHE.shape[2] // kv_heads, q_BSHE.shape[3]
    tokens_NBS = jax.tree.map(_token_blocks, tokens_BS)
    shards, rank = _place(axis)
    index_NS = _indices(rank, shards, tokens_NBS[0].shape[0], tokens_NBS[0].shape[2])
    q_NBKRE = _to_blocks(q_BSHE * width**-0.5, kv_heads)
    return q_NBKRE, *jax.tree.map(lambda x: jnp.repeat(x, group, axis=-1), (index_NS, *tokens_NBS))


def _keys(k_BSKE, v_BSKE, tokens_BS):
    """What goes round the ring: keys and values [N, B, K, T, E], their segments and prefix (or None) [N, B, T]."""
    kv_heads = k_BSKE.shape[2]
    return _to_blocks(k_BSKE, kv_heads), _to_blocks(v_BSKE, kv_heads), *jax.tree.map(_token_blocks, tokens_BS)


def _indices(owner, shards: int, blocks: int, block: int) -> jax.Array:
    """Indices in the sequence of the tokens of shard `owner`, int32 [N, T]."""
    chunk = blocks // 2 * block
    starts_2 = jnp.stack([owner, 2 * shards - 1 - owner]) * chunk
    return (starts_2[:, None] + jnp.arange(chunk)).reshape(blocks, block)


def _block_count(length: int) -> int:
    """Blocks of a shard: an even number, as few as BLOCK allows."""
    if length % 2:
        raise ValueError(f"a shard of {length} positions is not made of two chunks; see `sequence_order`")
    return next(count for count in range(2, length + 1, 2) if length % count == 0 and length // count <= BLOCK)


def _token_blocks(x_BS) -> jax.Array:
    batch, length = x_BS.shape
    return jnp.moveaxis(x_BS.reshape(batch, _block_count(length), -1), 1, 0)


def _to_blocks(x_BSHE, kv_heads: int) -> jax.Array:
    """[B, S, H, E] -> [N, B, K, R, E]; of keys and values, whose heads are all kv_heads, [N, B, K, T, E]."""
    batch, length, heads, width = x_BSHE.shape
    blocks = _block_count(length)
    x = x_BSHE.reshape(batch, blocks, length // blocks, kv_heads, heads // kv_heads, width)
    return jnp.transpose(x, (1, 0, 3, 2, 4, 5)).reshape(blocks, batch, kv_heads, -1, width)


def _from_blocks(x_NBKRE, shape: tuple[int, ...]) -> jax.Array:
    """The inverse: [N, B, K, R, E] -> [B, S, H, E], of which `shape` has the first three sizes."""
    blocks, batch, kv_heads, _, width = x_NBKRE.shape
    x = x_NBKRE.reshape(blocks, batch, kv_heads, -1, shape[2] // kv_heads, width)
    return jnp.transpose(x, (1, 0, 3, 2, 4, 5)).reshape(*shape, width)
