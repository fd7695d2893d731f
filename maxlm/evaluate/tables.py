"""What `maxlm eval` prints: tables of one model, or several models side by side."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from maxlm.evaluate.perplexity import Result

Measured = Mapping[str, Result | Mapping[str, Any]]  # by name: a held-out source, or a task's line of eval.jsonl
FIGURES = ("loss", "bits_per_byte")  # of a source, by which models are compared


def as_json(measured: Measured) -> dict[str, Any]:
    """What JSON can hold of them: numbers that are not finite are null."""
    plain = {name: found._asdict() if isinstance(found, Result) else found for name, found in measured.items()}
    return _finite(plain)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def of_one(measured: Measured) -> Iterator[Table]:
    """One model: its held-out sources, its tasks, and what these say of their topics."""
    sources = {name: found for name, found in measured.items() if isinstance(found, Result)}
    lines = {name: found for name, found in measured.items() if name not in sources}
    if sources:
        table = Table("source", "loss", "perplexity", "bits per byte", "target tokens", "bytes")
        for name, result in sources.items():
            figures = (f"{result.loss:.4f}", f"{result.perplexity:.2f}", f"{result.bits_per_byte:.4f}")
            table.add_row(name, *figures, f"{result.target_tokens:,}", f"{result.bytes:,}")
        yield table
    if lines:
        table = Table("task", "metric", "value", "stderr", "items")
        for name, line in lines.items():
            for metric, value in line["metrics"].items():
                error = line["stderr"].get(metric)
                table.add_row(name, _named(metric, line), _figure(value), _figure(error), f"{line['items']:,}")
        yield table
    for name, line in lines.items():
        if topics := line.get("topics"):
            yield _topics(name, line["metrics"], topics)


def side_by_side(measured: Mapping[str, Measured]) -> Table:
    """Several models: a column for each, a row for every figure that one of them has."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for path, found in measured.items():
        for row, figure in _figures(found):
            rows.setdefault(row, {})[path] = figure
    table = Table("source or task", "metric", *measured)
    for row, figures in rows.items():
        table.add_row(*row, *(figures.get(path, "") for path in measured))
    return table


def _figures(measured: Measured) -> Iterator[tuple[tuple[str, str], str]]:
    for name, found in measured.items():
        if isinstance(found, Result):
            yield from (((name, _spaced(key)), _figure(getattr(found, key))) for key in FIGURES)
            continue
        for metric, value in found["metrics"].items():
            error = found["stderr"].get(metric)
            yield (name, _named(metric, found)), _figure(value) + ("" if error is None else f" ± {_figure(error)}")


def _topics(name: str, metrics: Mapping[str, Any], topics: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(f"topics of {name}", "items", *map(_spaced, metrics))
    for topic, found in topics.items():
        table.add_row(topic, f"{found['items']:,}", *(_figure(found.get(metric)) for metric in metrics))
    return table


def _named(metric: str, line: Mapping[str, Any]) -> str:
    """A metric, with what guessing gives where that is known."""
    chance = line["settings"].get("chance")
    return _spaced(metric) + (f" (chance {chance:.2f})" if chance is not None and metric.startswith("acc") else "")


def _spaced(key: str) -> str:
    return "bits per byte" if key == "bits_per_byte" else key


def _figure(value: Any) -> str:
    """A figure of a table; one that is missing is blank, one that is not finite in a file is null there."""
    return "" if value is None else f"{value:.4f}" if isinstance(value, int | float) else str(value)
