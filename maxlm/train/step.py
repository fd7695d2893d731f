"""One optimizer step: a pure function of (state, batch, learning rate).

Loss and gradients are sums over the tokens of all microbatches in float32, divided once by the number of target
tokens of the whole global batch, so neither the mesh nor accumulation changes the mathematics.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from maxlm.model.decoder import Decoder
from maxlm.model.loss import cross_entropy
from maxlm.model.moe import updated_bias
from maxlm.model.vocabulary_loss import cross_entropy_by_vocabulary
from maxlm.parallel.batch import BATCH_AXES
from maxlm.parallel.compiler import jit_options, step_options
from maxlm.parallel.sharding import join_batch, shard, split_batch
from maxlm.train import doremi, ema, faults
from maxlm.train.state import DEVICE_MEMORY, HOST_MEMORY, Blueprint, Sums, TrainState

Batch = dict[str, jax.Array]


def train_step(
    state: TrainState, batch: Batch, learning_rate: jax.Array, reference: dict | None = None, *, plan: Blueprint
):
    """(state, batch) -> (state, metrics).

    Args:
        state: donated by the compiled step.
        batch: tokens, targets, segment_ids, positions int32 [B, S]; weights float32 [B, S], 1 where there is a
            target; sources int32 [B]; prefix bool [B, S] where a source has prefix_lm. Columns are in `sequence_order`.
        learning_rate: float32 scalar.
        reference: parameters of `plan.reference`, for a proxy run (doremi.py). Its objective, and so grad_norm, weighs
            the sources by the domain weights; what is reported as loss does not.
        plan: structure and configuration, static.
    Returns: the next state, and scalars: loss (nats per target token, before regularisers), grad_norm (before
        clipping), param_norm, update_norm, skipped_in_row, and the sums since the host last took them; of a proxy run
        the domain weights.
    """
    config = plan.config
    weighed = batch
    if reference is not None:
        weighed = batch | {"factors": doremi.row_factors(state.domains, batch["weights"], batch["sources"])}
    gradients, counted = summed_gradients(state.params, weighed, plan, reference)
    targets_B = jnp.sum(batch["weights"], axis=1)
    num_targets = jnp.maximum(jnp.sum(targets_B), 1.0)
    gradients = jax.tree.map(lambda g: g / num_targets, gradients)
    loss, grad_norm = jnp.sum(counted.nll_B) / num_targets, optax.global_norm(gradients)

    accept = faults.acceptable(state.window, loss, grad_norm, config.faults)
    if reference is not None:
        accept &= jnp.all(jnp.isfinite(counted.excess_B))
    if config.optimizer.clip_norm is not None:
        scale = jnp.minimum(1.0, config.optimizer.clip_norm / grad_norm)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
    # A branch, not a choice between arrays: moments that live in the hosts' memory are brought to the device in it, so
    # not before the activations are gone. (Behind a barrier alone XLA fetches them before the backward pass.)
    update = partial(_update, gradients=gradients, load=counted.load, learning_rate=learning_rate, plan=plan)
    held = state.params, state.optimizer, state.ema
    params, moments, average, update_norm = jax.lax.cond(accept, update, lambda *held: (*held, jnp.float32(0)), *held)
    window = faults.record(state.window, loss, grad_norm, accept, config.faults)
    sums = _add(state.sums, counted, targets_B, batch, accept, plan)
    domains = _domains(state, counted, targets_B, batch, accept, plan)
    state = TrainState(params, moments, window, sums, domains, average)
    metrics = {
        "loss": loss,
        "grad_norm": grad_norm,
        "param_norm": optax.global_norm(state.params),
        "update_norm": update_norm,
        "skipped_in_row": state.window.skipped_in_row,
        "sums": state.sums,
    }
    return state, metrics if reference is None else metrics | {"domains": state.domains}


class Counted(NamedTuple):
    """What a batch's forward pass counts besides the loss that is differentiated."""

    nll_B: jax.Array  # float32 [B], nats per row
    load: dict[str, jax.Array]  # per position with experts [blocks, experts]
    excess_B: jax.Array | None = None  # float32 [B], nats per row by which targets lie above the reference


def summed_gradients(
    params: dict, batch: Batch, plan: Blueprint, reference: dict | None = None
) -> tuple[dict, Counted]:
    """Gradients of the loss summed over the targets, float32 and sharded as the moments, and what was counted.

    With the parameters of a reference the batch has `factors` float32 [B] on the weights of its rows.
    """
    gradient = jax.value_and_grad(partial(_loss, plan=plan), has_aux=True)
    count = plan.config.train.accumulate

    def of_part(part):
        if reference is not None:
            part = part | {"reference_nll": _reference_nll(reference, part, plan.reference)}
        (_, counted), gradients = gradient(params, part)
        return counted, _as_moments(gradients, plan)

    if count == 1:
        counted, gradients = of_part(batch)
        return gradients, counted

    def microbatch(total, part):
        counted, gradients = of_part(part)
        return jax.tree.map(jnp.add, total, gradients), counted

    zeros = _as_moments(jax.tree.map(jnp.zeros_like, params), plan)
    parts = {name: split_batch(x, count, *BATCH_AXES[1 : x.ndim]) for name, x in batch.items()}
    gradients, counted = jax.lax.scan(microbatch, zeros, parts)
    nll_B, load = join_batch(counted.nll_B), jax.tree.map(lambda load: jnp.sum(load, 0), counted.load)
    return gradients, Counted(nll_B, load, None if reference is None else join_batch(counted.excess_B))


def compile_step(plan: Blueprint):
    """The jitted step; its state is donated and comes back in the same shards."""
    options = step_options(plan.config.compiler, plan.mesh.devices.flat[0].device_kind)
    return jax.jit(
        partial(train_step, plan=plan),
        donate_argnums=0,
        out_shardings=(plan.shardings, NamedSharding(plan.mesh, PartitionSpec())),
        compiler_options=jit_options(options),
    )


def _loss(params: dict, batch: Batch, plan: Blueprint) -> tuple[jax.Array, Counted]:
    """Regularised loss summed over the batch's target tokens, and what was counted."""
    model, proxy = nnx.merge(plan.graphdef, params), plan.reference is not None
    hidden = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"], prefix=batch.get("prefix"))
    weights_BS = batch["weights"] * batch["factors"][:, None] if proxy else batch["weights"]
    loss, nll = _cross_entropy(model, hidden.x_BSD, batch["targets"], weights_BS, plan, per_token=proxy)
    loss += sum(jnp.sum(router.penalty) for router in hidden.routers.values())
    load = {position: jax.lax.stop_gradient(router.load_E) for position, router in hidden.routers.items()}
    if not proxy:
        return loss, Counted(nll, load)
    above_BS = jnp.maximum(nll - batch["reference_nll"], 0.0)
    nll_B, excess_B = (jnp.sum(values_BS * batch["weights"], axis=1) for values_BS in (nll, above_BS))
    return loss, Counted(nll_B, load, excess_B)


def _cross_entropy(model: Decoder, x_BSD, targets_BS, weights_BS, plan: Blueprint, per_token: bool):
    """(regularised loss summed, sums per row [B] or loss per token [B, S]), in parts as the configuration says."""
    config, arguments = plan.config.loss, (targets_BS, weights_BS)
    how = (config.z_loss, model.config.logit_softcap, per_token)
    if config.split == "vocabulary":
        matrix_DV, axes = model.stored_output()
        return cross_entropy_by_vocabulary(x_BSD, matrix_DV, *arguments, axes, config.block, *how)
    return cross_entropy(x_BSD, model.output_matrix(), *arguments, config.chunk, *how)


def _reference_nll(params: dict, batch: Batch, plan: Blueprint) -> jax.Array:
    """Loss of every target under the reference, float32 [B, S]; 0 where there is none."""
    model = nnx.merge(plan.graphdef, params)
    hidden = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"], prefix=batch.get("prefix"))
    return _cross_entropy(model, hidden.x_BSD, batch["targets"], batch["weights"], plan, per_token=True)[1]


def _as_moments(gradients: dict, plan: Blueprint) -> dict:
    return jax.tree.map(lambda g, axes: shard(g.astype(jnp.float32), *axes), gradients, plan.axes)


def _update(
    params: dict,
    moments: Any,
    average: ema.Average | None,
    *,
    gradients: dict,
    load: dict,
    learning_rate: jax.Array,
    plan: Blueprint,
):
    """Parameters, moments and average after an update by the mean gradients, and the norm of the update."""
    moments = _moved(moments, plan.shardings.optimizer, DEVICE_MEMORY)
    direction, moments = plan.transform.update(gradients, moments, params)
    updates = jax.tree.map(lambda d: d * learning_rate, direction)
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
    moments = _moved(moments, plan.shardings.optimizer, HOST_MEMORY)
    params = _balanced(params, load, plan)
    if average is not None:
        average = _moved(average, plan.shardings.ema, DEVICE_MEMORY)
        average = ema.updated(average, params, plan.config.optimizer.ema, plan.axes)
        average = _moved(average, plan.shardings.ema, HOST_MEMORY)
    return params, moments, average, optax.global_norm(updates)


def _moved(arrays: Any, shardings: Any, to: str) -> Any:
    """What is stored in the hosts' memory, in the memory where it is wanted; other arrays stay where they are."""

    def move(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        return jax.device_put(array, sharding.with_memory_kind(to)) if sharding.memory_kind == HOST_MEMORY else array

    return jax.tree.map(move, arrays, shardings)


def _balanced(params: dict, load: dict[str, jax.Array], plan: Blueprint) -> dict:
    """Parameters with the routers' biases moved by the load of the whole step, where the model balances so."""
    moe = plan.config.model.moe
    if moe is None or moe.balance != "bias":
        return params
    blocks = dict(params["blocks"])
    for position, load_LE in load.items():
        mlp = blocks[position]["mlp"]
        bias = updated_bias(mlp["bias"], load_LE.reshape(mlp["bias"].shape), moe.bias_rate)
        blocks[position] = blocks[position] | {"mlp": mlp | {"bias": bias}}
    return params | {"blocks": blocks}


def _domains(state: TrainState, counted: Counted, targets_B, batch: Batch, accept, plan: Blueprint):
    """The domain weights after a step, unchanged where the step does not count; None but in a proxy run."""
    if (domains := state.domains) is None:
        return None
    sums = (doremi.by_source(x_B, batch["sources"], domains.weights) for x_B in (counted.excess_B, targets_B))
    after = doremi.updated(domains, *sums, plan.config.data)
    return jax.tree.map(lambda new, old: jnp.where(accept, new, old), after, domains)


def _add(sums: Sums, counted: Counted, targets_B, batch: Batch, accept, plan: Blueprint) -> Sums:
    """Sums of the steps that count. An example belongs to one source, so rows are enough."""
    by_source = partial(doremi.by_source, sources_B=batch["sources"], like_N=sums.nll)
    nll_N = jnp.where(accept, by_source(jnp.where(jnp.isfinite(counted.nll_B), counted.nll_B, 0.0)), 0.0)
    # Integer sums are exact beyond float32's 2^24.
    targets_N = by_source(targets_B.astype(jnp.uint32))
    load = {position: load_LE.astype(jnp.uint32) for position, load_LE in counted.load.items()}
    dropped = jnp.int32(0)
    if load:
        assigned = plan.config.model.moe.experts_per_token * jnp.sum((batch["segment_ids"] > 0).astype(jnp.uint32))
        dropped = sum(jnp.sum(assigned - jnp.sum(load_LE, 1)).astype(jnp.int32) for load_LE in load.values())
    excess_N = sums.excess
    if excess_N is not None:
        excess_N = jnp.where(accept, excess_N + by_source(counted.excess_B), excess_N)
    return Sums(
        sums.nll + nll_N,
        sums.targets + jnp.where(accept, targets_N, jnp.uint32(0)),
        sums.skipped + jnp.where(accept, 0, 1),
        jax.tree.map(jnp.add, sums.load, load),
        sums.dropped + dropped,
        excess_N,
    )
