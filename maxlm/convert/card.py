"""The model card of an export: what the model is, what it read, and what was measured of it.

It names sources by the names that the configuration gives them, and no directory, URL or machine.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from maxlm.config import Config
from maxlm.data.shards import SIZES
from maxlm.model import counts
from maxlm.report.evaluations import differing, held_out, metrics, tasks
from maxlm.report.metrics import EVAL, read_lines
from maxlm.saved import EMA, EMA_UPDATES, PARAMS, Saved

# Sections of a configuration that say how the model was made; the others say where and on what.
SHOWN = ("model", "train", "optimizer", "schedule", "loss", "precision")
FIGURES = (("loss", ".4f"), ("perplexity", ".2f"), ("bits_per_byte", ".4f"))
READING = ("seq_len", "packing", "mask_documents")


def model_card(found: Saved, family: str, dtype: str, weights: str = PARAMS) -> str:
    """README.md of an export, in the form that model hubs read; `weights` are those that it is of."""
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": [family, "maxlm"]}
    parts = [f"---\n{_yaml(head)}---", f"# {found.config.name if found.config else family}"]
    total, active = counts.parameter_count(found.model), counts.active_parameter_count(found.model)
    routed = f", of which {active:,} are active per token" if active != total else ""
    parts.append(f"A {family} model of {total:,} parameters{routed}, in {dtype}, exported by maxlm.")
    if found.config is None:
        parts.append("It was imported, and not trained further: what it read is not known.")
        parts += _evaluation(found, weights)
        parts.append(f"## Configuration\n\n```yaml\n{_yaml({'model': _plain(found.model)})}```")
    else:
        parts += [*_weights(found, found.config, weights), *_training(found, found.config)]
        parts += _evaluation(found, weights)
        shown = {name: _plain(getattr(found.config, name)) for name in SHOWN} | {"seed": found.config.seed}
        parts.append(f"## Configuration\n\n```yaml\n{_yaml(shown)}```")
    parts.append("## License\n\nNone is given yet: it is for whoever publishes the model to choose.")
    return "\n\n".join(parts) + "\n"


def _weights(found: Saved, config: Config, weights: str) -> Iterator[str]:
    if weights == EMA:
        yield (
            f"Its weights are an exponential moving average of the training's over {found.run[EMA_UPDATES]:,} updates, "
            f"with a decay of {config.optimizer.ema:g} per update."
        )
    elif EMA_UPDATES in found.run:
        yield "Its weights are those of the last step, not the average of them that the run kept."


def _training(found: Saved, config: Config) -> Iterator[str]:
    run = found.run
    predicted = f", {run['target_tokens']:,} of them predicted" if "target_tokens" in run else ""
    means = f" The parameters are the mean of those of steps {_steps(run)}." if "averaged" in run else ""
    yield f"## Training\n\nStep {run['step']:,}: {run.get('tokens', 0):,} tokens read{predicted}.{means}"
    rows = [("source", "tokens", "documents", "text bytes", "manifest")]
    for name, hash in run.get("manifests", {}).items():
        sizes = run.get("sizes", {}).get(name, {})  # which checkpoints of earlier versions do not tell
        rows.append((name, *(f"{sizes[key]:,}" if key in sizes else "" for key in SIZES), f"`{hash}`"))
    yield "## Data\n\n" + _table(rows)
    reading = {key: _plain(getattr(config.data, key)) for key in READING}
    yield f"```yaml\n{_yaml({'mixture': [_plain(stage) for stage in config.data.mixture]} | reading)}```"


def _steps(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{step:,}" for step in run["averaged"]["steps"])


def _evaluation(found: Saved, weights: str) -> Iterator[str]:
    """The last lines of eval.jsonl up to the checkpoint's step, one per held-out source and task, of these weights."""
    lines, step = read_lines(found.directory.parents[1] / EVAL), found.run.get("step", 0)
    sources, measured = (
        [cut for one in series if (one.weights or PARAMS) == weights and (cut := one.until(step)).lines]
        for series in (held_out(lines), tasks(lines))
    )
    yield "## Evaluation" if sources or measured else "## Evaluation\n\nNone was recorded."
    if sources:
        rows = [("held-out source", "step", "loss (nats per token)", "perplexity", "bits per byte", "tokens")]
        for one in sources:
            line = one.lines[-1]
            figures = (_figure(line.get(key), form) for key, form in FIGURES)
            rows.append((one.name, f"{line['step']:,}", *figures, _figure(line.get("target_tokens"), ",")))
        yield _table(rows)
    if measured:
        rows, told = [("task", "step", "metric", "value", "standard error", "questions")], differing(measured)
        for one in measured:
            line = one.lines[-1]
            name = f"{one.name} ({told[one.key]})" if told[one.key] else one.name
            for metric in metrics([one]):
                value, error = (one.column(key, metric)[-1] for key in ("metrics", "stderr"))
                figures = _figure(value, ".4f"), _figure(error, ".4f"), _figure(line.get("items"), ",")
                rows.append((name, f"{line['step']:,}", metric, *figures))
        yield _table(rows)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else f"{value:{form}}"


def _table(rows: list[tuple[str, ...]]) -> str:
    rows = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
