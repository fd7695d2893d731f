"""Every parallelism gives the losses, gradients and parameters of one device."""

from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import pytest
from families import DEEPSEEK, GEMMA2, GEMMA3, GPT2, OLMO2
from scalings import LONGROPE
from tiny import run_config
from trainer import Trainer, distance, make_batch

from maxlm.config import Config
from maxlm.train.state import to_canonical

STEPS = 10
BATCH = 256
B1 = 0.9
RATE = 3e-3

MODELS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    # A pattern as Gemma's: layers with a window, then one without, one key/value head, normalised queries and keys.
    "pattern": {"num_layers": 12, "window": [5, 5, None], "qk_norm": True, "num_kv_heads": 1, "tie_embeddings": True},
    "deep": {"num_layers": 8},
    "windows": {"window": [5, None]},
    "experts": {
        "moe": {
            "num_experts": 8,
            "experts_per_token": 2,
            "mlp_dim": 16,
            "shared_experts": 1,
            "aux_weight": 0.02,
            "z_weight": 1e-3,
        }
    },
    "biased": {
        "num_layers": 6,
        "moe": {
            "num_experts": 8,
            "experts_per_token": 3,
            "mlp_dim": 16,
            "scores": "sigmoid",
            "scale": 2.5,
            "balance": "bias",
            "bias_rate": 0.01,
            "first_dense": 2,
            "every": 2,
        },
    },
    "gpt2": GPT2 | {"num_kv_heads": 2},
    # Two layers before two blocks. A norm magnifies rounding where what it reads is small: larger parameters.
    "gemma3": GEMMA3 | {"num_layers": 8, "init_std": 0.2},
    # Latents, a dense layer and experts with a bias; widths that divide over eight devices.
    "deepseek": DEEPSEEK
    | {
        "num_layers": 5,
        "num_kv_heads": 8,
        "head_dim": 10,
        "latent": {"query_rank": 16, "kv_rank": 8, "nope_head_dim": 6, "rope_head_dim": 4, "value_head_dim": 5},
    },
    "gemma2": GEMMA2 | {"num_layers": 5, "init_std": 0.2},
    "olmo2": OLMO2 | {"init_std": 0.2},
    # Rotations depend on the length of a document, whose columns several devices have.
    "longrope": {"head_dim": 8, "rope": LONGROPE, "window": [5, None]},
}


def config_of(model: str, mesh: dict, sections: dict) -> Config:
    values = {
        "model": {"num_layers": 4, "num_heads": 8, "num_kv_heads": 4, "embed_dim": 32} | MODELS[model],
        "mesh": {"fsdp": 1} | mesh,
        "optimizer": {"eps": 1e-5, "weight_decay": 0.1, "clip_norm": None, "b1": B1},
        "loss": {"z_loss": 1e-3, "chunk": 5},
        "train": {"batch_tokens": BATCH},
        "remat": {"policy": "full"},
    }
    for name, changes in sections.items():
        values[name] = values.get(name, {}) | changes
    return run_config(**values)


class Outcome(NamedTuple):
    initial: list[np.ndarray]
    gradients: list[np.ndarray]
    losses: list[float]
    params: list[np.ndarray]
    dropped: int
    nll: list[float]  # of each source, nats of all steps
    targets: list[int]


def canonical(trainer: Trainer) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and first moments in the layout of a checkpoint."""
    state = to_canonical(trainer.state, trainer.plan)
    return tuple([np.asarray(leaf) for leaf in jax.tree.leaves(part)] for part in (state.params, state.optimizer[0].mu))


def outcome(config: Config, devices=None) -> Outcome:
    trainer = Trainer(config, devices)
    (initial, _), losses, gradients = canonical(trainer), [], []
    for seed in range(STEPS):
        metrics = trainer.run(make_batch(config, seed), RATE)
        losses.append(float(metrics["loss"]))
        if not seed:  # Adam's first moment is then (1 - b1) times the gradient
            gradients = [moment / (1 - B1) for moment in canonical(trainer)[1]]
    sums = metrics["sums"]
    by_source = sums.nll.tolist(), sums.targets.tolist()
    return Outcome(initial, gradients, losses, canonical(trainer)[0], int(sums.dropped), *by_source)


@cache
def one_device(model: str, batch_tokens: int) -> Outcome:
    return outcome(config_of(model, {}, {"train": {"batch_tokens": batch_tokens}}), jax.devices()[:1])


CASES = {
    "data8": ("plain", {"data": 8}, {}),
    "fsdp8": ("plain", {"fsdp": 8}, {}),
    "tensor8": ("plain", {"tensor": 8}, {}),  # more shards than key/value heads
    "fsdp4-tensor2": ("plain", {"fsdp": 4, "tensor": 2}, {}),
    "fsdp2-tensor4-sequence": ("tied", {"fsdp": 2, "tensor": 4}, {"parallel": {"sequence": True}}),
    "data2-fsdp4-zero1": ("plain", {"data": 2, "fsdp": 4}, {"parallel": {"zero": 1}}),
    # What one device computes in parts of the sequence here is computed in parts of the vocabulary.
    "fsdp4-tensor2-vocabulary": (
        "plain",
        {"fsdp": 4, "tensor": 2},
        {"loss": {"split": "vocabulary", "block": 5}, "remat": {"mlp_chunks": 4}},
    ),
    "data2-fsdp2-context2-vocabulary-zero1": (
        "tied",
        {"data": 2, "fsdp": 2, "context": 2},
        {"loss": {"split": "vocabulary", "block": 24}, "remat": {"mlp_chunks": 2}, "parallel": {"zero": 1}},
    ),
    "fsdp4-tensor2-offload": ("plain", {"fsdp": 4, "tensor": 2}, {"optimizer": {"offload": "host"}}),
    "fsdp4-tensor2-inputs-offload": ("plain", {"fsdp": 4, "tensor": 2}, {"remat": {"policy": "offload"}}),
    "fsdp2-tensor2-pipeline2": ("plain", {"fsdp": 2, "tensor": 2, "pipeline": 2}, {"pipeline": {"microbatches": 4}}),
    "pipeline4-fsdp2-repeats2": (
        "deep",
        {"pipeline": 4, "fsdp": 2},
        {"pipeline": {"microbatches": 8, "repeats": 2}},
    ),
    "pipeline2-data2-tensor2-tied": (
        "tied",
        {"pipeline": 2, "data": 2, "tensor": 2},
        {"pipeline": {"microbatches": 2, "remat_stages": True}, "remat": {"policy": "none"}},
    ),
    "pipeline2-fsdp2-accumulate2": (
        "plain",
        {"pipeline": 2, "fsdp": 2, "data": 2},
        {"pipeline": {"microbatches": 4}, "train": {"accumulate": 2, "batch_tokens": 512}},
    ),
    "pattern-pipeline2-tensor2": (
        "pattern",
        {"pipeline": 2, "tensor": 2, "fsdp": 2},
        {"pipeline": {"microbatches": 4, "repeats": 2}, "parallel": {"sequence": True}},
    ),
    "context4-fsdp2": ("windows", {"context": 4, "fsdp": 2}, {}),
    "context4-fsdp2-ring": ("windows", {"context": 4, "fsdp": 2}, {"parallel": {"context": "ring"}}),
    "context2-pipeline2-tensor2-ring": (
        "windows",
        {"context": 2, "pipeline": 2, "tensor": 2},
        {"parallel": {"context": "ring"}, "pipeline": {"microbatches": 4}},
    ),
    "expert4-fsdp2": ("experts", {"expert": 4, "fsdp": 2}, {"parallel": {"exchange_pieces": 2}}),
    "expert2-tensor2-data2": ("experts", {"expert": 2, "tensor": 2, "data": 2}, {"train": {"accumulate": 2}}),
    "expert2-pipeline2-fsdp2": (
        "experts",
        {"expert": 2, "pipeline": 2, "fsdp": 2},
        {"pipeline": {"microbatches": 2, "repeats": 2}},
    ),
    "expert2-context2-pipeline2-biased": (
        "biased",
        {"expert": 2, "context": 2, "pipeline": 2},
        {"pipeline": {"microbatches": 4}, "parallel": {"context": "ring"}},
    ),
    "context2-tensor4-gpt2": ("gpt2", {"context": 2, "tensor": 4}, {"parallel": {"sequence": True}}),
    "pipeline2-tensor2-fsdp2-gemma3": (
        "gemma3",
        {"pipeline": 2, "tensor": 2, "fsdp": 2},
        {"pipeline": {"microbatches": 4}},
    ),
    "tensor4-fsdp2-gemma2": ("gemma2", {"tensor": 4, "fsdp": 2}, {}),
    "context2-tensor2-fsdp2-vocabulary-gemma2": (
        "gemma2",
        {"context": 2, "tensor": 2, "fsdp": 2},
        {"loss": {"split": "vocabulary", "block": 12}, "parallel": {"context": "ring"}},
    ),
    "context2-pipeline2-fsdp2-longrope": (
        "longrope",
        {"context": 2, "pipeline": 2, "fsdp": 2},
        {"pipeline": {"microbatches": 2}},
    ),
    "context4-tensor2-longrope": ("longrope", {"context": 4, "tensor": 2}, {"parallel": {"context": "ring"}}),
    "tensor4-fsdp2-olmo2": ("olmo2", {"tensor": 4, "fsdp": 2}, {"parallel": {"zero": 1}}),
    "fsdp2-tensor2-expert2-deepseek": (
        "deepseek",
        {"fsdp": 2, "tensor": 2, "expert": 2},
        {"parallel": {"sequence": True}},
    ),
    "pipeline2-context2-tensor2-deepseek": (
        "deepseek",
        {"pipeline": 2, "context": 2, "tensor": 2},
        {"parallel": {"context": "ring"}, "pipeline": {"microbatches": 4}},
    ),
    "context2-fsdp4-deepseek": ("deepseek", {"context": 2, "fsdp": 4}, {"remat": {"policy": ["latent", "key"]}}),
    "context2-tensor2-fsdp2": ("windows", {"context": 2, "tensor": 2, "fsdp": 2}, {"parallel": {"sequence": True}}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mesh_gives_what_one_device_gives(case: str) -> None:
    assert_equals_one_device(*CASES[case])


def assert_equals_one_device(model: str, mesh: dict, sections: dict) -> None:
    """Initial parameters to the bit and targets of every source exactly; gradients, losses of ten steps, the loss of
    every source and final parameters within 1e-5."""
    found = outcome(config_of(model, mesh, sections))
    wanted = one_device(model, sections.get("train", {}).get("batch_tokens", BATCH))
    for one, other in zip(found.initial, wanted.initial, strict=True):
        np.testing.assert_array_equal(one, other)
    assert distance(found.gradients, wanted.gradients) < 1e-5
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-5)
    assert distance(found.params, wanted.params) < 1e-5
    assert found.dropped == wanted.dropped == 0
    assert found.targets == wanted.targets and all(wanted.targets)
    np.testing.assert_allclose(found.nll, wanted.nll, rtol=1e-5)
