"""One optimizer step: a pure function of (state, batch, learning rate).

Loss and gradients are sums over the tokens of all microbatches in float32, divided once by the number of target
tokens of the whole global batch, so neither the mesh nor accumulation changes the mathematics.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maxlm.model.loss import cross_entropy
from maxlm.parallel.sharding import batch_shards, shard
from maxlm.train import faults
from maxlm.train.state import Blueprint, Sums, TrainState

Batch = dict[str, jax.Array]


def train_step(state: TrainState, batch: Batch, learning_rate: jax.Array, *, plan: Blueprint):
    """(state, batch) -> (state, metrics).

    Args:
        state: donated by the compiled step.
        batch: tokens, targets, segment_ids, positions int32 [B, S]; weights float32 [B, S], 1 where there is a
            target; sources int32 [B].
        learning_rate: float32 scalar.
        plan: structure and configuration, static.
    Returns: the next state, and scalars: loss (nats per target token, before regularisers), grad_norm (before
        clipping), param_norm, update_norm, skipped_in_row, and the sums since the host last took them.
    """
    config = plan.config
    gradients, nll_B = summed_gradients(state.params, batch, plan)
    targets_B = jnp.sum(batch["weights"], axis=1)
    num_targets = jnp.maximum(jnp.sum(targets_B), 1.0)
    gradients = jax.tree.map(lambda g: g / num_targets, gradients)
    loss, grad_norm = jnp.sum(nll_B) / num_targets, optax.global_norm(gradients)

    accept = faults.acceptable(state.window, loss, grad_norm, config.faults)
    if config.optimizer.clip_norm is not None:
        scale = jnp.minimum(1.0, config.optimizer.clip_norm / grad_norm)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
    direction, moments = plan.transform.update(gradients, state.optimizer, state.params)
    updates = jax.tree.map(lambda d: d * learning_rate, direction)
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(accept, n, o), new, old)

    state = TrainState(
        keep(params, state.params),
        keep(moments, state.optimizer),
        faults.record(state.window, loss, grad_norm, accept, config.faults),
        _add(state.sums, nll_B, targets_B, batch["sources"], accept),
    )
    metrics = {
        "loss": loss,
        "grad_norm": grad_norm,
        "param_norm": optax.global_norm(state.params),
        "update_norm": jnp.where(accept, optax.global_norm(updates), 0.0),
        "skipped_in_row": state.window.skipped_in_row,
        "sums": state.sums,
    }
    return state, metrics


def summed_gradients(params: dict, batch: Batch, plan: Blueprint) -> tuple[dict, jax.Array]:
    """Gradients of the loss summed over the targets, float32 and sharded as the parameters, and nats per row [B]."""
    gradient = jax.value_and_grad(partial(_loss, plan=plan), has_aux=True)
    count = plan.config.train.accumulate
    if count == 1:
        (_, nll_B), gradients = gradient(params, batch)
        return _as_parameters(gradients, plan), nll_B

    def microbatch(total, part):
        (_, nll_b), gradients = gradient(params, part)
        return jax.tree.map(jnp.add, total, _as_parameters(gradients, plan)), nll_b

    zeros = _as_parameters(jax.tree.map(jnp.zeros_like, params), plan)
    gradients, nll_Ab = jax.lax.scan(microbatch, zeros, {name: _split(x, count) for name, x in batch.items()})
    return gradients, _join(nll_Ab)


def compile_step(plan: Blueprint):
    """The jitted step; its state is donated and comes back in the same shards."""
    return jax.jit(
        partial(train_step, plan=plan),
        donate_argnums=0,
        out_shardings=(plan.shardings, jax.sharding.NamedSharding(plan.mesh, jax.sharding.PartitionSpec())),
    )


def _loss(params: dict, batch: Batch, plan: Blueprint) -> tuple[jax.Array, jax.Array]:
    """Regularised loss summed over the batch's target tokens, and plain loss per row."""
    model, config = nnx.merge(plan.graphdef, params), plan.config.loss
    x_BSD, _ = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"])
    output_DV = model.output_matrix()
    return cross_entropy(x_BSD, output_DV, batch["targets"], batch["weights"], config.chunk, config.z_loss)


def _as_parameters(gradients: dict, plan: Blueprint) -> dict:
    return jax.tree.map(lambda g, axes: shard(g.astype(jnp.float32), *axes), gradients, plan.axes)


def _split(x_B: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [A, B / A, ...], each shard of the batch giving a part of its own rows: nothing moves."""
    shards = batch_shards()
    parts = x_B.reshape(shards, count, -1, *x_B.shape[1:]).swapaxes(0, 1)
    return shard(parts.reshape(count, -1, *x_B.shape[1:]), None, "batch", *[None] * (x_B.ndim - 1))


def _join(x_Ab: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    count, shards = x_Ab.shape[0], batch_shards()
    return shard(x_Ab.reshape(count, shards, -1).swapaxes(0, 1).reshape(-1), "batch")


def _add(sums: Sums, nll_B, targets_B, sources_B, accept) -> Sums:
    """Sums by source of the steps that count. An example belongs to one source, so rows are enough."""
    source_BN = jax.nn.one_hot(sources_B, sums.nll.shape[0], dtype=jnp.float32)
    nll_N = jnp.where(accept, jnp.where(jnp.isfinite(nll_B), nll_B, 0.0) @ source_BN, 0.0)
    # Integer sums are exact beyond float32's 2^24.
    targets_N = jnp.sum(targets_B.astype(jnp.uint32)[:, None] * source_BN.astype(jnp.uint32), axis=0)
    return Sums(
        sums.nll + nll_N,
        sums.targets + jnp.where(accept, targets_N, jnp.uint32(0)),
        sums.skipped + jnp.where(accept, 0, 1),
    )
