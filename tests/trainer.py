"""A step on some devices, and batches for it that hold everything a batch can hold."""

import jax
import numpy as np

from maxlm.config import Config
from maxlm.parallel.batch import place
from maxlm.parallel.mesh import build_mesh, check_batch
from maxlm.saved import find
from maxlm.train.reference import Reference
from maxlm.train.state import TrainState, blueprint, initial_state
from maxlm.train.step import compile_step

SOURCES = 2


def make_batch(config: Config, seed: int, rows: int | None = None, sources: int = SOURCES) -> dict[str, np.ndarray]:
    """Random tokens in documents of random lengths, with uneven numbers of targets per row."""
    random = np.random.default_rng(seed)
    size = (rows or config.batch_size, config.data.seq_len)
    tokens = random.integers(0, config.model.vocab_size, (size[0], size[1] + 1)).astype(np.int32)
    starts = random.random(size) < 0.15
    starts[:, 0] = True
    position = np.arange(size[1]) - np.maximum.accumulate(np.where(starts, np.arange(size[1]), 0), axis=1)
    weights = (random.random(size) < random.random((size[0], 1))).astype(np.float32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.cumsum(starts, axis=1).astype(np.int32),
        "positions": position.astype(np.int32),
        "weights": weights,
        "sources": random.integers(0, sources, size[0]).astype(np.int32),
    }


class Trainer:
    """A compiled step on some devices."""

    def __init__(self, config: Config, devices=None):
        self.config = config
        self.mesh = build_mesh(config.mesh, devices)
        check_batch(config, self.mesh)
        self.plan = blueprint(config, self.mesh, max(SOURCES, len(config.data.sources)))
        self.state = initial_state(self.plan)
        self.step = compile_step(self.plan)
        self.reference = ()
        if self.plan.reference is not None:
            found = Reference(find(config.data.dynamic.reference).directory, {})
            self.reference = (found.parameters(self.plan),)

    def run(self, batch: dict[str, np.ndarray], rate: float = 1e-2) -> dict:
        size = len(batch["tokens"])
        with jax.set_mesh(self.mesh):
            placed = place(batch, range(size), size, self.mesh)
            self.state, metrics = self.step(self.state, placed, np.float32(rate), *self.reference)
        return jax.device_get(metrics)


def params_of(state: TrainState) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]


def distance(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Norm of the difference over the norm."""
    difference = sum(float(np.sum((a - b) ** 2)) for a, b in zip(left, right, strict=True))
    return (difference / sum(float(np.sum(a**2)) for a in left)) ** 0.5
