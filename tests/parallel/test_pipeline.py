"""The pipeline computes what its layers compute one after another, and keeps no more with more microbatches."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import run_config

from maxlm.config import MeshConfig
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.pipeline import pipeline
from maxlm.train.state import abstract_batch, abstract_state, blueprint

# Microbatches, stages, repeats.
SCHEDULES = [(2, 2, 1), (4, 2, 1), (4, 4, 2), (8, 4, 2), (8, 2, 3)]
LAYERS, BATCH, LENGTH, WIDTH = 3, 16, 2, 4  # layers of a stage and repeat


def layer(x_BSD, weight_D, bias_D, token_BS):
    """The next rows, and a sum over the tokens that is no function of the last layer's output."""
    return x_BSD * weight_D + bias_D, jnp.sum(token_BS * jnp.sum(jnp.square(x_BSD), -1))


def in_order(params, x_BSD, token_BS):
    """All layers on all of the batch, the sums shaped as the pipeline shapes them."""
    shape = params["weight"].shape[:2]
    sums = []
    for number in range(math.prod(shape)):
        repeat, place = divmod(number, shape[1])
        x_BSD, total = layer(x_BSD, params["weight"][repeat, place], params["bias"][repeat, place], token_BS)
        sums.append(total)
    return x_BSD, {"squares": jnp.stack(sums).reshape(shape), "tokens": jnp.full(shape, jnp.sum(token_BS))}


def in_stages(params, x_BSD, token_BS, microbatches: int, repeats: int):
    def stage(params, repeat, x_bSD, token_bS):
        own = jax.tree.map(lambda leaf: leaf[repeat], params)

        def step(x_bSD, layer_params):
            x_bSD, total = layer(x_bSD, layer_params["weight"], layer_params["bias"], token_bS)
            return x_bSD, {"squares": total, "tokens": jnp.sum(token_bS)}

        return jax.lax.scan(step, x_bSD, own)

    return pipeline(stage, params, x_BSD, token_BS, microbatches=microbatches, repeats=repeats, rest=("sequence", None))


@pytest.mark.parametrize(("microbatches", "stages", "repeats"), SCHEDULES)
def test_stages_give_what_layers_in_order_give(microbatches: int, stages: int, repeats: int) -> None:
    """Values, sums counted once per microbatch and never in a bubble, and the gradients of both."""
    mesh = build_mesh(MeshConfig(pipeline=stages, fsdp=2), jax.devices()[: 2 * stages])
    random = np.random.default_rng(0)
    shape = (repeats, stages * LAYERS, WIDTH)
    params = {"weight": random.uniform(0.8, 1.2, shape), "bias": random.normal(size=shape)}
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    x_BSD = random.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    token_BS = random.integers(1, 5, (BATCH, LENGTH)).astype(np.float32)
    d_x, d_sums = random.normal(size=x_BSD.shape), random.normal(size=shape[:2])

    def differentiated(run):
        def loss(params, x_BSD):
            y_BSD, sums = run(params, x_BSD, token_BS)
            return jnp.sum(y_BSD * d_x) + jnp.sum(sums["squares"] * d_sums), (y_BSD, sums)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x_BSD)

    with jax.set_mesh(mesh):
        found = differentiated(functools.partial(in_stages, microbatches=microbatches, repeats=repeats))
    wanted = differentiated(in_order)
    np.testing.assert_array_equal(found[0][1][1]["tokens"], wanted[0][1][1]["tokens"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), found, wanted)


def kept_bytes(schedule: dict) -> int:
    """Bytes that a model's forward pass through two stages keeps for its backward pass, parameters included."""
    model = {"num_layers": 8, "embed_dim": 64, "head_dim": 2}
    data = {"seq_len": 64, "mixture": [{"tokens": 2**16, "weights": {"web": 1}}]}
    config = run_config(
        model=model, data=data, train={"batch_tokens": 32 * 64}, mesh={"pipeline": 2, "fsdp": 1}, pipeline=schedule
    )
    plan = blueprint(config, build_mesh(config.mesh, jax.devices()[:2]), 1)

    def forward(params, batch):
        model = nnx.merge(plan.graphdef, params)
        return model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"]).x_BSD

    with jax.set_mesh(plan.mesh):
        batch, params = abstract_batch(plan), abstract_state(plan).params
        backward = jax.eval_shape(lambda params, batch: jax.vjp(lambda p: forward(p, batch), params)[1], params, batch)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize("schedule", [{}, {"remat_stages": True}, {"repeats": 2}])
def test_more_microbatches_keep_no_more(schedule: dict) -> None:
    """Inputs of layers or stages are kept per tick, of which there are fewer per microbatch; nothing else is."""
    found = [kept_bytes({"microbatches": count} | schedule) for count in (2, 4, 8, 16)]
    assert found == sorted(found, reverse=True)
