"""Lines of eval.jsonl as reports and model cards read them: what was measured, of which weights, step by step."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# The metric that stands for a task is the first of these that it has.
MAIN = ("acc_norm", "acc", "exact_match", "f1", "em", "bits_per_byte", "word_perplexity", "perplexity")
LESS_IS_BETTER = {"loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
GUESSED = ("acc", "acc_norm", "probability")  # the metrics that `chance` of the settings is of
TOLD = ("shots", "limit")  # settings that a reader asks for; the others where they differ


@dataclass(frozen=True)
class Series:
    """One held-out source or task, measured of the same weights with the same settings."""

    name: str
    weights: str  # "" for the parameters themselves, "ema" for their average
    settings: Mapping[str, Any]  # of a task
    lines: list[dict[str, Any]]  # ascending steps, one each

    @property
    def label(self) -> str:
        return f"{self.name} ({self.weights})" if self.weights else self.name

    @property
    def key(self) -> tuple[str, str]:
        """What series that may be compared have in common."""
        return self.name, _text_of(self.settings)

    @property
    def steps(self) -> np.ndarray:
        return column(self.lines, "step")

    def column(self, *keys: str) -> np.ndarray:
        return column(self.lines, *keys)

    def until(self, step: int) -> "Series":
        """The lines up to a step."""
        return Series(self.name, self.weights, self.settings, [line for line in self.lines if line["step"] <= step])


def held_out(lines: Iterable[dict[str, Any]]) -> list[Series]:
    """The series of held-out sources, in the order of their first lines; of one step the newest line counts."""
    return _series((line for line in lines if "task" not in line), "source")


def tasks(lines: Iterable[dict[str, Any]]) -> list[Series]:
    """The series of tasks, likewise."""
    return _series((line for line in lines if "task" in line), "task")


def column(lines: Iterable[Mapping[str, Any]], *keys: str) -> np.ndarray:
    """One float64 per line, NaN where the value is null or missing; several keys lead into dictionaries."""

    def value(line: Any) -> float:
        for key in keys:
            line = line.get(key) if isinstance(line, dict) else None
        return float(line) if isinstance(line, int | float) else math.nan

    return np.array([value(line) for line in lines], np.float64)


def metrics(series: Iterable[Series]) -> list[str]:
    """The metrics that some line has, the one that stands for the task first."""
    found = dict.fromkeys(
        name
        for one in series
        for line in one.lines
        for name, value in _dict(line, "metrics").items()
        if _is_number(value)
    )
    return sorted(found, key=_rank)


def differing(series: Iterable[Series]) -> dict[tuple[str, str], str]:
    """By key of the series: shots and limit, and whatever else tells a task from others of its name."""
    variants: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in series:
        variants.setdefault(one.name, {})[_text_of(one.settings)] = one.settings
    found = {}
    for name, settings in variants.items():
        keys = dict.fromkeys(key for one in settings.values() for key in one)
        differ = [key for key in keys if len({_text_of(one.get(key)) for one in settings.values()}) > 1]
        for text, one in settings.items():
            told = [key for key in keys if key in differ or (key in TOLD and one.get(key) is not None)]
            found[name, text] = ", ".join(f"{key} {_short(one.get(key))}" for key in told)
    return found


def chance(series: Series, metric: str) -> float:
    """What guessing gets right, where the settings tell it; else NaN."""
    value = series.settings.get("chance") if metric in GUESSED else None
    return float(value) if _is_number(value) else math.nan


def _series(lines: Iterable[dict[str, Any]], kind: str) -> list[Series]:
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for line in lines:
        key = str(line.get(kind, "all")), str(line.get("weights") or ""), _text_of(_dict(line, "settings"))
        found.setdefault(key, {})[line["step"]] = line
    return [
        Series(name, weights, json.loads(settings), [steps[step] for step in sorted(steps)])
        for (name, weights, settings), steps in found.items()
    ]


def _rank(metric: str) -> tuple[int, str]:
    """lm-eval writes a metric with its filter behind a comma."""
    name = metric.partition(",")[0]
    return (MAIN.index(name) if name in MAIN else len(MAIN)), metric


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "none" if value is None else _text_of(value)
    return text if len(text) <= 16 else text[:12] + "…"


def _text_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _dict(line: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = line.get(key)
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
