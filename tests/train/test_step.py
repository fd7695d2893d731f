"""The step's mathematics does not depend on the mesh or on accumulation, and bad steps change nothing."""

import itertools
import math
from functools import cache

import jax
import numpy as np
import pytest
from float64_decoder import Float64Decoder
from tiny import run_config
from trainer import SOURCES, Trainer, distance, make_batch, params_of

from maxlm.config import Config
from maxlm.parallel.mesh import build_mesh
from maxlm.train.state import TrainState, blueprint, initial_state
from maxlm.train.step import summed_gradients


@cache
def one_device(tied: bool) -> tuple[list[float], list[np.ndarray]]:
    """Losses of 10 steps on one device, and the parameters after them."""
    trainer = Trainer(config_of(tied, data=1, fsdp=1), jax.devices()[:1])
    losses = [float(trainer.run(make_batch(trainer.config, seed))["loss"]) for seed in range(10)]
    return losses, params_of(trainer.state)


def config_of(tied: bool, accumulate: int = 1, **mesh: int) -> Config:
    return run_config(
        model={"tie_embeddings": tied, "num_heads": 16, "num_kv_heads": 8, "window": [5, None], "qk_norm": True},
        mesh={"data": 1, "fsdp": 1, "tensor": 1} | mesh,
        optimizer={"eps": 1e-5, "weight_decay": 0.1},
        loss={"z_loss": 1e-3, "chunk": 7},
        train={"accumulate": accumulate},
        remat={"policy": "full"},
    )


MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "data{}-fsdp{}-tensor{}".format(*sizes))
def test_every_mesh_gives_the_losses_and_parameters_of_one_device(sizes, tied):
    losses, params = one_device(tied)
    trainer = Trainer(config_of(tied, **dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))))
    found = [float(trainer.run(make_batch(trainer.config, seed))["loss"]) for seed in range(10)]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert distance(params_of(trainer.state), params) < 1e-5


def test_accumulation_over_uneven_microbatches_gives_the_same_gradients():
    batch = make_batch(config_of(False), 3)
    batch["weights"][:3] = 0  # a microbatch may hold no target at all
    params, found = None, {}
    for count in (1, 2, 4, 8):
        config = config_of(False, accumulate=count)
        mesh = build_mesh(config.mesh, jax.devices()[:1])
        plan = blueprint(config, mesh, SOURCES)
        params = params or initial_state(plan).params
        with jax.set_mesh(mesh):
            found[count] = jax.jit(lambda p, b, plan=plan: summed_gradients(p, b, plan))(params, batch)
    whole, counted_whole = found.pop(1)
    for count, (parts, counted_parts) in found.items():
        assert distance(jax.tree.leaves(whole), jax.tree.leaves(parts)) < 1e-6, count
        np.testing.assert_allclose(counted_whole.nll_B, counted_parts.nll_B, rtol=1e-6, err_msg=str(count))


def sums_in_float64(config: Config, params: dict, batches: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Nats and targets of every source, row after row."""
    decoder, nll, targets = Float64Decoder(config.model, params), np.zeros(SOURCES), np.zeros(SOURCES, int)
    for batch in batches:
        for row, source in enumerate(batch["sources"]):
            logits = decoder(*(batch[name][row] for name in ("tokens", "segment_ids", "positions")))
            of_targets = logits[np.arange(len(logits)), batch["targets"][row]]
            nll[source] += (np.log(np.exp(logits).sum(1)) - of_targets) @ batch["weights"][row]
            targets[source] += int(batch["weights"][row].sum())
    return nll, targets


@pytest.mark.parametrize(
    ("accumulate", "mesh"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        (2, {"data": 2, "fsdp": 2}),
        (1, {"data": 2, "fsdp": 2, "tensor": 2}),
        (4, {"context": 2, "fsdp": 2}),
    ],
    ids=lambda value: "-".join(f"{axis}{size}" for axis, size in value.items()) if isinstance(value, dict) else None,
)
def test_loss_and_targets_of_every_source_are_those_of_the_steps_that_count(accumulate, mesh):
    config = config_of(False, accumulate=accumulate, **mesh)
    trainer = Trainer(config, jax.devices()[: math.prod(mesh.values())])
    params = jax.tree.map(np.asarray, trainer.state.params)  # before the state is donated
    whole, filled, bad = (make_batch(config, seed) for seed in (5, 6, 7))
    for array in filled.values():
        array[5:] = 0  # rows without an example
    bad["weights"][2, 3] = np.nan
    first, *_, metrics = (trainer.run(batch, rate=0.0) for batch in (whole, bad, filled, bad, bad))
    nll, targets = sums_in_float64(config, params, [whole, filled])
    assert metrics["sums"].targets.tolist() == targets.tolist() and (targets > 0).all()
    np.testing.assert_allclose(metrics["sums"].nll, nll, rtol=1e-5)
    assert int(metrics["sums"].skipped) == 3
    np.testing.assert_allclose(first["loss"], first["sums"].nll.sum() / first["sums"].targets.sum(), rtol=1e-6)


@pytest.fixture(scope="module")
def faulty() -> Trainer:
    """A trainer whose window of 8 steps is full."""
    config = run_config(faults={"window": 8}, train={"accumulate": 2})
    trainer = Trainer(config.model_copy(update={"mesh": config.mesh.model_copy(update={"fsdp": 1})}), jax.devices()[:1])
    for seed in range(8):
        trainer.run(make_batch(trainer.config, seed), rate=1e-4)
    return trainer


def snapshot(state: TrainState) -> list[np.ndarray]:
    parts = (state.params, state.optimizer, state.window.losses, state.window.grad_norms, state.window.accepted)
    return [np.array(leaf) for leaf in jax.tree.leaves(parts)]


def test_a_microbatch_that_is_not_finite_changes_nothing_and_is_counted(faulty):
    before, skipped = snapshot(faulty.state), int(faulty.state.sums.skipped)
    sums = np.array(faulty.state.sums.nll)
    bad = make_batch(faulty.config, 20)
    bad["weights"][1, 2] = np.nan  # makes one microbatch's loss and gradients NaN
    metrics = faulty.run(bad)
    assert not np.isfinite(metrics["loss"])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, snapshot(faulty.state), strict=True))
    assert int(metrics["sums"].skipped) == skipped + 1 and int(metrics["skipped_in_row"]) == 1
    assert np.array(faulty.state.sums.nll).tobytes() == sums.tobytes()
    good = faulty.run(make_batch(faulty.config, 21), rate=1e-4)
    assert np.isfinite(good["loss"]) and int(good["skipped_in_row"]) == 0 and good["update_norm"] > 0


def test_a_spike_is_skipped_and_does_not_enter_the_window(faulty):
    before = snapshot(faulty.state)
    spike = make_batch(faulty.config, 22)
    spike["weights"] *= 0
    spike["weights"][0, 0] = 1  # the gradient of one token is far above that of a batch
    metrics = faulty.run(spike)
    assert metrics["grad_norm"] > 2 * float(np.max(np.asarray(faulty.state.window.grad_norms)))
    assert int(metrics["skipped_in_row"]) == 1 and metrics["update_norm"] == 0
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, snapshot(faulty.state), strict=True))


def test_nothing_is_compiled_after_the_first_step(faulty):
    faulty.run(make_batch(faulty.config, 23), rate=1e-5)
    assert faulty.step._cache_size() == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_batch_overfits(optimizer):
    config = run_config(optimizer={"name": optimizer, "weight_decay": 0.0}, mesh={"fsdp": 1}, data={"seq_len": 16})
    trainer = Trainer(config, jax.devices()[:1])
    batch = make_batch(config, 1)
    batch["weights"][:] = 1
    first = trainer.run(batch)["loss"]
    for _ in range(150):
        last = trainer.run(batch, rate=2e-2)["loss"]
    assert first > 4.0 and last < 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parameters_in_bfloat16_have_moments_in_float32(optimizer):
    config = run_config(precision={"params": "bfloat16"}, optimizer={"name": optimizer})
    trainer = Trainer(config, jax.devices()[:1])
    batch = make_batch(config, 0)
    losses = [float(trainer.run(batch)["loss"]) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trainer.state.params)} == {"bfloat16"}
    moments = {leaf.dtype.name for leaf in jax.tree.leaves(trainer.state.optimizer) if leaf.ndim}
    assert moments == {"float32"}
