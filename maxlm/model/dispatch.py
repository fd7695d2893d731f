"""How rows travel to their experts and back: sorting, exchange, grouped product. Pure functions of one device's arrays.

Nothing is ever dropped. A token's row is copied once per chosen expert, the copies are ordered by expert, sent to the
devices that hold the experts, ordered by expert again, multiplied group by group, and sent back the same way. Array
sizes are those of the worst case, known when compiling; the numbers of rows that they hold are not.

Axis letters: N tokens of this device, K experts per token, A = N K assignments in the order of tokens, E experts,
X devices of the expert axis, L = E / X experts of one device, R rows of a buffer, D and F widths, Q blocks of rows.
A row number one past the end stands for "nowhere".
"""

import contextlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm


class Traffic(NamedTuple):
    """Rows between the devices of the expert axis, each array [X, X] over (source, destination)."""

    sizes_XX: jax.Array
    send_starts_XX: jax.Array  # first row in the source's buffer
    receive_starts_XX: jax.Array  # first row in the destination's buffer

    def reversed(self) -> "Traffic":
        return Traffic(self.sizes_XX.T, self.receive_starts_XX.T, self.send_starts_XX.T)


class Routes(NamedTuple):
    """Which row is which, between a device's tokens, its send buffer, its receive buffer and its experts' rows."""

    token_R: jax.Array  # of each row to send, or N
    assignment_R: jax.Array  # of each row to send, or A
    slot_A: jax.Array  # where each assignment's row is in the send buffer, or its length
    received_R: jax.Array | None  # of each experts' row its place in the receive buffer; None: they are the same
    processed_R: jax.Array | None  # the inverse
    sizes_L: jax.Array  # rows of each of this device's experts
    traffic: Traffic | None  # None where no row leaves the device


def plan_routes(expert_NK: jax.Array, num_experts: int, axis: str | None, padded: bool) -> Routes:
    """Routes of the assignments `expert_NK`, in which the number `num_experts` says that a token goes nowhere.

    Args:
        axis: name of the manual mesh axis that splits the experts; None: this device holds them all.
        padded: equal space for every pair of devices, as `all_to_all` needs, or rows without gaps.
    """
    (tokens, choices), assignments = expert_NK.shape, expert_NK.size
    expert_A = expert_NK.reshape(-1)
    order_A = jnp.argsort(expert_A, stable=True)  # of a sorted row its assignment
    rank_A = jnp.argsort(order_A)  # of an assignment its sorted row: a scatter is slower than a sort on TPU
    counts_E = jnp.sum(expert_A[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    if axis is None:
        routed = jnp.sum(counts_E)
        assignment_R = jnp.where(jnp.arange(assignments) < routed, order_A, assignments)
        slot_A = jnp.where(rank_A < routed, rank_A, assignments)
        return Routes(assignment_R // choices, assignment_R, slot_A, None, None, counts_E, None)

    shards = jax.lax.axis_size(axis)
    # A token chooses an expert once, so that is the most that one device can send another.
    capacity = tokens * min(choices, num_experts // shards)
    me = jax.lax.axis_index(axis)
    counts_XXL = jax.lax.all_gather(counts_E.reshape(shards, -1), axis)  # source, destination, expert
    traffic = _traffic(jnp.sum(counts_XXL, axis=2), capacity if padded else None)

    send_rows = shards * capacity if padded else assignments
    sizes_X, sent_X = traffic.sizes_XX[me], traffic.send_starts_XX[me]
    sorted_X = _starts(sizes_X)
    sorted_R = _relocate(jnp.arange(send_rows), sent_X, sorted_X, sizes_X, assignments)
    assignment_R = jnp.take(order_A, sorted_R, mode="fill", fill_value=assignments)
    slot_A = _relocate(rank_A, sorted_X, sent_X, sizes_X, send_rows)

    # Received rows lie by (source, expert), as they were sent; the product needs them by (expert, source).
    receive_rows = shards * capacity
    blocks_XL = counts_XXL[:, me]
    received_XL = traffic.receive_starts_XX[:, me, None] + _starts(blocks_XL)
    processed_LX = _starts(blocks_XL.T.reshape(-1)).reshape(blocks_XL.T.shape)
    here, there, sizes = received_XL.reshape(-1), processed_LX.T.reshape(-1), blocks_XL.reshape(-1)
    rows_R = jnp.arange(receive_rows)
    received_R = _relocate(rows_R, there, here, sizes, receive_rows)
    processed_R = _relocate(rows_R, here, there, sizes, receive_rows)
    sizes_L = jnp.sum(blocks_XL, axis=0)
    return Routes(assignment_R // choices, assignment_R, slot_A, received_R, processed_R, sizes_L, traffic)


def _traffic(sizes_XX: jax.Array, capacity: int | None) -> Traffic:
    if capacity is None:
        return Traffic(sizes_XX, _starts(sizes_XX), _starts(sizes_XX.T).T)
    pairs = jnp.broadcast_to(jnp.arange(sizes_XX.shape[0]) * capacity, sizes_XX.shape)
    return Traffic(sizes_XX, pairs, pairs.T)


def _starts(sizes: jax.Array) -> jax.Array:
    """Sums of the sizes before each one, along the last axis."""
    return jnp.cumsum(sizes, axis=-1, dtype=jnp.int32) - sizes


def _relocate(position_R, here_Q, there_Q, sizes_Q, nowhere: int) -> jax.Array:
    """Where rows at these positions are after blocks of rows have moved from `here` to `there`.

    Comparing every position with every block is one fused pass; a search and look-ups in small tables are not.
    """
    offset_RQ = position_R[:, None] - here_Q
    inside_RQ = (offset_RQ >= 0) & (offset_RQ < sizes_Q)
    moved_R = position_R + jnp.sum(jnp.where(inside_RQ, there_Q - here_Q, 0), axis=1, dtype=jnp.int32)
    return jnp.where(jnp.any(inside_RQ, axis=1), moved_R, nowhere)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def take_rows(x_MD: jax.Array, index_R: jax.Array, users_M: jax.Array, fill: bool) -> jax.Array:
    """Rows x[index] [R, D]. Where the index is M they are zero with `fill`, else any row, and so is the gradient.

    `users` [M] or [M, J] says which rows of the result are copies of each row of x, R for none. With it the gradient
    is a gather too: the scatter-add that autodiff would make of it runs row after row on TPU. Zeros cost a pass over
    the result there, so what nobody reads is left as it comes.
    """
    if fill:
        return jnp.take(x_MD, index_R, axis=0, mode="fill", fill_value=0)
    return jnp.take(x_MD, index_R, axis=0, mode="clip")


def _take_rows_backward(fill: bool, users_M, d_out_RD):
    d_MD = take_rows(d_out_RD, users_M, users_M, fill)
    if users_M.ndim == 2:
        d_MD = jnp.sum(d_MD, axis=1, dtype=jnp.float32).astype(d_out_RD.dtype)
    return d_MD, None, None


take_rows.defvjp(lambda x, index, users, fill: (take_rows(x, index, users, fill), users), _take_rows_backward)


def exchange(rows_RD: jax.Array, traffic: Traffic, axis: str, padded: bool, receive_rows: int) -> jax.Array:
    """Send each device of the axis its rows; returns the receive buffer [receive_rows, D], zero where nothing came.

    The padded way moves whole buffers, X times the rows of an even load, and runs everywhere. The ragged way moves
    the rows alone; XLA has it for TPU and GPU, not for CPU.
    """
    if padded:
        return jax.lax.all_to_all(rows_RD, axis, split_axis=0, concat_axis=0, tiled=True)
    return _ragged_exchange(rows_RD, traffic, axis, receive_rows)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _ragged_exchange(rows_RD, traffic: Traffic, axis: str, receive_rows: int) -> jax.Array:
    me = jax.lax.axis_index(axis)
    return jax.lax.ragged_all_to_all(
        rows_RD,
        jnp.zeros((receive_rows, rows_RD.shape[1]), rows_RD.dtype),
        traffic.send_starts_XX[me],
        traffic.sizes_XX[me],
        traffic.receive_starts_XX[me],
        traffic.sizes_XX[:, me],
        axis_name=axis,
    )


def _ragged_backward(axis: str, receive_rows: int, residuals, d_out_RD):
    # JAX's own transpose would ask the other devices for the offsets again.
    traffic, rows = residuals
    return _ragged_exchange(d_out_RD, traffic.reversed(), axis, rows), None


_ragged_exchange.defvjp(
    lambda rows_RD, traffic, axis, receive_rows: (
        _ragged_exchange(rows_RD, traffic, axis, receive_rows),
        (traffic, rows_RD.shape[0]),
    ),
    _ragged_backward,
)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_product(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, platform: str) -> jax.Array:
    """The first sizes[0] rows times w[0], the next sizes[1] rows times w[1], ...: [R, F] in the type of x.

    Rows after the groups may hold anything, NaN too, before and after: no other row and no gradient depends on them.
    """
    return _product(x_RD, w_EDF, sizes_E, platform, transposed=False)


def _grouped_backward(platform: str, inputs, d_out_RF):
    x_RD, w_EDF, sizes_E = inputs
    d_x_RD = _product(d_out_RF, w_EDF, sizes_E, platform, transposed=True)
    return d_x_RD, _weight_gradient(x_RD, d_out_RF, sizes_E, platform).astype(w_EDF.dtype), None


grouped_product.defvjp(
    lambda x, w, sizes, platform: (grouped_product(x, w, sizes, platform), (x, w, sizes)), _grouped_backward
)


def _product(x_RD, w_EDF, sizes_E, platform: str, transposed: bool) -> jax.Array:
    """The grouped product with w, or with each of its matrices transposed."""
    if platform != "tpu":
        # On GPU a grouped kernel belongs here and in `_weight_gradient`: XLA multiplies all rows by all experts.
        return jax.lax.ragged_dot(x_RD, w_EDF.swapaxes(1, 2) if transposed else w_EDF, sizes_E)
    rows, (_, embed, hidden) = x_RD.shape[0], w_EDF.shape
    widths = (hidden, embed) if transposed else (embed, hidden)
    tiling = _tiling(rows, sizes_E.shape[0], *widths, x_RD.dtype)
    with _kernel_precision(x_RD.dtype):
        # What lies behind the last group stays as the kernel finds the memory.
        return gmm(_pad_rows(x_RD, tiling[0]), w_EDF, sizes_E, x_RD.dtype, tiling, transpose_rhs=transposed)[:rows]


def _weight_gradient(x_RD, d_out_RF, sizes_E, platform: str) -> jax.Array:
    """Per group, x^T d_out: [E, D, F]. On TPU `ragged_dot`'s own is dense over all experts, hence megablox."""
    if platform != "tpu":
        dimensions = jax.lax.RaggedDotDimensionNumbers(
            dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
        )
        return jax.lax.ragged_dot_general(x_RD, d_out_RF, sizes_E, dimensions)
    tiling = _tiling(x_RD.shape[0], sizes_E.shape[0], x_RD.shape[1], d_out_RF.shape[1], x_RD.dtype)
    x_RD, d_out_RF = _pad_rows(x_RD, tiling[0]), _pad_rows(d_out_RF, tiling[0])
    # The kernel masks both factors to the rows of a group, and writes zeros for a group without rows.
    with _kernel_precision(x_RD.dtype):
        return tgmm(x_RD.swapaxes(0, 1), d_out_RF, sizes_E, x_RD.dtype, tiling)


def _kernel_precision(dtype):
    """Where products are asked for in float32, Mosaic does not compile those of bfloat16 factors, which are exact."""
    return jax.default_matmul_precision("default") if dtype == jnp.bfloat16 else contextlib.nullcontext()


def _tiling(rows: int, groups: int, contracted: int, width: int, dtype) -> tuple[int, int, int]:
    """Tiles of (rows, contracted, width) for the TPU's matrix unit, 128 or 256 wide.

    A tile of T rows does T FLOPs per byte of bfloat16 weights that it reads: 512 rows outpace the memory of every TPU
    but v6e, whose ratio is 560. But a tile that two groups share is computed twice, so it should not be taller than a
    full buffer's group. A 512 x 1024 x 1024 tile of bfloat16, double buffered, takes 10 of v5p's 16 MiB of scratch
    memory; one of float32 does not compile there.
    """
    tall = next((tile for tile in (512, 256) if tile <= rows // groups), 128)
    widest = 2048 // jnp.dtype(dtype).itemsize
    return tall, _tile(contracted, widest), _tile(width, widest)


def _tile(size: int, widest: int) -> int:
    """The widest tile that divides the size; where none does, the last tile has a masked remainder."""
    tiles = (tile for tile in (1024, 768, 512, 384, 256, 128) if tile <= widest)
    return next((tile for tile in tiles if size % tile == 0), min(widest, -(-size // 128) * 128))


def _pad_rows(x_RD: jax.Array, tile: int) -> jax.Array:
    return jnp.pad(x_RD, ((0, -x_RD.shape[0] % tile), (0, 0)))
