"""Causal attention over packed documents on GPUs: exact, its memory linear in the length of the sequence.

Tiles of scores live in a processor's own memory; the backward pass recomputes them from the saved log-sum-exp (Dao
2023, FlashAttention-2), in one kernel for the gradients of keys and values and one for those of queries, without
atomic additions: results are the same bits each time. Query heads that share a key/value head read the same keys,
which are never repeated.

A document stands in one piece, so what a query sees is a range, from the start of its document or window to itself;
both ends only grow along the sequence. Hence the tiles that need no mask, and those that need not be visited, follow
from the ends of a block's range, whatever lies packed in a row.

Axis letters as in layers.py, and: R query rows of a block, T its keys, G query heads of a key/value head.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


class Tile(NamedTuple):
    """A block of queries against one of keys, powers of 2, and how the GPU's compiler runs the loop over them."""

    queries: int
    keys: int
    warps: int
    stages: int  # blocks in flight from memory


class Tiles(NamedTuple):
    forward: Tile
    keys_gradient: Tile
    queries_gradient: Tile


# By the bytes of a head's row (128: 64 numbers of bfloat16), the next larger. All fit the shared memory of an A100, and
# but for a few bytes (0.3 KB a thread for the keys' gradient of 256 on H100) what they compute stays in registers.
TILES = {
    128: Tiles(Tile(128, 64, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 3)),
    256: Tiles(Tile(128, 64, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2)),
    512: Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 8, 1), Tile(64, 32, 8, 2)),
    1024: Tiles(Tile(64, 16, 8, 1), Tile(16, 32, 8, 1), Tile(32, 16, 8, 1)),
}
# The score of what is masked, and where running maxima start: the first lies so far below the second that its
# exponential is 0 even in a row that has seen nothing yet.
MASKED, START = -1e30, -1e20
LOG2_E = math.log2(math.e)


class Scoring(NamedTuple):
    """Scores are `unit` times the product with the keys, or times its tanh; the exponential is that of base 2."""

    scale: float
    softcap: float | None

    @property
    def unit(self) -> float:
        return (self.scale if self.softcap is None else self.softcap) * LOG2_E

    def raw(self, products):
        """Scores in units of `unit`, before the mask."""
        return products if self.softcap is None else jnp.tanh(products * (self.scale / self.softcap))

    def d_products(self, d_scores, raw):
        """Gradients of the products, but for the factor `scale`, from those of the scores in base e."""
        return d_scores if self.softcap is None else d_scores * (1 - raw * raw)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def flash_attention(
    q_BSHE,
    k_BSKE,
    v_BSKE,
    segment_ids_BS,
    window: int | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k / sqrt(E)) v over the visible keys on one device; [B, S, H, width of v] in the queries' type.

    A query sees its own document up to itself, and of that the last `window` positions. The tokens of a document stand
    together, as packing places them: a segment id that comes again after another is another document. Padding (segment
    0) is a document too, so no row of the softmax is empty. With `softcap`, scores are softcap * tanh(scores /
    softcap). Statistics of the softmax and all sums are float32. The result and the log-sum-exp are named "attention"
    for remat policies.

    Any length and width will do; those that are no multiples of a tile are padded, which copies.
    `interpret` runs the kernels on any device, slowly.
    """
    return _forward(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, window, softcap, interpret)[0]


def _forward(q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, window: int | None, softcap: float | None, interpret: bool):
    (queries, keys, values), tiles, scoring = _prepared(q_BSHE, k_BSKE, v_BSKE, softcap=softcap)
    first_BS, _ = _ranges(segment_ids_BS, queries.shape[1], window)
    out, lse_BHS = _call(
        _forward_kernel,
        tiles.forward,
        scoring,
        interpret,
        by_queries=True,
        inputs={"queries": [queries], "keys": [keys, values], "positions": [first_BS]},
        outputs={"queries": [values.shape[3]], "statistics": [None]},
    )
    # Named here: a remat policy that saves the result alone would run the kernel again for the log-sum-exp.
    out_BSHE = checkpoint_name(out[:, : q_BSHE.shape[1], :, : v_BSKE.shape[3]], "attention")
    return out_BSHE, (q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, out_BSHE, checkpoint_name(lse_BHS, "attention"))


def _backward(window: int | None, softcap: float | None, interpret: bool, residuals, d_out_BSHE):
    q_BSHE, k_BSKE, v_BSKE, segment_ids_BS, out_BSHE, lse_BHS = residuals
    (queries, keys, values, d_out), tiles, scoring = _prepared(q_BSHE, k_BSKE, v_BSKE, d_out_BSHE, softcap=softcap)
    first_BS, last_BS = _ranges(segment_ids_BS, queries.shape[1], window)
    # The derivative of softmax subtracts sum over T of weights * d_weights, which is d_out . out (Dao et al. 2022).
    dot_BSH = jnp.sum(d_out_BSHE.astype(jnp.float32) * out_BSHE.astype(jnp.float32), axis=-1)
    dot_BHS = _padded(jnp.swapaxes(dot_BSH, 1, 2), {2: queries.shape[1]})
    inputs = {"queries": [queries, d_out], "keys": [keys, values], "statistics": [lse_BHS, dot_BHS]}
    gradients = functools.partial(_call, scoring=scoring, interpret=interpret)
    dk, dv = gradients(
        _keys_gradient_kernel,
        tiles.keys_gradient,
        by_queries=False,
        inputs=inputs | {"positions": [first_BS, last_BS]},
        outputs={"keys": [keys.shape[3], values.shape[3]]},
    )
    (dq,) = gradients(
        _queries_gradient_kernel,
        tiles.queries_gradient,
        by_queries=True,
        inputs=inputs | {"positions": [first_BS]},
        outputs={"queries": [queries.shape[3]]},
    )
    length, width, of_values = q_BSHE.shape[1], q_BSHE.shape[3], v_BSKE.shape[3]
    return dq[:, :length, :, :width], dk[:, :length, :, :width], dv[:, :length, :, :of_values], None


flash_attention.defvjp(_forward, _backward)


def _prepared(*arrays, softcap: float | None):
    """The arrays [B, S, heads, E] padded to whole tiles, the tiles, and how scores are made."""
    length, widest = arrays[0].shape[1], max(x.shape[3] for x in arrays)
    fitting = [size for size in TILES if size >= _padded_width(widest) * arrays[0].dtype.itemsize]
    if not fitting:
        raise ValueError(f"a head of {widest} numbers of {arrays[0].dtype} exceeds the tiles of this kernel")
    tiles = TILES[min(fitting)]
    unit = max(max(tile.queries, tile.keys) for tile in tiles)
    length = pl.cdiv(length, unit) * unit
    padded = [_padded(x, {1: length, 3: _padded_width(x.shape[3])}) for x in arrays]
    return padded, tiles, Scoring(arrays[0].shape[3] ** -0.5, softcap)


def _padded_width(width: int) -> int:
    return max(pl.next_power_of_2(width), 16)


def _padded(x, sizes: dict[int, int]):
    widths = [(0, sizes.get(axis, size) - size) for axis, size in enumerate(x.shape)]
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def _ranges(segment_ids_BS, length: int, window: int | None):
    """The first key that each query sees, and the last query that sees each key, int32 [B, length]; never falling."""
    # What is added at the end is later than every query, and sees whatever stands last.
    segments_BS = jnp.pad(segment_ids_BS, ((0, 0), (0, length - segment_ids_BS.shape[1])), mode="edge")
    index_S = jnp.arange(length, dtype=jnp.int32)
    new_BS = segments_BS[:, 1:] != segments_BS[:, :-1]
    first_BS = jax.lax.cummax(jnp.pad(jnp.where(new_BS, index_S[1:], 0), ((0, 0), (1, 0))), axis=1)
    ends_BS = jnp.pad(jnp.where(new_BS, index_S[:-1], length - 1), ((0, 0), (0, 1)), constant_values=length - 1)
    last_BS = jax.lax.cummin(ends_BS, axis=1, reverse=True)
    if window is not None:
        first_BS = jnp.maximum(first_BS, index_S - (window - 1))
        last_BS = jnp.minimum(last_BS, index_S + (window - 1))
    return first_BS, last_BS


def _call(kernel, tile: Tile, scoring: Scoring, interpret: bool, *, by_queries: bool, inputs: dict, outputs: dict):
    """Run a kernel on every block of queries, or of keys, of every head and row of the batch.

    Inputs are lists by kind: queries [B, S, H, E], keys [B, S, K, E], statistics [B, H, S], positions [B, S]; outputs
    likewise, by their width E. Keys and values, and what goes with them, may differ in it. The kernel sees one block of
    what it runs over, and the whole sequence of the rest.
    """
    queries, keys = inputs["queries"][0], inputs["keys"][0]
    batch, length, heads, _ = queries.shape
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    if by_queries:
        # Late blocks see the most keys: they start first, so that none is left over at the end.
        blocks, block = length // tile.queries, tile.queries
        specs = {
            "queries": ((None, block, None), lambda i, h, b: (b, blocks - 1 - i, h, 0)),
            "keys": ((None, length, None), lambda i, h, b: (b, 0, h // group, 0)),
            "statistics": ((None, None, block), lambda i, h, b: (b, h, blocks - 1 - i)),
            "positions": ((None, block), lambda i, h, b: (b, blocks - 1 - i)),
        }
    else:
        blocks, block = length // tile.keys, tile.keys
        specs = {
            "queries": ((None, length, group), lambda i, h, b: (b, 0, h, 0)),
            "keys": ((None, block, None), lambda i, h, b: (b, i, h, 0)),
            "statistics": ((None, group, length), lambda i, h, b: (b, h, 0)),
            "positions": ((None, length), lambda i, h, b: (b, 0)),
        }
    shapes = {
        "queries": (batch, length, heads),
        "keys": (batch, length, kv_heads),
        "statistics": (batch, heads, length),
    }

    def spec(kind: str, width: int | None) -> pl.BlockSpec:
        block, index = specs[kind]
        return pl.BlockSpec(block if width is None else (*block, width), index)

    def result(kind: str, width: int | None) -> jax.ShapeDtypeStruct:
        shape, dtype = (shapes[kind], jnp.float32) if width is None else ((*shapes[kind], width), queries.dtype)
        return jax.ShapeDtypeStruct(shape, dtype)

    results = [(kind, width) for kind, widths in outputs.items() for width in widths]
    return pl.pallas_call(
        functools.partial(kernel, tile=tile, scoring=scoring),
        grid=(blocks, heads if by_queries else kv_heads, batch),
        in_specs=[spec(kind, x.shape[3] if x.ndim == 4 else None) for kind, arrays in inputs.items() for x in arrays],
        out_specs=[spec(*each) for each in results],
        out_shape=[result(*each) for each in results],
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="flash" + kernel.__name__.removesuffix("_kernel"),
    )(*(array for arrays in inputs.values() for array in arrays))


def _forward_kernel(q_ref, k_ref, v_ref, first_ref, out_ref, lse_ref, *, tile: Tile, scoring: Scoring):
    start = (pl.num_programs(0) - 1 - pl.program_id(0)) * tile.queries
    q_RE, first_R = q_ref[...], first_ref[...]
    index_R = start + jnp.arange(tile.queries)

    def visit(masked: bool, block, carry):
        max_R, sum_R, mixed_RE = carry
        here = pl.ds(block * tile.keys, tile.keys)
        raw_RT = scoring.raw(_product(q_RE, k_ref[here, :], 1, 1))
        if masked:
            index_T = block * tile.keys + jnp.arange(tile.keys)
            raw_RT = _mask(raw_RT, index_R[:, None], first_R[:, None], index_T[None, :])
        new_R = jnp.maximum(max_R, jnp.max(raw_RT, axis=1))
        weights_RT = jnp.exp2(raw_RT * scoring.unit - (new_R * scoring.unit)[:, None])
        rescale_R = jnp.exp2((max_R - new_R) * scoring.unit)
        v_TE = v_ref[here, :]
        mixed_RE = mixed_RE * rescale_R[:, None] + _product(weights_RT.astype(v_TE.dtype), v_TE, 1, 0)
        return new_R, sum_R * rescale_R + jnp.sum(weights_RT, axis=1), mixed_RE

    zeros_R = jnp.zeros(tile.queries, jnp.float32)
    carry = zeros_R + START, zeros_R, jnp.zeros(out_ref.shape, jnp.float32)
    max_R, sum_R, mixed_RE = _visit_keys(visit, start, first_ref, tile, carry)
    out_ref[...] = (mixed_RE / sum_R[:, None]).astype(out_ref.dtype)
    lse_ref[...] = max_R * scoring.unit + jnp.log2(sum_R)


def _queries_gradient_kernel(
    q_ref, d_out_ref, k_ref, v_ref, lse_ref, dot_ref, first_ref, dq_ref, *, tile: Tile, scoring: Scoring
):
    start = (pl.num_programs(0) - 1 - pl.program_id(0)) * tile.queries
    q_RE, d_out_RE, first_R = q_ref[...], d_out_ref[...], first_ref[...]
    lse_R, dot_R = lse_ref[...], dot_ref[...]
    index_R = start + jnp.arange(tile.queries)

    def visit(masked: bool, block, dq_RE):
        here = pl.ds(block * tile.keys, tile.keys)
        k_TE = k_ref[here, :]
        raw_RT = scoring.raw(_product(q_RE, k_TE, 1, 1))
        scores_RT = raw_RT
        if masked:
            index_T = block * tile.keys + jnp.arange(tile.keys)
            scores_RT = _mask(raw_RT, index_R[:, None], first_R[:, None], index_T[None, :])
        weights_RT = jnp.exp2(scores_RT * scoring.unit - lse_R[:, None])
        d_weights_RT = _product(d_out_RE, v_ref[here, :], 1, 1)
        d_products_RT = scoring.d_products(weights_RT * (d_weights_RT - dot_R[:, None]), raw_RT)
        return dq_RE + _product(d_products_RT.astype(k_TE.dtype), k_TE, 1, 0)

    dq_RE = _visit_keys(visit, start, first_ref, tile, jnp.zeros(q_RE.shape, jnp.float32))
    dq_ref[...] = (dq_RE * scoring.scale).astype(dq_ref.dtype)


def _keys_gradient_kernel(
    q_ref, d_out_ref, k_ref, v_ref, lse_ref, dot_ref, first_ref, last_ref, dk_ref, dv_ref, *, tile, scoring
):
    start = pl.program_id(0) * tile.keys
    k_TE, v_TE = k_ref[...], v_ref[...]
    index_T = start + jnp.arange(tile.keys)
    group = q_ref.shape[1]

    def visit(masked: bool, number, carry):
        dk_TE, dv_TE = carry
        block, head = jax.lax.div(number, jnp.int32(group)), jax.lax.rem(number, jnp.int32(group))
        here = pl.ds(block * tile.queries, tile.queries)
        q_RE, d_out_RE = q_ref[here, head, :], d_out_ref[here, head, :]
        # Transposed, so that the weights are a factor of the next product as they are.
        raw_TR = scoring.raw(_product(k_TE, q_RE, 1, 1))
        scores_TR = raw_TR
        if masked:
            index_R = block * tile.queries + jnp.arange(tile.queries)
            scores_TR = _mask(raw_TR, index_R[None, :], first_ref[here][None, :], index_T[:, None])
        weights_TR = jnp.exp2(scores_TR * scoring.unit - lse_ref[head, here][None, :])
        dv_TE += _product(weights_TR.astype(d_out_RE.dtype), d_out_RE, 1, 0)
        d_weights_TR = _product(v_TE, d_out_RE, 1, 1)
        d_products_TR = scoring.d_products(weights_TR * (d_weights_TR - dot_ref[head, here][None, :]), raw_TR)
        return dk_TE + _product(d_products_TR.astype(q_RE.dtype), q_RE, 1, 0), dv_TE

    # From the block of queries that begins to see these keys to the last that does, all heads of a block in turn.
    size = jnp.int32(tile.queries)
    last_of_first, last_of_all = last_ref[start], last_ref[start + tile.keys - 1]
    seen_whole = jax.lax.div(start + tile.keys - 1 + size - 1, size)
    ends = (
        jax.lax.div(start, size),
        seen_whole,
        jnp.maximum(seen_whole, jax.lax.div(last_of_first + 1, size)),
        jax.lax.div(last_of_all, size) + 1,
    )
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_TE, v_TE))
    dk_TE, dv_TE = _visit(visit, [end * group for end in ends], zeros)
    dk_ref[...] = (dk_TE * scoring.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv_TE.astype(dv_ref.dtype)


def _visit_keys(visit, start, first_ref, tile: Tile, carry):
    """Visit the blocks of keys that a block of queries from `start` sees."""
    size = jnp.int32(tile.keys)
    seen_by_all = jax.lax.div(first_ref[tile.queries - 1] + size - 1, size)
    ends = (
        jax.lax.div(first_ref[0], size),
        seen_by_all,
        jnp.maximum(seen_by_all, jax.lax.div(start + 1, size)),
        jax.lax.div(start + tile.queries + size - 1, size),
    )
    return _visit(visit, ends, carry)


def _visit(visit, ends, carry):
    """Visit the blocks between four ends; those of the middle part are seen whole and need no mask."""
    for masked, lower, upper in ((True, *ends[:2]), (False, *ends[1:3]), (True, *ends[2:])):
        carry = jax.lax.fori_loop(lower, upper, functools.partial(visit, masked), carry)
    return carry


def _mask(raw, query, first, key):
    return jnp.where((first <= key) & (key <= query), raw, MASKED)


def _product(a, b, a_axis: int, b_axis: int):
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
