"""The proxy run of DoReMi: its domain weights, its objective, and where the weights go."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import run_config
from trainer import Trainer, distance, make_batch, params_of

from maxlm.checkpoint import Checkpoints
from maxlm.config import Config, DataConfig
from maxlm.errors import ConfigError
from maxlm.train import doremi
from maxlm.train.state import initial_state, parameter_axes, to_canonical

SOURCES = ("a", "b", "c")
WEIGHTS = (0.1, 0.3, 0.6)
B1 = 0.9


def data_config(weights: dict[str, float], step_size: float = 1.0, smoothing: float = 1e-3) -> DataConfig:
    return DataConfig(
        seq_len=16,
        sources={name: {"path": name} for name in weights},
        mixture=[{"tokens": 1, "weights": weights}],
        dynamic={"name": "doremi", "reference": "x", "step_size": step_size, "smoothing": smoothing},
    )


# --- the weights ---------------------------------------------------------------------------------------------


def papers_weights(losses, references, step_size: float, smoothing: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Algorithm 1 as it is written, in float64: losses[t][i] are the token-level losses of domain i at step t."""
    k = len(losses[0])
    alpha, alphas = np.ones(k) / k, []
    for proxy, reference in zip(losses, references, strict=True):
        excess = np.array([np.maximum(p - r, 0).sum() / len(p) for p, r in zip(proxy, reference, strict=True)])
        alpha = alpha * np.exp(step_size * excess)
        alpha = (1 - smoothing) * alpha / alpha.sum() + smoothing / k
        alphas.append(alpha)
    return alphas, np.mean(alphas, axis=0)


@pytest.mark.parametrize(("step_size", "smoothing"), [(1.0, 1e-3), (0.1, 0.05), (50.0, 1e-3), (1.0, 0.0), (1.0, 1.0)])
def test_weights_are_those_of_the_algorithm(step_size: float, smoothing: float) -> None:
    random, data = np.random.default_rng(0), data_config(dict.fromkeys("abcd", 1.0), step_size, smoothing)
    lengths = random.integers(1, 9, (60, 4))
    losses, references = (
        [[random.exponential(0.3 + 0.01 * i, n) for i, n in enumerate(row)] for row in lengths] for _ in range(2)
    )
    wanted, mean = papers_weights(losses, references, step_size, smoothing)
    domains, update = doremi.start(data), jax.jit(lambda *arguments: doremi.updated(*arguments, data))
    for step, alpha in enumerate(wanted):
        pairs = zip(losses[step], references[step], strict=True)
        excess = np.float32([np.maximum(p - r, 0).sum() for p, r in pairs])
        domains = update(domains, excess, np.float32(lengths[step]))
        np.testing.assert_allclose(domains.weights, alpha, rtol=2e-4, atol=1e-30)
    np.testing.assert_allclose(doremi.mean_weights(domains), mean, rtol=1e-5)
    assert int(domains.steps) == 60


def test_absent_source_keeps_its_share_but_for_the_smoothing() -> None:
    data = data_config({"a": 1, "b": 1, "c": 1, "unused": 0}, smoothing=0.0)
    domains = doremi.start(data)._replace(weights=jnp.float32([0.2, 0.3, 0.5, 0]))
    after = doremi.updated(domains, jnp.float32([2, 0, 1, 0]), jnp.float32([2, 0, 2, 0]), data).weights
    growth = np.exp([1, 0.5])
    wanted = 0.7 * np.array([0.2, 0.5]) * growth / (np.array([0.2, 0.5]) @ growth)
    np.testing.assert_allclose(after, [wanted[0], 0.3, wanted[1], 0], rtol=1e-6)
    nothing = doremi.updated(domains, jnp.zeros(4), jnp.zeros(4), data).weights
    np.testing.assert_allclose(nothing, domains.weights, rtol=1e-6)
    smoothed = doremi.updated(domains, jnp.zeros(4), jnp.zeros(4), data_config({"a": 1, "b": 1, "c": 1, "unused": 0}))
    np.testing.assert_allclose(smoothed.weights, 0.999 * domains.weights + np.float32([1e-3 / 3] * 3 + [0]), rtol=1e-6)


def test_mean_over_many_steps_is_exact() -> None:
    """A sum in float32 is off by 7e-4 here, a running mean by 1e-4."""
    steps, data = 300_000, data_config({"a": 1, "b": 1})

    def excess(step):
        return jnp.stack([jnp.where(step < steps // 2, 0.5, 0.0) + 1e-3 * (step % 7), 0.25]).astype(jnp.float32)

    @jax.jit
    def run(domains):
        def one(domains, step):
            domains = doremi.updated(domains, excess(step), jnp.ones(2), data)
            return domains, domains.weights

        return jax.lax.scan(one, domains, jnp.arange(steps))

    domains, weights = run(doremi.start(data))
    mean = np.mean(np.asarray(weights, np.float64), axis=0)
    np.testing.assert_allclose(doremi.mean_weights(domains), mean, rtol=3e-7)
    assert 0.2 < mean[0] < 0.8


# --- the objective -------------------------------------------------------------------------------------------

MOE = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 16, "aux_weight": 0.02}


def proxy_config(reference: Path, sections: dict) -> Config:
    values = {
        "model": {"num_layers": 4, "num_heads": 8, "num_kv_heads": 4, "embed_dim": 32, "logit_softcap": 0.3},
        "mesh": {"fsdp": 1},
        "optimizer": {"eps": 1e-5, "clip_norm": None, "b1": B1},
        "loss": {"z_loss": 1e-3, "chunk": 5},
        "train": {"batch_tokens": 256},
        "data": {
            "sources": {name: {"path": name} for name in SOURCES},
            "mixture": [{"tokens": 25600, "weights": dict.fromkeys(SOURCES, 1)}],
            "dynamic": {"name": "doremi", "reference": str(reference), "step_size": 3.0, "smoothing": 0.01},
        },
    }
    for name, changes in sections.items():
        values[name] = values.get(name, {}) | changes
    return run_config(**values)


def save_reference(directory: Path, trainer: Trainer) -> Path:
    run = {"config": trainer.config.model_dump(mode="json"), "manifests": {}, "tokenizer": {}, "step": 1}
    with Checkpoints(directory, trainer.config.checkpoint) as checkpoints:
        axes, state = parameter_axes(trainer.plan), trainer.state
        checkpoints.save(1, state.params, axes, state.optimizer, state.counters, run)
    return directory


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, Path]:
    """Two references of other sizes than the proxies; large parameters, so that their losses differ from ln(64)."""
    sizes = {
        "dense": {"num_layers": 4, "embed_dim": 24, "tie_embeddings": True, "init_std": 0.3, "logit_softcap": 4.0},
        "experts": {"moe": MOE},
    }
    found = {}
    for name, model in sizes.items():
        config = run_config(model=model, mesh={"fsdp": 1}).model_copy(update={"seed": 3})
        found[name] = save_reference(tmp_path_factory.mktemp(name), Trainer(config, jax.devices()[:1]))
    return found


@cache
def trainer_of(config_json: str, one_device: bool) -> Trainer:
    return Trainer(Config.model_validate_json(config_json), jax.devices()[:1] if one_device else None)


def fresh(config: Config, one_device: bool = True, weights: Sequence[float] | None = None) -> Trainer:
    """A trainer before its first step, compiled once for all tests; with other domain weights than equal ones."""
    trainer = trainer_of(config.model_dump_json(), one_device)
    trainer.state = initial_state(trainer.plan)
    if weights:
        placed = jax.device_put(np.float32(weights), trainer.plan.shardings.domains.weights)
        trainer.state = trainer.state._replace(domains=trainer.state.domains._replace(weights=placed))
    return trainer


class Outcome:
    """Gradients of the first step, and what three steps leave behind."""

    def __init__(self, config: Config, one_device: bool):
        trainer = fresh(config, one_device, WEIGHTS)
        for seed in range(3):
            metrics = trainer.run(make_batch(config, seed, sources=len(SOURCES)), 3e-3)
            if not seed:
                self.loss, self.domains = float(metrics["loss"]), metrics["domains"]
                self.gradients = [np.asarray(mu) / (1 - B1) for mu in canonical_moments(trainer)]
        self.total, self.excess = metrics["domains"].total, metrics["sums"].excess
        self.params = jax.tree.leaves(jax.device_get(to_canonical(trainer.state, trainer.plan).params))


def canonical_moments(trainer: Trainer) -> list[jax.Array]:
    return jax.tree.leaves(to_canonical(trainer.state, trainer.plan).optimizer[0].mu)


def explicit(config: Config) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Of the first batch: gradients of the sum of weight x mean loss, excess losses per source, and the plain loss."""
    batch, trainer = make_batch(config, 0, sources=len(SOURCES)), fresh(config)
    masks = [batch["weights"] * (batch["sources"] == source)[:, None] for source in range(len(SOURCES))]

    def token_losses(params, plan):
        logits = nnx.merge(plan.graphdef, params)(batch["tokens"], batch["segment_ids"], batch["positions"])
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
        return nll, jax.nn.logsumexp(logits, -1)

    def objective(params):
        nll, log_partition = token_losses(params, trainer.plan)
        regularised = nll + config.loss.z_loss * log_partition**2
        return sum(w * jnp.sum(regularised * mask) / jnp.sum(mask) for w, mask in zip(WEIGHTS, masks, strict=True))

    gradients = jax.jit(jax.grad(objective))(trainer.state.params)
    nll = token_losses(trainer.state.params, trainer.plan)[0]
    above = np.maximum(nll - token_losses(trainer.reference[0], trainer.plan.reference)[0], 0)
    excess = np.array([np.sum(above * mask) / np.sum(mask) for mask in masks])
    return jax.tree.leaves(gradients), excess, float(np.sum(nll * batch["weights"]) / batch["weights"].sum())


@pytest.fixture(scope="module")
def one_device(references) -> tuple[tuple, Outcome]:
    config = proxy_config(references["dense"], {})
    return explicit(config), Outcome(config, one_device=True)


def test_step_is_that_of_the_weighed_objective(one_device) -> None:
    (gradients, excess, loss), found = one_device
    assert distance(gradients, found.gradients) < 1e-5
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    grown = np.array(WEIGHTS) * np.exp(3.0 * excess)
    np.testing.assert_allclose(found.domains.weights, 0.99 * grown / grown.sum() + 0.01 / 3, rtol=1e-5)
    assert np.ptp(excess) > 0.01 and abs(found.domains.weights - WEIGHTS).max() > 0.01


CASES = {
    "accumulate2": {"train": {"accumulate": 2}},
    "fsdp2-context2-tensor2": {"mesh": {"fsdp": 2, "context": 2, "tensor": 2}},
    "pipeline2-fsdp4-vocabulary-accumulate2": {
        "mesh": {"pipeline": 2, "fsdp": 4},
        "pipeline": {"microbatches": 2, "repeats": 2},
        "loss": {"split": "vocabulary", "block": 24},
        "train": {"accumulate": 2},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_neither_mesh_nor_accumulation_changes_weights_or_gradients(references, one_device, case: str) -> None:
    found = Outcome(proxy_config(references["dense"], CASES[case]), one_device="mesh" not in CASES[case])
    assert distance(one_device[0][0], found.gradients) < 1e-5
    assert_alike(one_device[1], found)


def test_experts_in_proxy_and_reference(references) -> None:
    model = {"model": {"moe": MOE, "num_layers": 2}}
    mesh = {"mesh": {"expert": 2, "fsdp": 2, "tensor": 2}}
    one = Outcome(proxy_config(references["experts"], model), one_device=True)
    found = Outcome(proxy_config(references["experts"], model | mesh), one_device=False)
    assert distance(one.gradients, found.gradients) < 1e-5
    assert_alike(one, found)


def assert_alike(one: Outcome, other: Outcome) -> None:
    np.testing.assert_allclose(other.loss, one.loss, rtol=1e-5)
    np.testing.assert_allclose(other.domains.weights, one.domains.weights, rtol=1e-5)
    np.testing.assert_allclose(other.total, one.total, rtol=1e-5)
    np.testing.assert_allclose(other.excess, one.excess, rtol=1e-5)
    assert distance(one.params, other.params) < 1e-5


def test_one_source_is_an_ordinary_run_to_the_bit(references) -> None:
    changes = {"sources": {"a": {"path": "a"}}, "mixture": [{"tokens": 25600, "weights": {"a": 1}}]}
    proxy = proxy_config(references["dense"], {"data": changes})
    ordinary = proxy_config(references["dense"], {"data": changes | {"dynamic": None}})
    states = []
    for config in (proxy, ordinary):
        trainer = fresh(config)
        losses = [trainer.run(make_batch(config, seed, sources=1))["loss"] for seed in range(3)]
        states.append((losses, params_of(trainer.state), trainer.state))
    np.testing.assert_allclose(states[0][0], states[1][0], rtol=1e-6)  # summed per row in another order
    assert all(a.tobytes() == b.tobytes() for a, b in zip(states[0][1], states[1][1], strict=True))
    assert states[1][2].domains is None and len(states[1][2].counters) == 2 and states[1][2].sums.excess is None


def test_skipped_step_leaves_the_weights(references) -> None:
    trainer = fresh(config := proxy_config(references["dense"], CASES["accumulate2"]))
    trainer.run(make_batch(config, 0, sources=len(SOURCES)))
    before = [np.array(leaf) for leaf in (*trainer.state.domains, trainer.state.sums.excess)]
    bad = make_batch(config, 1, sources=len(SOURCES))
    bad["weights"][1, 2] = np.nan
    assert int(trainer.run(bad)["skipped_in_row"]) == 1
    after = [np.array(leaf) for leaf in (*trainer.state.domains, trainer.state.sums.excess)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))
    assert int(trainer.run(make_batch(config, 2, sources=len(SOURCES)))["domains"].steps) == 2


def test_reference_has_the_type_of_the_computation_and_the_shards_of_the_mesh(references) -> None:
    sections = {"precision": {"compute": "bfloat16"}, "mesh": {"fsdp": 4, "tensor": 2}}
    (params,) = Trainer(proxy_config(references["dense"], sections)).reference
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    table = params["embedding"]
    assert table.shape == (64, 24) and table.addressable_shards[0].data.shape == (32, 6)


def test_reference_that_cannot_run_so_is_refused(references) -> None:
    """Its four heads do not divide over eight devices."""
    with pytest.raises(ConfigError, match=r"data\.dynamic\.reference .* configuration: model\.num_heads: 4 is not"):
        Trainer(proxy_config(references["dense"], {"mesh": {"tensor": 8}}))


# --- where the weights go ------------------------------------------------------------------------------------

GROUPS = ("chain", "words", "copy", "noise")
RANGE = 16  # tokens of each source


def texts(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Rows of four sources, each with tokens of its own: a Markov chain, words of three tokens, a text that repeats its
    first four tokens, and tokens at random."""
    random, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    odds, words = fixed.dirichlet(np.full(RANGE, 0.2), RANGE).cumsum(1), fixed.integers(0, RANGE, (40, 3))
    rows, length = config.batch_size // len(GROUPS), config.data.seq_len + 1
    found = np.zeros((len(GROUPS), rows, length), np.int32)
    draws = random.random((length, rows))
    for place in range(1, length):
        found[0, :, place] = np.minimum((draws[place, :, None] > odds[found[0, :, place - 1]]).sum(1), RANGE - 1)
    found[1] = words[random.integers(40, size=(rows, length))].reshape(rows, -1)[:, :length]
    found[2] = np.tile(random.integers(0, RANGE, (rows, 4)), length)[:, :length]
    found[3] = random.integers(0, RANGE, (rows, length))
    tokens = (found + RANGE * np.arange(len(GROUPS))[:, None, None]).reshape(-1, length).astype(np.int32)
    shape = (len(tokens), length - 1)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    ones = {"segment_ids": np.ones(shape, np.int32), "weights": np.ones(shape, np.float32)}
    sources = np.repeat(np.arange(len(GROUPS), dtype=np.int32), rows)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": positions, "sources": sources} | ones


def test_random_tokens_are_driven_to_the_floor(tmp_path) -> None:
    """Of them there is nothing to learn but their range, so the smaller and younger proxy does as well on them as the
    reference: the weights go to what the reference does better."""
    weights = dict.fromkeys(GROUPS, 1)
    data = {"sources": {name: {"path": name} for name in GROUPS}, "mixture": [{"tokens": 1, "weights": weights}]}
    model, common = {"embed_dim": 32}, {"mesh": {"fsdp": 1}, "train": {"batch_tokens": 512}}
    teacher = Trainer(run_config(model=model, data=data, **common), jax.devices()[:1])
    for seed in range(600):
        teacher.run(texts(teacher.config, seed))
    path = str(save_reference(tmp_path / "reference", teacher))
    data |= {"dynamic": {"name": "doremi", "reference": path, "step_size": 3.0, "smoothing": 0.01}}
    proxy = Trainer(run_config(model=model | {"num_layers": 1}, data=data, **common), jax.devices()[:1])
    trajectory, excess = [], []
    for seed in range(300):
        metrics = proxy.run(texts(proxy.config, 10_000 + seed))
        trajectory.append(metrics["domains"].weights)
        excess.append(metrics["sums"].excess / metrics["sums"].targets * (seed + 1))
    last = (excess[-1] - excess[-101]) / 100  # mean per target of the last hundred steps
    assert last.argmin() == 3 and last[3] < 0.2 and last[1:3].min() > 0.5
    noise, floor = np.array(trajectory)[:, 3], 0.01 / len(GROUPS)
    assert noise.min() >= floor * (1 - 1e-6) and np.median(noise[30:]) < 1.5 * floor
    mean = doremi.mean_weights(metrics["domains"])
    assert mean.argmin() == 3 and mean[3] < 0.02 and mean[1:3].sum() > 0.9
