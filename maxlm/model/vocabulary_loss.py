"""Cross-entropy in blocks of the vocabulary: the same loss as loss.py, in less memory for one more product.

Of the output matrix and of its gradient no device ever holds more than one block: a block is gathered from its shards,
used, and what comes back is scattered at once. With 128,256 tokens and a width of 4096 that saves 3 GiB a device. The
price is that the logits are computed twice, four products with the output matrix instead of three: gradients need the
log-partition, which is known after the last block alone (running maximum and sum: Milakov and Gimelshein 2018).

Axis letters as in layers.py, and: R rows (the positions of a device), W tokens of a block, N blocks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.model.loss import HIDDEN, ROWS, TOKENS, of_targets, over_devices
from maxlm.model.mask import capped, slope
from maxlm.parallel.sharding import all_gather, manual, reduce_scatter, split_axes

Axes = tuple[str | None, str | None]


class Partition(NamedTuple):
    """What is known of each row after some blocks, float32 [R]."""

    largest: jax.Array  # of the logits
    total: jax.Array  # of exp(logit - largest)
    target: jax.Array  # logit of the target


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def cross_entropy_by_vocabulary(
    x_BSD,
    output_DV,
    targets_BS,
    weights_BS,
    axes: Axes,
    block: int,
    z_loss: float,
    softcap: float | None,
    per_token: bool = False,
):
    """As `loss.cross_entropy`: (sum + z_loss * sum of squared log-partitions, sums per row [B] or per token [B, S]).

    The output matrix comes as it is stored, with these logical axes, in the compute type. `block` is the number of
    tokens whose logits exist at one time; under tensor parallelism each shard of the vocabulary has its own blocks.
    """
    return _forward(x_BSD, output_DV, targets_BS, weights_BS, axes, block, z_loss, softcap, per_token)[0]


def _forward(
    x_BSD,
    output_DV,
    targets_BS,
    weights_BS,
    axes: Axes,
    block: int,
    z_loss: float,
    softcap: float | None,
    per_token: bool,
):
    def run(x_BSD, output_DV, targets_BS, weights_BS):
        blocks = _Blocks(output_DV, axes, block, targets_BS, softcap)
        x_RD = _rows(x_BSD, weights_BS)

        def step(found: Partition, inputs):
            number, w_DW = inputs
            logits_RW, is_target_RW = blocks.logits(x_RD, w_DW, number)
            largest_R = jnp.maximum(found.largest, jnp.max(logits_RW, axis=-1))
            total_R = found.total * jnp.exp(found.largest - largest_R)
            total_R += jnp.sum(jnp.exp(logits_RW - largest_R[:, None]), axis=-1)
            target_R = found.target + jnp.sum(jnp.where(is_target_RW, logits_RW, 0.0), axis=-1)
            return Partition(largest_R, total_R, target_R), None

        zero_R = jnp.zeros(x_RD.shape[0], jnp.float32)
        found, _ = jax.lax.scan(step, Partition(zero_R - jnp.inf, zero_R, zero_R), blocks.numbered)
        log_partition_BS, target_BS = (value_R.reshape(weights_BS.shape) for value_R in _over_vocabulary(found))
        token_BS = of_targets(log_partition_BS - target_BS, weights_BS) if per_token else None
        nll_BS = (log_partition_BS - target_BS) * weights_BS
        penalty = z_loss * jnp.sum(jnp.square(log_partition_BS) * weights_BS) if z_loss else 0.0
        return over_devices((jnp.sum(nll_BS) + penalty, jnp.sum(nll_BS, axis=1)), token_BS), log_partition_BS

    run = manual(run, (HIDDEN, axes, TOKENS, TOKENS), (((), TOKENS if per_token else ROWS), TOKENS))
    result, log_partition_BS = run(x_BSD, output_DV, targets_BS, weights_BS)
    return result, (x_BSD, output_DV, targets_BS, weights_BS, log_partition_BS)


def _backward(axes: Axes, block: int, z_loss: float, softcap: float | None, per_token: bool, residuals, cotangents):
    x_BSD, output_DV, targets_BS, weights_BS, log_partition_BS = residuals

    def run(x_BSD, output_DV, targets_BS, weights_BS, log_partition_BS, scale):
        blocks = _Blocks(output_DV, axes, block, targets_BS, softcap)
        x_RD, log_partition_R = _rows(x_BSD, weights_BS), log_partition_BS.reshape(-1)
        weight_R = (weights_BS * scale).reshape(-1)
        by_partition_R = 1.0 + 2.0 * z_loss * log_partition_R

        def step(dx_RD, inputs):
            number, w_DW = inputs
            w_DW = blocks.gathered(w_DW)
            logits_RW, is_target_RW = blocks.logits(x_RD, w_DW, number, gathered=True)
            softmax_RW = jnp.exp(logits_RW - log_partition_R[:, None])
            d_logits_RW = (softmax_RW * by_partition_R[:, None] - is_target_RW) * weight_R[:, None]
            if softcap is not None:  # where padding has logits of minus infinity, and no gradient
                d_logits_RW *= jnp.where(jnp.isfinite(logits_RW), slope(logits_RW, softcap), 0.0)
            d_logits_RW = d_logits_RW.astype(x_RD.dtype)
            dx_RD += jnp.einsum("RW,DW->RD", d_logits_RW, w_DW, preferred_element_type=jnp.float32)
            dw_DW = jnp.einsum("RD,RW->DW", x_RD, d_logits_RW, preferred_element_type=jnp.float32)
            return dx_RD, reduce_scatter(dw_DW, 0, axes[0]) if axes[0] else dw_DW

        dx_RD, dw_NDW = jax.lax.scan(step, jnp.zeros(x_RD.shape, jnp.float32), blocks.numbered)
        dx_RD = jax.lax.psum(dx_RD.astype(x_RD.dtype), split_axes("vocab"))
        scattered = split_axes(axes[0]) if axes[0] else ()
        others = tuple(axis for axis in split_axes("batch") + split_axes("sequence") if axis not in scattered)
        # The barrier: see loss.py.
        d_output_DV = jax.lax.optimization_barrier(jax.lax.psum(blocks.joined(dw_NDW), others))
        return dx_RD.reshape(x_BSD.shape), d_output_DV.astype(output_DV.dtype)

    run = manual(run, (HIDDEN, axes, TOKENS, TOKENS, TOKENS, ()), (HIDDEN, axes))
    return *run(x_BSD, output_DV, targets_BS, weights_BS, log_partition_BS, cotangents[0]), None, None


cross_entropy_by_vocabulary.defvjp(_forward, _backward)


class _Blocks:
    """A device's part of the vocabulary in blocks, the last of which may be padded."""

    def __init__(self, output_DV, axes: Axes, block: int, targets_BS, softcap: float | None):
        self.axes, self.size, self.softcap = axes, output_DV.shape[1], softcap
        self.width = min(block, self.size)
        count = -(-self.size // self.width)
        padded_DV = jnp.pad(output_DV, ((0, 0), (0, count * self.width - self.size)))
        blocks_NDW = jnp.moveaxis(padded_DV.reshape(-1, count, self.width), 1, 0)
        self.numbered = jnp.arange(count), blocks_NDW
        vocab_axes = split_axes("vocab")
        first = self.size * jax.lax.axis_index(vocab_axes) if vocab_axes else 0
        self.targets_R = targets_BS.reshape(-1) - first

    def gathered(self, w_DW) -> jax.Array:
        """A block from the shards that hold its width."""
        return all_gather(w_DW, 0, self.axes[0]) if self.axes[0] else w_DW

    def logits(self, x_RD, w_DW, number, gathered: bool = False) -> tuple[jax.Array, jax.Array]:
        """Capped logits of a block, float32 [R, W], where it is padded minus infinity; and where the targets are."""
        w_DW = w_DW if gathered else self.gathered(w_DW)
        logits_RW = capped(jnp.einsum("RD,DW->RW", x_RD, w_DW, preferred_element_type=jnp.float32), self.softcap)
        token_W = number * self.width + jnp.arange(self.width)
        if self.size % self.width:
            logits_RW = jnp.where(token_W < self.size, logits_RW, -jnp.inf)
        return logits_RW, (token_W == self.targets_R[:, None]) & (token_W < self.size)

    def joined(self, w_NDW) -> jax.Array:
        """The blocks as one matrix, without padding."""
        return jnp.moveaxis(w_NDW, 0, 1).reshape(w_NDW.shape[1], -1)[:, : self.size]


def _rows(x_BSD, weights_BS) -> jax.Array:
    """[R, D]; a weight of 0 must also silence a value that is not finite."""
    return jnp.where(weights_BS[..., None] > 0, x_BSD, 0).reshape(-1, x_BSD.shape[-1])


def _over_vocabulary(found: Partition) -> tuple[jax.Array, jax.Array]:
    """(log-partition, logit of the target) of each row over all shards of the vocabulary."""
    if not (axes := split_axes("vocab")):
        return found.largest + jnp.log(found.total), found.target
    largest_R = jax.lax.pmax(found.largest, axes)
    total_R, target_R = jax.lax.psum((found.total * jnp.exp(found.largest - largest_R), found.target), axes)
    return largest_R + jnp.log(total_R), target_R
