"""The average of the parameters: its definition on every mesh, what leaves it alone, and where it goes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import run_config
from trainer import Trainer, make_batch

from maxlm import saved
from maxlm.checkpoint import Checkpoints, restore
from maxlm.config import Config
from maxlm.train import ema
from maxlm.train.state import abstract_canonical, averaged_parameters, initial_state, parameter_axes, to_canonical

STEPS = 10
DECAY = 0.4  # the bound of the first updates is below it, that of the later ones above
EXPERTS = {"num_experts": 8, "experts_per_token": 2, "mlp_dim": 16, "scores": "sigmoid", "balance": "bias"}

CASES = {
    "one-device": ({}, {}),
    "fsdp2-tensor2-data2": ({"fsdp": 2, "tensor": 2, "data": 2}, {}),
    "data2-fsdp4-zero1-accumulate2": (
        {"data": 2, "fsdp": 4},
        {"parallel": {"zero": 1}, "train": {"batch_tokens": 256, "accumulate": 2}},
    ),
    "fsdp4-tensor2-offload": ({"fsdp": 4, "tensor": 2}, {"optimizer": {"offload": "host"}}),
    "pipeline2-fsdp2-data2-repeats2": (
        {"pipeline": 2, "fsdp": 2, "data": 2},
        {"pipeline": {"microbatches": 2, "repeats": 2}},
    ),
    "expert4-fsdp2-biased": ({"expert": 4, "fsdp": 2}, {"model": {"moe": EXPERTS | {"bias_rate": 0.01}}}),
}


def config_of(mesh: dict, sections: dict) -> Config:
    model = {"num_layers": 4, "num_heads": 8, "num_kv_heads": 4, "embed_dim": 32} | sections.get("model", {})
    optimizer = {"ema": DECAY, "eps": 1e-5} | sections.get("optimizer", {})
    return run_config(**{"mesh": {"fsdp": 1} | mesh, **sections, "model": model, "optimizer": optimizer})


@cache
def trainer_of(case: str) -> Trainer:
    """Compiled once for all tests."""
    mesh, sections = CASES[case]
    return Trainer(config_of(mesh, sections), jax.devices()[: int(np.prod([1, *mesh.values()]))])


def canonical(trainer: Trainer) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and their average in the layout of a checkpoint, copied."""
    state = to_canonical(trainer.state, trainer.plan)
    return tuple([np.array(leaf) for leaf in jax.tree.leaves(tree)] for tree in (state.params, state.ema.params))


@pytest.mark.parametrize("case", CASES)
def test_the_average_is_that_of_the_recurrence(case: str) -> None:
    trainer = trainer_of(case)
    trainer.state = initial_state(trainer.plan)
    params, average = canonical(trainer)
    for one, other in zip(params, average, strict=True):
        np.testing.assert_array_equal(one, other)
    expected = params
    for n in range(STEPS):
        trainer.run(make_batch(trainer.config, n))
        d = np.float32(min(DECAY, (1 + n) / (10 + n)))
        expected = [d * e + (1 - d) * p for e, p in zip(expected, canonical(trainer)[0], strict=True)]
    params, average = canonical(trainer)
    assert int(trainer.state.ema.updates) == STEPS
    for found, wanted, parameter in zip(average, expected, params, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
        assert np.any(found != parameter)


@pytest.mark.parametrize("case", ["data2-fsdp4-zero1-accumulate2", "fsdp4-tensor2-offload"])
def test_it_is_split_and_placed_as_the_moments_are(case: str) -> None:
    plan = trainer_of(case).plan
    averages, moments = (jax.tree.leaves(part) for part in (plan.shardings.ema.params, plan.shardings.optimizer[0].mu))
    assert averages == moments and len({place.spec for place in averages}) > 1
    assert {place.memory_kind for place in averages} == {"pinned_host" if "offload" in case else "device"}
    at_hand = averaged_parameters(trainer_of(case).state, plan)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(at_hand)} == {"device"}


def test_a_pipelines_average_is_read_on_one_device(tmp_path) -> None:
    """In a checkpoint it lies as the parameters do, whatever mesh wrote it."""
    wrote, reads = trainer_of("pipeline2-fsdp2-data2-repeats2"), trainer_of("one-device").plan
    state, axes = to_canonical(wrote.state, wrote.plan), parameter_axes(wrote.plan)
    with Checkpoints(tmp_path, wrote.config.checkpoint) as checkpoints:
        run = {"config": {}}
        checkpoints.save(1, state.params, axes, state.optimizer, state.counters, run, state.ema.params)
    wanted = abstract_canonical(reads)
    items, _ = restore(saved.latest(tmp_path), {"params": wanted.params, "ema": wanted.ema.params})
    for found, expected in zip(jax.tree.leaves(items["ema"]), canonical(wrote)[1], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert jax.tree.map(jnp.shape, items["ema"]) == jax.tree.map(jnp.shape, items["params"])


def test_a_step_that_does_not_count_leaves_it_alone() -> None:
    trainer = trainer_of("one-device")
    trainer.run(make_batch(trainer.config, 0))
    before = [np.array(leaf) for leaf in jax.tree.leaves(trainer.state.ema)]
    bad = make_batch(trainer.config, 1)
    bad["weights"][1, 2] = np.nan
    assert int(trainer.run(bad)["skipped_in_row"]) == 1
    after = [np.array(leaf) for leaf in jax.tree.leaves(trainer.state.ema)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))
    trainer.run(make_batch(trainer.config, 2))
    assert int(trainer.state.ema.updates) == int(before[-1]) + 1


def test_it_is_in_float32_whatever_the_parameters_are() -> None:
    params = {"w": jnp.full(4, 1.0, jnp.bfloat16)}
    average = ema.Average(ema.start(params).params, jnp.int32(10**6))
    after = ema.updated(average, {"w": jnp.full(4, 1.5, jnp.bfloat16)}, 0.999, {"w": (None,)})
    assert after.params["w"].dtype == jnp.float32  # bfloat16 has nothing between 1 and 1.008
    np.testing.assert_allclose(after.params["w"], 1.0005, rtol=1e-6)


def test_what_it_begins_with_is_soon_forgotten() -> None:
    """It weighs 1 / C(n + 9, 9) after n updates (and decay^n where the bound does not apply)."""
    axes = {"w": (None,)}
    average = ema.start({"w": jnp.ones(1)})
    for n in range(1, 41):
        average = ema.updated(average, {"w": jnp.zeros(1)}, 0.999, axes)
        if n in (1, 2, 10):
            expected = {1: 1 / 10, 2: 1 / 55, 10: 1 / 92378}[n]
            assert float(average.params["w"][0]) == pytest.approx(expected, rel=1e-5)
    constant = ema.updated(ema.Average({"w": jnp.ones(1)}, jnp.int32(100_000)), {"w": jnp.zeros(1)}, 0.999, axes)
    assert float(constant.params["w"][0]) == pytest.approx(0.999, rel=1e-6)


def test_it_changes_nothing_else() -> None:
    averaged = trainer_of("one-device")
    config = averaged.config
    without = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"ema": None})})
    plain = Trainer(without, jax.devices()[:1])
    averaged.state = initial_state(averaged.plan)
    for trainer in (averaged, plain):
        for seed in range(2):
            trainer.run(make_batch(config, seed))
    assert plain.state.ema is None
    for one, other in zip(jax.tree.leaves(averaged.state[:2]), jax.tree.leaves(plain.state[:2]), strict=True):
        np.testing.assert_array_equal(one, other)
