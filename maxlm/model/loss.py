"""Cross-entropy without the full logits. Axis letters as in layers.py, C positions of a chunk.

Every device works on its own tokens, against its own part of the vocabulary: under tensor parallelism sums over the
vocabulary are added up over its shards. What the output matrix's gradient needs from other devices is exchanged once,
at the end; the partitioner would reduce it after every chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.model.mask import capped, slope
from maxlm.parallel.sharding import manual, reduce_scatter, split_axes

TOKENS, ROWS = ("batch", "sequence"), ("batch",)
HIDDEN = ("batch", "sequence", None)
OUTPUT, OUTPUT_GRADIENT = (None, "vocab"), ("table_embed", "vocab")


class TokenLosses(NamedTuple):
    """Of the positions of a chunk, in nats, float32."""

    nll_BC: jax.Array  # negative log-likelihood of the target
    log_partition_BC: jax.Array
    logits_BCV: jax.Array
    is_target_BCV: jax.Array
    likeliest_BC: jax.Array  # bool, whether no token is likelier than the target


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def cross_entropy(
    x_BSD, output_DV, targets_BS, weights_BS, chunk: int, z_loss: float, softcap: float | None, per_token: bool = False
):
    """Weighted cross-entropy summed over the batch: (sum + z_loss * sum of squared log-partitions, sums per row [B]).

    With `softcap` all is of the capped logits, softcap * tanh(logits / softcap) (Gemma 2, section 2).
    With `per_token` the second result is the loss of every target [B, S], in nats, without its weight; where the weight
    is 0 it is 0.

    Only `chunk` positions of a row (of each context shard's part of it) have logits at one time. Differentiation
    computes each chunk's gradient beside its loss, while its logits exist, so nothing of vocabulary size is kept and
    the product with the output matrix is not computed a second time. The second result carries no gradient. Sums are
    float32; z-loss as in PaLM (Chowdhery et al. 2022, section 5).
    """

    def run(x_BSD, output_DV, targets_BS, weights_BS):
        def step(total, inputs):
            x_BCD, targets_BC, weights_BC = inputs
            found = token_losses(_silenced(x_BCD, weights_BC), output_DV, targets_BC, softcap)
            return _added(total, found, weights_BC, z_loss), of_targets(found.nll_BC, weights_BC) if per_token else None

        chunks = tuple(_chunked(array, chunk) for array in (x_BSD, targets_BS, weights_BS))
        total, nll = jax.lax.scan(step, _zero(x_BSD.shape[0]), chunks)
        return over_devices(total, _joined(nll, weights_BS) if per_token else None)

    run = manual(run, (HIDDEN, OUTPUT, TOKENS, TOKENS), ((), TOKENS if per_token else ROWS))
    return run(x_BSD, output_DV, targets_BS, weights_BS)


def _forward(
    x_BSD, output_DV, targets_BS, weights_BS, chunk: int, z_loss: float, softcap: float | None, per_token: bool
):
    def run(x_BSD, output_DV, targets_BS, weights_BS):
        def step(carry, inputs):
            total, d_output_DV = carry
            x_BCD, targets_BC, weights_BC = inputs
            x_BCD = _silenced(x_BCD, weights_BC)
            found = token_losses(x_BCD, output_DV, targets_BC, softcap)
            d_logits_BCV = _d_logits(found, weights_BC, z_loss, softcap).astype(x_BCD.dtype)
            d_output_DV += jnp.einsum("BCD,BCV->DV", x_BCD, d_logits_BCV, preferred_element_type=jnp.float32)
            dx_BCD = jnp.einsum("BCV,DV->BCD", d_logits_BCV, output_DV, preferred_element_type=jnp.float32)
            dx_BCD = jax.lax.psum(dx_BCD.astype(x_BCD.dtype), split_axes("vocab"))
            nll_BC = of_targets(found.nll_BC, weights_BC) if per_token else None
            return (_added(total, found, weights_BC, z_loss), d_output_DV), (dx_BCD, nll_BC)

        chunks = tuple(_chunked(array, chunk) for array in (x_BSD, targets_BS, weights_BS))
        start = (_zero(x_BSD.shape[0]), jnp.zeros(output_DV.shape, jnp.float32))
        (total, d_output_DV), (dx, nll) = jax.lax.scan(step, start, chunks)
        d_output_DV = reduce_scatter(d_output_DV, 0, "table_embed")
        scattered = split_axes("table_embed")
        others = tuple(axis for axis in split_axes("batch") + split_axes("sequence") if axis not in scattered)
        # Under accumulation XLA's TPU compiler follows this sum through the conversions after it to where microbatches
        # are added, wants to move it out of their loop, and fails (RET_CHECK in while_loop_all_reduce_code_motion).
        d_output_DV = jax.lax.optimization_barrier(jax.lax.psum(d_output_DV, others))
        dx_BSD = _joined(dx, x_BSD)
        return over_devices(total, _joined(nll, weights_BS) if per_token else None), dx_BSD, d_output_DV

    run = manual(run, (HIDDEN, OUTPUT, TOKENS, TOKENS), (((), TOKENS if per_token else ROWS), HIDDEN, OUTPUT_GRADIENT))
    total, dx_BSD, d_output_DV = run(x_BSD, output_DV, targets_BS, weights_BS)
    return total, (dx_BSD, d_output_DV.astype(output_DV.dtype))


def _backward(chunk: int, z_loss: float, softcap: float | None, per_token: bool, gradients, cotangents):
    dx_BSD, d_output_DV = gradients
    scale = cotangents[0]
    return (dx_BSD * scale).astype(dx_BSD.dtype), (d_output_DV * scale).astype(d_output_DV.dtype), None, None


cross_entropy.defvjp(_forward, _backward)


def target_losses(x_BSD, output_DV, targets_BS, weights_BS, chunk: int, softcap: float | None):
    """Of every target, in nats, its negative log-likelihood, float32 [B, S], and whether no token is likelier, bool
    [B, S]; 0 and true where the weight is 0. Computed in parts like `cross_entropy`, and not to be differentiated."""

    def run(x_BSD, output_DV, targets_BS, weights_BS):
        def step(_, inputs):
            x_BCD, targets_BC, weights_BC = inputs
            found = token_losses(_silenced(x_BCD, weights_BC), output_DV, targets_BC, softcap)
            return None, (of_targets(found.nll_BC, weights_BC), found.likeliest_BC | (weights_BC == 0))

        chunks = tuple(_chunked(array, chunk) for array in (x_BSD, targets_BS, weights_BS))
        return tuple(_joined(part, weights_BS) for part in jax.lax.scan(step, None, chunks)[1])

    return manual(run, (HIDDEN, OUTPUT, TOKENS, TOKENS), (TOKENS, TOKENS))(x_BSD, output_DV, targets_BS, weights_BS)


def token_losses(x_BCD, output_DV, targets_BC, softcap: float | None) -> TokenLosses:
    """Losses of positions, whose hidden states these are, against this device's part of the vocabulary."""
    axes = split_axes("vocab")
    logits_BCV = capped(jnp.einsum("BCD,DV->BCV", x_BCD, output_DV, preferred_element_type=jnp.float32), softcap)
    largest_BC = jnp.max(logits_BCV, axis=-1)
    if axes:
        largest_BC = jax.lax.pmax(largest_BC, axes)
        targets_BC = targets_BC - output_DV.shape[1] * jax.lax.axis_index(axes)
    # A masked sum instead of a gather: with the vocabulary sharded, each shard adds its own part.
    is_target_BCV = jnp.arange(output_DV.shape[1]) == targets_BC[..., None]
    partition_BC = jnp.sum(jnp.exp(logits_BCV - largest_BC[..., None]), axis=-1)
    target_BC = jnp.sum(jnp.where(is_target_BCV, logits_BCV, 0.0), axis=-1)
    partition_BC, target_BC = jax.lax.psum((partition_BC, target_BC), axes)
    log_partition_BC = largest_BC + jnp.log(partition_BC)
    likeliest_BC = target_BC >= largest_BC
    return TokenLosses(log_partition_BC - target_BC, log_partition_BC, logits_BCV, is_target_BCV, likeliest_BC)


def _d_logits(found: TokenLosses, weights_BC, z_loss: float, softcap: float | None) -> jax.Array:
    """Gradient of the regularised loss by the logits, float32 [B, C, V]: softmax - target, times the weight.

    With a soft cap by the logits before it.
    """
    softmax_BCV = jnp.exp(found.logits_BCV - found.log_partition_BC[..., None])
    by_partition_BC = 1.0 + 2.0 * z_loss * found.log_partition_BC
    d_logits_BCV = (softmax_BCV * by_partition_BC[..., None] - found.is_target_BCV) * weights_BC[..., None]
    return d_logits_BCV if softcap is None else d_logits_BCV * slope(found.logits_BCV, softcap)


def _silenced(x_BCD, weights_BC):
    """A where, not a product alone: a weight of 0 must also silence a value that is not finite, and its gradient."""
    return jnp.where(weights_BC[..., None] > 0, x_BCD, 0)


def _zero(rows: int):
    return jnp.float32(0), jnp.zeros(rows, jnp.float32)


def _added(total, found: TokenLosses, weights_BC, z_loss: float):
    nll_BC = found.nll_BC * weights_BC
    penalty = z_loss * jnp.sum(jnp.square(found.log_partition_BC) * weights_BC) if z_loss else 0.0
    return total[0] + jnp.sum(nll_BC) + penalty, total[1] + jnp.sum(nll_BC, axis=1)


def over_devices(total, nll_BS=None):
    """The loss over all devices, and every row's over the shards of its sequence, or every target's as it is here."""
    loss, nll_B = total
    sequence = split_axes("sequence")
    loss = jax.lax.psum(loss, split_axes("batch") + sequence)
    return loss, jax.lax.psum(nll_B, sequence) if nll_BS is None else nll_BS


def of_targets(nll, weights):
    """Losses where there is a target, else 0, whatever was computed there."""
    return jnp.where(weights > 0, nll, 0.0)


def _chunked(array_BS, chunk: int):
    """[B, S, ...] -> [chunks, B, C, ...], the last chunk padded with zeros (weight 0)."""
    batch, length = array_BS.shape[:2]
    chunk = min(chunk, length)
    chunks = -(-length // chunk)
    padding = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (array_BS.ndim - 2)
    return jnp.moveaxis(jnp.pad(array_BS, padding).reshape(batch, chunks, chunk, *array_BS.shape[2:]), 1, 0)


def _joined(chunks, like_BS):
    """[chunks, B, C, ...] -> [B, S, ...], the inverse of `_chunked` for an array of this shape."""
    batch, length, *rest = like_BS.shape
    return jnp.moveaxis(chunks, 0, 1).reshape(batch, -1, *rest)[:, :length]
