"""One run directory as a report reads it: lines, configuration, and the figures that sum it up."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from maxlm.errors import DataError
from maxlm.report import evaluations
from maxlm.report.metrics import EVAL, EVENTS, METRICS, read_lines

ENDINGS = {"finished": "finished", "preempted": "preempted", "diverged": "diverged"}


@dataclass(frozen=True)
class Run:
    path: Path
    label: str
    config_text: str
    lines: list[dict[str, Any]]  # ascending steps
    evals: list[dict[str, Any]]  # as they were written
    events: list[dict[str, Any]]

    @cached_property
    def config(self) -> dict[str, str]:
        """Dotted key -> value as text; lists are one value."""
        return dict(_flatten("", self._yaml))

    @cached_property
    def domains(self) -> dict[str, str]:
        """Held-out source -> "old" or "new", of those that have a domain."""
        found: Any = self._yaml
        for key in ("data", "validation"):
            found = found.get(key) if isinstance(found, dict) else None
        sources = found.items() if isinstance(found, dict) else ()
        named = {str(name): source.get("domain") for name, source in sources if isinstance(source, dict)}
        return {name: domain for name, domain in named.items() if domain in ("old", "new")}

    @cached_property
    def _yaml(self) -> Any:
        import yaml

        try:
            return yaml.safe_load(self.config_text) or {}
        except yaml.YAMLError:
            return {}

    def column(self, *keys: str) -> np.ndarray:
        """One float64 per line of metrics.jsonl, NaN where the value is null or missing."""
        return evaluations.column(self.lines, *keys)

    @cached_property
    def steps(self) -> np.ndarray:
        return self.column("step")

    @cached_property
    def sources(self) -> list[str]:
        """Training sources in the order of their first appearance."""
        return list(dict.fromkeys(name for line in self.lines for name in line.get("loss_by_source") or {}))

    @cached_property
    def held_out(self) -> list[evaluations.Series]:
        return evaluations.held_out(self.evals)

    @cached_property
    def tasks(self) -> list[evaluations.Series]:
        return evaluations.tasks(self.evals)

    @cached_property
    def eval_sources(self) -> list[str]:
        return list(dict.fromkeys(one.name for one in self.held_out))

    @cached_property
    def began(self) -> Mapping[str, Any]:
        """The event that says which model the run began from; empty where it began from none."""
        return self.last_event("initialised", "forked")

    @cached_property
    def first_step(self) -> int:
        """The step that it began with, which is above 0 in a branch of another run."""
        return self.last_event("forked").get("step", 0)

    @cached_property
    def first_tokens(self) -> float:
        """The slots that its model had read in that step, as far as the lines tell."""
        before = [line["tokens"] for line in self.evals if line["step"] == self.first_step and line.get("tokens")]
        first = next((line for line in self.lines if line.get("tokens")), None)
        if not self.first_step or not (before or first):
            return 0.0
        return float(before[0] if before else first["tokens"] * self.first_step / first["step"])

    @cached_property
    def status(self) -> str:
        """How the run ended; "unfinished" while it runs, and where it was killed without a word."""
        known = [event for event in self.events if event["kind"] in {*ENDINGS, "started", "resumed"}]
        return ENDINGS.get(known[-1]["kind"], "unfinished") if known else "unfinished"

    @cached_property
    def hours(self) -> np.ndarray:
        """Hours that this run spent in training steps up to each line."""
        seconds = np.nan_to_num(self.column("step_seconds")) * np.diff(self.steps, prepend=self.first_step)
        return np.cumsum(seconds) / 3600

    @cached_property
    def last_losses(self) -> np.ndarray:
        """Training losses of the last tenth of the lines, ten at most: one step's loss is noisy, their mean is not."""
        losses = self.column("loss")
        losses = losses[np.isfinite(losses)]
        return losses[-max(1, min(10, len(losses) // 10)) :]

    @cached_property
    def validation(self) -> list[tuple[int, float, float]]:
        """(step, loss, bits per byte) of every evaluation over all its sources, weighted by their target tokens and
        bytes; sources count alike where those are missing."""
        steps: dict[int, list[dict[str, Any]]] = {}
        for line in (line for one in self.held_out if not one.weights for line in one.lines):
            steps.setdefault(line["step"], []).append(line)
        means = [
            (step, _mean(at, "loss", "target_tokens"), _mean(at, "bits_per_byte", "bytes"))
            for step, at in sorted(steps.items())
        ]
        return [(step, loss, bits) for step, loss, bits in means if math.isfinite(loss)]

    def last_event(self, *kinds: str) -> Mapping[str, Any]:
        """The newest event of one of `kinds`, or an empty one."""
        return next((event for event in reversed(self.events) if event["kind"] in kinds), {})


def read_runs(run_dirs: Iterable[Path]) -> list[Run]:
    """Read run directories; raises `DataError` naming one that does not exist or has no metrics.jsonl."""
    paths = list(dict.fromkeys(Path(path) for path in run_dirs))
    names = [path.resolve().name for path in paths]
    runs = []
    for path, name in zip(paths, names, strict=True):
        if not path.is_dir():
            raise DataError(f"{path}: no such run directory")
        if not (path / METRICS).is_file():
            raise DataError(f"{path}: has no {METRICS}; expected the directory of a run that maxlm train started")
        config = path / "config.yaml"
        runs.append(
            Run(
                path=path,
                label=name if names.count(name) == 1 else str(path),
                config_text=config.read_text(errors="replace") if config.is_file() else "",
                lines=read_lines(path / METRICS),
                evals=read_lines(path / EVAL),
                events=read_lines(path / EVENTS),
            )
        )
    return runs


def config_differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all runs, with the value in each ("" where a run lacks the key)."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = [(key, [run.config.get(key, "") for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _mean(lines: list[dict[str, Any]], key: str, weight: str) -> float:
    values, weights = evaluations.column(lines, key), evaluations.column(lines, weight)
    if not np.all(weights > 0):
        weights = np.ones_like(values)
    return float(np.sum(values * weights) / np.sum(weights))


def _flatten(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
    elif prefix:
        yield prefix, _yaml_text(value)


def _yaml_text(value: Any) -> str:
    """A value as it would stand on one line of the file."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()
