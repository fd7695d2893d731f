"""Steps of the real train step on synthetic text, timed: what the benchmarks of training share.

No data need exist. Tokens are random, documents have geometric lengths, and rows are cut from them and packed by the
code that packs a run's (maxlm/data/packing.py), all from the configuration's seed.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maxlm.config import Config
from maxlm.data import packing
from maxlm.data.packing import Batch
from maxlm.errors import DoesNotFitError
from maxlm.model.counts import flops_per_token
from maxlm.model.kernels import chosen
from maxlm.parallel.agreement import everywhere
from maxlm.parallel.batch import addressed_rows, place
from maxlm.parallel.compiler import refused_options
from maxlm.parallel.mesh import build_mesh, check_batch
from maxlm.plan.compile import CompiledStep
from maxlm.train.schedule import learning_rate
from maxlm.train.state import abstract_inputs, blueprint, initial_state
from maxlm.train.step import compile_step

DISTINCT_BATCHES = 4  # of which the steps take turns
GIB = 2**30
ON_CORE = ("Shared memory", "shared memory", "memory space vmem", "memory space smem")  # as XLA names it in errors


class SyntheticText:
    """A source of random tokens, read as shards of a prepared one are (`maxlm.data.shards.Shards`)."""

    def __init__(self, num_tokens: int, vocab_size: int, document_tokens: int, seed: int):
        random = np.random.default_rng(seed)
        self._tokens = random.integers(0, vocab_size, num_tokens, np.int32)
        self._ends = np.flatnonzero(random.random(num_tokens) < 1 / document_tokens) + 1

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._tokens[start:stop]

    def ends(self, start: int, stop: int) -> np.ndarray:
        low, high = self._ends.searchsorted([start, stop], "right")
        return self._ends[low:high]


def synthetic_batches(config: Config, document_tokens: int, rows: Sequence[int]) -> list[Batch]:
    """The given rows of every distinct batch, with the arrays that `maxlm.data.loader.Batches` gives."""
    data, size = config.data, config.batch_size
    num_tokens = DISTINCT_BATCHES * size * data.seq_len + 1
    text = SyntheticText(num_tokens, config.model.vocab_size, document_tokens, config.seed)
    sources = np.asarray(rows, np.int32) % len(data.sources)

    def read(window: int) -> packing.Text:
        first, last = window * data.seq_len, (window + 1) * data.seq_len
        return packing.Text(text.read(first, last + 1), text.ends(first, last) - first)

    batches = [[read(number * size + row) for row in rows] for number in range(DISTINCT_BATCHES)]
    return [packing.assemble(texts, data.seq_len, data.mask_documents) | {"sources": sources} for texts in batches]


class TimedSteps:
    """The step of a configuration, compiled, with its state; `run` makes steps and times them.

    Raises `ConfigError` where sizes do not divide, and `DoesNotFitError`, as do its methods.
    """

    def __init__(self, config: Config, document_tokens: int):
        self.config, self.mesh = config, build_mesh(config.mesh)
        check_batch(config, self.mesh)
        self.plan = blueprint(config, self.mesh, len(config.data.sources))
        self._rows = addressed_rows(config.batch_size, self.mesh)
        self._batches = cycle(synthetic_batches(config, document_tokens, self._rows))
        self._tokens = 0
        self._metrics: dict[str, Any] = {}
        began = time.perf_counter()
        with _memory_named():
            with jax.set_mesh(self.mesh), refused_options():
                self._step = compile_step(self.plan).lower(*abstract_inputs(self.plan)).compile()
            self.compile_seconds = time.perf_counter() - began
            self._state = jax.block_until_ready(initial_state(self.plan))
            # What a reference has learnt changes no time.
            reference = self.plan.reference
            self._reference = () if reference is None else (initial_state(reference).params,)

    def run(self, steps: int) -> Iterator[float]:
        """Make so many steps as a run makes them, and yield the seconds between the end of one and the next.

        The host places a batch and starts the next step before it waits for the one before. The first figure counts
        from the first start.
        """
        with _memory_named():
            mark, running = time.perf_counter(), None
            for _ in range(steps):
                started = self._start()
                if running is not None:
                    mark, seconds = _finished(running, mark)
                    yield seconds
                running = started
            yield _finished(running, mark)[1]

    def _start(self) -> jax.Array:
        config = self.config
        batch = place(next(self._batches), self._rows, config.batch_size, self.mesh)
        self._tokens = min(self._tokens + config.train.batch_tokens, config.total_tokens)
        rate = learning_rate(config.schedule, config.optimizer.lr, self._tokens, config.total_tokens)
        rate = everywhere(np.asarray(rate, np.float32), NamedSharding(self.mesh, PartitionSpec()))
        self._state, self._metrics = self._step(self._state, batch, rate, *self._reference)
        return self._metrics["loss"]

    def facts(self) -> dict[str, Any]:
        """What ran, what the compiler says of its memory per chip, and the last step's loss; of the steps so far,
        `skipped` made no update, which is less work."""
        config, device = self.config, self.mesh.devices.flat[0]
        values = jax.device_get({"loss": self._metrics["loss"], "skipped": self._metrics["sums"].skipped})
        return {
            "platform": device.platform,
            "device_kind": device.device_kind,
            "devices": self.mesh.size,
            "mesh": dict(self.mesh.shape),
            "compute": str(self.plan.dtype),
            "attention": chosen(config, dict(self.mesh.shape), device.platform, str(self.plan.dtype)),
            "flops_per_token": flops_per_token(config.model, config.data.seq_len),
            "compile_seconds": self.compile_seconds,
            "compiler_gib": self._compiler_gib(),
            "loss": float(values["loss"]),
            "skipped": int(values["skipped"]),
        }

    def _compiler_gib(self) -> dict[str, float] | None:
        if self._step.memory_analysis() is None:  # a platform may have none
            return None
        return {name: size / GIB for name, size in CompiledStep(self.plan, self._step).memory().items()}


def peak_gib() -> float | None:
    """The most memory that this process has held on any of its devices, GiB; None where they do not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return None if None in peaks else max(peaks) / GIB


def _finished(running: jax.Array, mark: float) -> tuple[float, float]:
    jax.block_until_ready(running)
    now = time.perf_counter()
    return now, now - mark


@contextmanager
def _memory_named() -> Iterator[None]:
    """Turn XLA's error about memory into one that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # The memory inside a core is a kernel's matter: neither remat nor a smaller batch helps.
        if "RESOURCE_EXHAUSTED" not in str(error) or any(name in str(error) for name in ON_CORE):
            raise
        reason = str(error).partition("\n")[0][:200]
        advice = "remat.policy=full, a larger train.accumulate or a smaller train.batch_tokens take less"
        raise DoesNotFitError(f"out of memory: {reason}; {advice}") from None
