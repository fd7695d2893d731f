"""Finding the mesh: estimate every candidate, compile the best, and choose by the compiled programs.

Thousands of layouts are legal and all are estimated, a millisecond each. Those that cannot fit go; the rest stand in
the order of their predicted time. The first few are compiled in processes side by side, as many as memory allows, and
scored by the same roofline with what the programs really compute and send.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from maxlm.config import Config
from maxlm.errors import DoesNotFitError
from maxlm.parallel.hardware import System
from maxlm.plan.measured import Measured, TooLarge, measure
from maxlm.plan.roofline import Prediction, predict
from maxlm.plan.space import Within, candidates, needed_bytes
from maxlm.plan.stages import Shape, laid_out, main_shape

GIB = 2**30
# The estimate errs; what it puts a little above the memory may fit.
MARGIN = 1.05
# Host memory of one compile: 1.8 GiB for Llama 3 405B, 5.6 for Gemma 3 27B, of which more layers are unrolled.
COMPILE_BYTES = 8 * GIB


@dataclass(frozen=True)
class Candidate:
    """A layout with its estimates, and what compiling it has shown."""

    config: Config
    shape: Shape  # of the steps that are predicted, compiled and scored: those with most of the run's slots
    memory_gib: float  # of the steps that need the most
    predicted: Prediction
    measured: Measured | TooLarge | None = None
    scored: Prediction | None = None  # with the compiled program's work

    @property
    def key(self) -> str:
        """Of candidates of one search."""
        return lines_to_paste(self.config)

    @property
    def fits(self) -> bool:
        return self.scored is not None

    @property
    def peak_gib(self) -> float | None:
        """By the compiler."""
        found = self.measured
        return found.needs_gib if isinstance(found, TooLarge) else found and found.peak_gib

    def to_json(self) -> dict[str, Any]:
        """Its keys, and what was estimated and found."""
        return varied(self.config) | {
            "estimated_gib": self.memory_gib,
            "predicted_seconds": self.predicted.step_seconds,
            "peak_gib": self.peak_gib,
            "scored_seconds": self.scored.step_seconds if self.scored else None,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Search:
    """All that were compiled, the fastest that fits first, and how many there were to choose from."""

    compiled: list[Candidate]
    legal: int
    pruned: int  # that cannot fit by the estimate

    @property
    def best(self) -> Candidate:
        return self.compiled[0]


def estimated(
    config: Config, system: System, within: Within | None = None, margin: float = MARGIN
) -> tuple[list[Candidate], int]:
    """Candidates whose estimate is within `margin` times the memory, the fastest first, and how many are legal."""
    found, legal = [], 0
    shape = main_shape(laid_out(config).steps_by_shape)
    for variant in candidates(config, system, within):
        legal += 1
        needed = needed_bytes(variant, system)
        if needed <= margin * system.chip.hbm_bytes:
            predicted = predict(variant.with_shape(*shape), system)
            found.append(Candidate(variant, shape, needed / GIB, predicted))
    # Of equal times the one that needs less memory.
    return sorted(found, key=lambda candidate: (candidate.predicted.step_seconds, candidate.memory_gib)), legal


def search(config: Config, system: System, within: Within | None = None, compiles: int = 6, progress=None) -> Search:
    """The fastest layouts that fit; raises `DoesNotFitError` where none does.

    `compiles` candidates are compiled at first, then one batch after the other until one fits. `progress` wraps
    the iterator over those that are ready and is told their number.
    """
    ordered, legal = estimated(config, system, within)
    compiled: list[Candidate] = []
    for start in range(0, len(ordered), compiles):
        chosen = ordered[start : start + compiles]
        ready = compile_all(chosen, system)
        compiled += progress(ready, len(chosen)) if progress else ready
        if any(candidate.fits for candidate in compiled):
            ranked = sorted(compiled, key=_by_score)
            return Search(ranked, legal, legal - len(ordered))
    raise DoesNotFitError(
        f"none of {legal:,} layouts fits {config.name} on {system.name} ({system.chip.hbm_bytes / GIB:.1f} GiB a "
        "device); try more chips, a smaller train.batch_tokens or optimizer.offload=host"
    )


def compile_all(chosen: list[Candidate], system: System) -> Iterator[Candidate]:
    """The candidates with what compiling showed, as they become ready."""
    with ProcessPoolExecutor(workers(), mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(measure, candidate.config.with_shape(*candidate.shape), system): candidate
            for candidate in chosen
        }
        for done in as_completed(waiting):
            yield scored(waiting[done], done.result(), system)


def scored(candidate: Candidate, measured: Measured | TooLarge, system: System) -> Candidate:
    """The candidate with its program's work in the place of the estimated one; no score where it does not fit."""
    score = None
    if isinstance(measured, Measured) and measured.peak_gib * GIB <= system.chip.hbm_bytes:
        # Without work that can be read the estimate remains.
        score = predict(candidate.config.with_shape(*candidate.shape), system, measured.work)
    return replace(candidate, measured=measured, scored=score)


def workers() -> int:
    """Compiles side by side: by cores, and by the memory that is free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, int(free / COMPILE_BYTES)))


def _by_score(candidate: Candidate) -> float:
    return candidate.scored.step_seconds if candidate.scored else float("inf")


def varied(config: Config) -> dict[str, Any]:
    """What tells candidates apart, as sections of a configuration."""
    axes, policy = config.mesh.axes, config.remat.policy
    mesh = {axis: size for axis, size in axes.items() if size > 1 or axis in ("data", "fsdp")}
    schedule = {"microbatches": config.pipeline.microbatches, "repeats": config.pipeline.repeats}
    return {
        "mesh": mesh | ({"slices": config.mesh.slices} if config.mesh.slices > 1 else {}),
        **({"pipeline": schedule} if axes["pipeline"] > 1 else {}),
        "remat": {"policy": policy if isinstance(policy, str) else list(policy)},
        "train": {"batch_tokens": config.train.batch_tokens, "accumulate": config.train.accumulate},
    }


def lines_to_paste(config: Config) -> str:
    """The keys that the search chose, as lines of a run file."""
    return "\n".join(f"{key}: {_flow(value)}" for key, value in varied(config).items())


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    return "[" + ", ".join(value) + "]" if isinstance(value, list) else str(value)
