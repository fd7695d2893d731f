"""One optimizer step on the families' models is that of torch: gradients, and the loss before and after."""

from collections.abc import Callable
from typing import NamedTuple

import hashed
import jax
import numpy as np
import pytest
from golden_folders import GOLDEN, MODELS, golden, one_device, write_folder
from golden_inputs import RATES, training_tokens
from tiny import run_config

from maxlm.config import ModelConfig
from maxlm.convert.families import links
from maxlm.evaluate.load import load_all
from maxlm.parallel.batch import place
from maxlm.train import faults
from maxlm.train.state import Blueprint, TrainState, blueprint
from maxlm.train.step import compile_step

STEPS = [name for name in MODELS if (GOLDEN / name / "step.npz").exists()]
TOLERANCE = 3e-5  # 1e-5 is seen


class Case(NamedTuple):
    family: str
    plan: Blueprint
    step: Callable
    initial: TrainState  # with the parameters as imported, on the host
    expected: dict[str, np.ndarray]  # of torch


def without_balance(model: ModelConfig) -> ModelConfig:
    """Nothing but the cross-entropy has a gradient, and the balance bias stays where it is."""
    if model.moe is None:
        return model
    moe = {"aux_weight": 0, "bias_rate": 1e-30}
    return ModelConfig.model_validate(model.model_dump() | {"moe": model.moe.model_dump() | moe})


@pytest.fixture(params=STEPS, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = write_folder(request.param, tmp_path_factory.mktemp("steps") / request.param)
    loaded = load_all(folder, mesh=one_device())
    rows, targets = training_tokens(loaded.model.vocab_size)[:, 1:].shape
    config = run_config(
        model=without_balance(loaded.model).model_dump(),
        data={"seq_len": targets, "mixture": [{"tokens": 100 * rows * targets, "weights": {"web": 1}}]},
        train={"batch_tokens": rows * targets},
        loss={"chunk": 10},  # does not divide the length
        remat={"policy": "full"},
        optimizer={"clip_norm": None, "weight_decay": 0.1, "b1": 0.9, "b2": 0.95, "eps": 1e-8},
    )
    plan = blueprint(config, one_device(), num_sources=1)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), plan.abstract)
    initial = zeros._replace(params=loaded.params, window=faults.empty_window(config.faults))
    with np.load(GOLDEN / request.param / "step.npz") as expected:
        family = golden(request.param).config["model_type"]
        return Case(family, plan, compile_step(plan), jax.device_get(initial), dict(expected))


def run(case: Case, params: dict, rate: float) -> tuple[TrainState, float]:
    """One AdamW step from these parameters, with fresh moments: what comes of it, and the loss before it."""
    rows = training_tokens(case.plan.config.model.vocab_size)
    whole = np.ones_like(rows[:, 1:])
    batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "segment_ids": whole, "weights": whole.astype(np.float32)}
    batch |= {"positions": np.cumsum(whole, 1, dtype=np.int32) - 1, "sources": np.zeros(len(rows), np.int32)}
    with jax.set_mesh(case.plan.mesh):
        placed = place(batch, range(len(rows)), len(rows), case.plan.mesh)
        state = jax.device_put(case.initial._replace(params=params), case.plan.shardings)
        state, metrics = case.step(state, placed, np.float32(rate))
    return jax.device_get(state), float(metrics["loss"])


def test_a_step_is_that_of_torch(case: Case, record_property) -> None:
    state, before = run(case, case.initial.params, RATES["adamw"])
    # After one step the first moment is what the gradient leaves of an empty one.
    gradients = jax.tree.map(lambda moment: moment / (1 - case.plan.config.optimizer.b1), state.optimizer[0].mu)
    errors = gradient_errors(as_theirs(case, gradients), case.expected)
    record_property("gradients", max(errors.values()))
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
    assert not wrong, wrong
    descended = jax.tree.map(lambda value, gradient: value - RATES["sgd"] * gradient, case.initial.params, gradients)
    _, after_sgd = run(case, descended, RATES["adamw"])
    _, after_adamw = run(case, state.params, RATES["adamw"])
    losses = np.array([before, after_sgd, after_adamw])
    record_property("losses", float(np.max(np.abs(losses / case.expected["losses"] - 1))))
    np.testing.assert_allclose(losses, case.expected["losses"], rtol=1e-5)


def as_theirs(case: Case, tree: dict) -> dict[str, np.ndarray]:
    """Arrays in the shape of the parameters under the names and in the shapes of a Hugging Face file."""

    def slice_of(place) -> np.ndarray:
        node = tree
        for key in place.path:
            node = node[key] if key in node else node[int(key)]
        return np.asarray(node[place.index])

    every = links(case.family, case.plan.config.model)
    return {link.theirs: link.join([slice_of(place) for place in link.ours]) for link in every}


def gradient_errors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Per tensor the difference of its gradient's norm, and of its products with two directions, relative to the norm.

    A product with a direction of variance 1 per entry is about as large as the norm, and so is that of an error. An
    expert that no token chose has a gradient of zero on both sides; so have, here, the buffers that torch trains not.
    """
    errors = {name: float(np.any(gradient)) for name, gradient in found.items()}
    for name, norm, products in zip(map(str, expected["names"]), expected["norms"], expected["products"], strict=True):
        gradient = found[name].astype(np.float64)
        own = [np.sum(gradient * hashed.direction(number, name, gradient.shape)) for number in range(2)]
        if norm:
            errors[name] = float(np.max(np.abs([np.linalg.norm(gradient) - norm, *(own - products)])) / norm)
    return errors
