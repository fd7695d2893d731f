"""Cross-entropy without the full logits. Axis letters as in layers.py, C positions of a chunk."""

import functools

import jax
import jax.numpy as jnp

from maxlm.parallel.sharding import shard


def token_losses(x_BCD, output_DV, targets_BC) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood and log-partition function per position, in nats, float32 [B, C]."""
    logits_BCV = jnp.einsum("BCD,DV->BCV", x_BCD, output_DV, preferred_element_type=jnp.float32)
    logits_BCV = shard(logits_BCV, "batch", "sequence", "vocab")
    log_partition_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    # A masked sum instead of a gather: with the vocabulary sharded, each shard adds its own part.
    is_target_BCV = jnp.arange(output_DV.shape[1]) == targets_BC[..., None]
    target_BC = jnp.sum(jnp.where(is_target_BCV, logits_BCV, 0.0), axis=-1)
    return log_partition_BC - target_BC, log_partition_BC


def _chunk_loss(x_BCD, output_DV, targets_BC, weights_BC, z_loss: float):
    """Regularised loss summed over a chunk, and per row the plain loss."""
    # A where, not a product alone: a weight of 0 must also silence a value that is not finite, and its gradient.
    x_BCD = jnp.where(weights_BC[..., None] > 0, x_BCD, 0)
    nll_BC, log_partition_BC = token_losses(x_BCD, output_DV, targets_BC)
    nll_BC = nll_BC * weights_BC
    penalty = z_loss * jnp.sum(jnp.square(log_partition_BC) * weights_BC) if z_loss else 0.0
    return jnp.sum(nll_BC) + penalty, jnp.sum(nll_BC, axis=1)


def _chunked(array_BS, chunk: int):
    """[B, S, ...] -> [chunks, B, C, ...], the last chunk padded with zeros (weight 0)."""
    batch, length = array_BS.shape[:2]
    chunks = -(-length // chunk)
    padding = [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (array_BS.ndim - 2)
    return jnp.moveaxis(jnp.pad(array_BS, padding).reshape(batch, chunks, chunk, *array_BS.shape[2:]), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(x_BSD, output_DV, targets_BS, weights_BS, chunk: int, z_loss: float):
    """Weighted cross-entropy summed over the batch: (sum + z_loss * sum of squared log-partitions, sums per row [B]).

    Only `chunk` positions of a row have logits at one time. Differentiation computes each chunk's gradient beside
    its loss, while its logits exist, so nothing of vocabulary size is kept and the product with the output matrix
    is not computed a second time. The second result carries no gradient. Sums are float32; z-loss as in PaLM
    (Chowdhery et al. 2022, section 5).
    """
    chunk = min(chunk, x_BSD.shape[1])

    def step(total, inputs):
        loss, nll_B = _chunk_loss(inputs[0], output_DV, inputs[1], inputs[2], z_loss)
        return (total[0] + loss, total[1] + nll_B), None

    start = (jnp.float32(0), jnp.zeros(x_BSD.shape[0], jnp.float32))
    chunks = tuple(_chunked(array, chunk) for array in (x_BSD, targets_BS, weights_BS))
    return jax.lax.scan(step, start, chunks)[0]


def _forward(x_BSD, output_DV, targets_BS, weights_BS, chunk: int, z_loss: float):
    batch, length, width = x_BSD.shape
    chunk = min(chunk, length)
    gradient = jax.value_and_grad(_chunk_loss, argnums=(0, 1), has_aux=True)

    def step(total, inputs):
        x_BCD, targets_BC, weights_BC = inputs
        (loss, nll_B), (dx_BCD, d_output_DV) = gradient(x_BCD, output_DV, targets_BC, weights_BC, z_loss)
        sums = (total[0] + loss, total[1] + nll_B, total[2] + d_output_DV.astype(jnp.float32))
        return sums, shard(dx_BCD, "batch", "sequence", "residual")

    zeros_DV = shard(jnp.zeros(output_DV.shape, jnp.float32), "embed", "vocab")
    start = (jnp.float32(0), jnp.zeros(batch, jnp.float32), zeros_DV)
    chunks = tuple(_chunked(array, chunk) for array in (x_BSD, targets_BS, weights_BS))
    (loss, nll_B, d_output_DV), dx = jax.lax.scan(step, start, chunks)
    dx_BSD = jnp.moveaxis(dx, 0, 1).reshape(batch, -1, width)[:, :length]
    return (loss, nll_B), (dx_BSD, d_output_DV.astype(output_DV.dtype))


def _backward(chunk: int, z_loss: float, gradients, cotangents):
    dx_BSD, d_output_DV = gradients
    scale = cotangents[0]
    return (dx_BSD * scale).astype(dx_BSD.dtype), (d_output_DV * scale).astype(d_output_DV.dtype), None, None


cross_entropy.defvjp(_forward, _backward)
