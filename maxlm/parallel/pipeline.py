"""The pipeline: stages of layers on different devices, through which parts of a batch pass one after the other.

A `shard_map` that is manual over the mesh axis `pipeline` alone; inside it every stage runs the same program on its
own layers, and all other axes stay automatic. Legend: p stages, m microbatches, r repeats, l layers of a stage
and repeat, t ticks, h microbatches held by a stage, B batch, b rows of a microbatch, S sequence, D embed.

The schedule is a scan over m r + p - 1 ticks. At tick t, stage s works on microbatch (t - s) mod m of repeat
(t - s) // m (circular: layer = repeat * (p l) + s l + i), and hands its output to
stage s + 1. In the p - 1 ticks in which t - s is out of range a stage computes on what is there and the result is
ignored: a bubble of (p - 1) / (m r + p - 1).

Nothing is stored twice. Every stage holds m / p microbatches of the batch, as the batch is sharded outside. They go
round towards stage 0, one step each m / p ticks, so each is with stage 0 when its turn comes, and the last stage puts
its outputs into the places that have become free: after the last tick every output is where its input was.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maxlm.parallel.sharding import axis_size, join_batch, shard, split_batch

AXIS = "pipeline"

# (parameters [r, l, ...], repeat, rows [b, S, D], tokens [b, S]) -> (rows, sums with a leading axis over the l layers)
Stage = Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def pipeline(stage: Stage, params: Any, x_BSD: jax.Array, tokens: Any, *, microbatches: int, repeats: int, rest: tuple):
    """Run all layers over a batch; the same as running them one after the other on all of it.

    Args:
        stage: the program of one stage. What it keeps for the backward pass is kept once per tick, so it takes the
            parameters of its repeat itself, where recomputation can reach.
        params: leaves [r, p l, ...], the second axis over the stages.
        x_BSD: activations, the batch sharded over `pipeline` first; `rest` names their other logical axes.
        tokens: arrays [B, S] that travel with the rows.
        microbatches: a multiple of the number of stages.
    Returns: the activations, and the sums over the microbatches with leading axes [r, p l].
    """
    stages = axis_size(AXIS)

    def run(params, x_BSD, tokens):
        return _schedule(stage, params, x_BSD, tokens, stages, microbatches, repeats, rest)

    rows, layers = PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    run = jax.shard_map(
        run, in_specs=(layers, rows, rows), out_specs=(rows, layers), axis_names={AXIS}, check_vma=False
    )
    return run(params, x_BSD, tokens)


def _schedule(stage: Stage, params: Any, x_BSD, tokens, stages: int, microbatches: int, repeats: int, rest: tuple):
    """What one stage does, on its part of the parameters [r, l, ...] and of the batch."""
    here, held = lax.axis_index(AXIS), microbatches // stages
    # What a token is, every stage needs for every microbatch; these are integers, small beside the activations.
    tokens = jax.tree.map(lambda t_BS: lax.all_gather(split_batch(t_BS, held, "sequence"), AXIS, tiled=True), tokens)

    def tick(carry, time):
        waiting_hbSD, arrived_bSD, delayed = carry
        place, own_time = time % held, time - here
        oldest_bSD = waiting_hbSD[place]
        first_bSD = oldest_bSD
        if repeats > 1:
            back_bSD, delayed = _delay(delayed, arrived_bSD, time)
            first_bSD = jnp.where(time < microbatches, oldest_bSD, back_bSD)
        x_bSD = shard(jnp.where(here == 0, first_bSD, arrived_bSD), "batch", *rest)
        repeat = jnp.clip(own_time // microbatches, 0, repeats - 1)
        y_bSD, sums = stage(params, repeat, x_bSD, jax.tree.map(lambda t: t[own_time % microbatches], tokens))
        freed_bSD = jnp.where(here == stages - 1, y_bSD, _pass_on(oldest_bSD, -1))
        return (waiting_hbSD.at[place].set(freed_bSD), _pass_on(y_bSD, 1), delayed), sums

    waiting_hbSD = split_batch(x_BSD, held, *rest)
    nothing_bSD = jnp.zeros_like(waiting_hbSD[0])
    delayed = jnp.zeros_like(waiting_hbSD[1:]) if repeats > 1 else None
    ticks = jnp.arange(microbatches * repeats + stages - 1)
    (waiting_hbSD, _, _), sums = lax.scan(tick, (waiting_hbSD, nothing_bSD, delayed), ticks)

    # The places have turned with the ticks; the first microbatch's output went to this one.
    turned = (microbatches * (repeats - 1) + stages - 1) % held
    x_BSD = join_batch(jnp.roll(waiting_hbSD, -turned, axis=0), *rest)
    # A stage's sums of a tick belong to the repeat that it worked on then; those of a bubble to none.
    belongs_tr = ((ticks - here) // microbatches)[:, None] == jnp.arange(repeats)

    def total(sums_t: jax.Array) -> jax.Array:
        return jnp.sum(
            jnp.where(belongs_tr.reshape(*belongs_tr.shape, *[1] * (sums_t.ndim - 1)), sums_t[:, None], 0), 0
        )

    return x_BSD, jax.tree.map(total, sums)


def _pass_on(x: jax.Array, step: int) -> jax.Array:
    """What the neighbour behind holds; step 1 towards later stages, -1 towards stage 0."""
    stages = lax.axis_size(AXIS)
    return lax.ppermute(x, AXIS, [(stage, (stage + step) % stages) for stage in range(stages)])


def _delay(line_kbSD: jax.Array, arrived_bSD: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What arrived at stage 0 from the last stage m - p ticks ago, when its next repeat begins, and the line after it.

    The line is shared: each stage has k = m / p - 1 places, and what has spent k ticks in one goes on to the next
    stage, from the last one to stage 0. Every stage so holds k microbatches, not stage 0 all of them.
    """
    if not line_kbSD.shape[0]:
        return arrived_bSD, line_kbSD
    place = time % line_kbSD.shape[0]
    back_bSD = _pass_on(line_kbSD[place], 1)
    entered_bSD = jnp.where(lax.axis_index(AXIS) == 0, arrived_bSD, back_bSD)
    return back_bSD, line_kbSD.at[place].set(entered_bSD)
