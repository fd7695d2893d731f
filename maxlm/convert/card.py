"""The model card of an export: what the model is, what it read, and what was measured of it.

It names sources by the names that the configuration gives them, and no directory, URL or machine.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from maxlm.config import Config
from maxlm.data.shards import SIZES
from maxlm.model import counts
from maxlm.report.metrics import EVAL, read_lines
from maxlm.saved import Saved

# Sections of a configuration that say how the model was made; the others say where and on what.
SHOWN = ("model", "train", "optimizer", "schedule", "loss", "precision")
READING = ("seq_len", "packing", "mask_documents")


def model_card(found: Saved, family: str, dtype: str) -> str:
    """README.md of an export, in the form that model hubs read."""
    head = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": [family, "maxlm"]}
    parts = [f"---\n{_yaml(head)}---", f"# {found.config.name if found.config else family}"]
    total, active = counts.parameter_count(found.model), counts.active_parameter_count(found.model)
    routed = f", of which {active:,} are active per token" if active != total else ""
    parts.append(f"A {family} model of {total:,} parameters{routed}, in {dtype}, exported by maxlm.")
    if found.config is None:
        parts.append("It was imported, and not trained further: what it read and how it was measured is not known.")
        parts.append(f"## Configuration\n\n```yaml\n{_yaml({'model': _plain(found.model)})}```")
    else:
        parts += [*_training(found, found.config), *_evaluation(found)]
        shown = {name: _plain(getattr(found.config, name)) for name in SHOWN} | {"seed": found.config.seed}
        parts.append(f"## Configuration\n\n```yaml\n{_yaml(shown)}```")
    parts.append("## License\n\nNone is given yet: it is for whoever publishes the model to choose.")
    return "\n\n".join(parts) + "\n"


def _training(found: Saved, config: Config) -> Iterator[str]:
    run = found.run
    predicted = f", {run['target_tokens']:,} of them predicted" if "target_tokens" in run else ""
    yield f"## Training\n\nStep {run['step']:,}: {run.get('tokens', 0):,} tokens read{predicted}."
    rows = [("source", "tokens", "documents", "text bytes", "manifest")]
    for name, hash in run.get("manifests", {}).items():
        sizes = run.get("sizes", {}).get(name, {})  # which checkpoints of earlier versions do not tell
        rows.append((name, *(f"{sizes[key]:,}" if key in sizes else "" for key in SIZES), f"`{hash}`"))
    yield "## Data\n\n" + _table(rows)
    reading = {key: _plain(getattr(config.data, key)) for key in READING}
    yield f"```yaml\n{_yaml({'mixture': [_plain(stage) for stage in config.data.mixture]} | reading)}```"


def _evaluation(found: Saved) -> Iterator[str]:
    """The last lines of eval.jsonl up to the checkpoint's step, one per held-out source."""
    path = found.directory.parents[1] / EVAL
    lines = [line for line in read_lines(path) if line["step"] <= found.run["step"]] if path.is_file() else []
    last = {line["source"]: line for line in lines}
    if not last:
        yield "## Evaluation\n\nNone was recorded."
        return
    rows = [("held-out source", "step", "loss (nats per token)", "perplexity", "bits per byte", "tokens")]
    for name, line in last.items():
        figures = (f"{line['loss']:.4f}", f"{line['perplexity']:.2f}", f"{line['bits_per_byte']:.4f}")
        rows.append((name, f"{line['step']:,}", *figures, f"{line['target_tokens']:,}"))
    yield "## Evaluation\n\n" + _table(rows)


def _table(rows: list[tuple[str, ...]]) -> str:
    rows = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
