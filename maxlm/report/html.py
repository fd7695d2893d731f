"""`maxlm report`: one HTML page of one or several runs that needs no network and no other file.

write_report([Path("runs/demo"), Path("runs/demo-muon")], Path("report.html"))
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxlm.errors import SaveError
from maxlm.report.charts import axis_knots, build_charts, event_marks, event_text
from maxlm.report.elements import document, swatch, table, tiles
from maxlm.report.forgetting import (
    began_from,
    forgetting_charts,
    forgetting_lead,
    forgetting_tables,
    forgotten,
    signed,
)
from maxlm.report.mixture_page import mixture_section, read_mixture
from maxlm.report.page import PALETTE, SCRIPT
from maxlm.report.progress import compact, duration
from maxlm.report.runs import Run, config_differences, read_runs
from maxlm.report.tasks_page import task_charts, tasks_lead, tasks_tables

ALIKE = 4  # events of one kind in a row that the table still lists one by one


def write_report(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page of `run_dirs` to `out`, atomically; returns its path.

    Raises `DataError` naming a directory that is missing or has no metrics.jsonl, `SaveError` when `out` cannot be
    written.
    """
    from plotly.offline import get_plotlyjs

    runs = read_runs([Path(path) for path in run_dirs])
    sections = _sections(runs)
    data = {
        "palette": PALETTE,
        "runs": [{"label": run.label, "knots": axis_knots(run)} for run in runs],
        "events": event_marks(runs),
        "charts": [chart for section in sections for chart in section.charts],
    }
    body = [_header(runs), _summary(runs)]
    if sections:
        body += [_controls(runs), *_section_parts(sections)]
    else:
        body.append('<p class="soft">No step has been logged yet.</p>')
    body += [_mixtures(runs), _validation_table(runs), _event_table(runs), _configs(runs)]
    # `<` could end the element; JSON reads the escape as the same character.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    script = [
        f'<script type="application/json" id="data">{text}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{SCRIPT}</script>",
    ]
    return _write(Path(out), document(_title(runs), body + (script if sections else [])))


class Section(NamedTuple):
    """A part of the page: charts, and HTML in front of them and behind."""

    title: str
    charts: list[dict[str, Any]]  # large ones before small ones
    lead: str = ""
    tables: str = ""


def _sections(runs: list[Run]) -> list[Section]:
    """What was forgotten comes first, of runs that went on from a model; then curves of training, and tasks."""
    found = [Section(title, charts) for title, charts in build_charts(runs)]
    if charts := forgetting_charts(runs):
        found.insert(0, Section("Forgetting", charts, forgetting_lead(runs), forgetting_tables(runs)))
    if tables := tasks_tables(runs):
        found.insert(1 + bool(charts), Section("Tasks", task_charts(runs), tasks_lead(runs), tables))
    return found


def _write(out: Path, text: str) -> Path:
    new = out.with_name(out.name + ".new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, out)
    except OSError as error:
        raise SaveError(f"{out}: the report cannot be written ({error})") from None
    return out


def _title(runs: list[Run]) -> str:
    return f"{', '.join(run.label for run in runs)} · maxlm"


def _header(runs: list[Run]) -> str:
    if len(runs) > 1:
        return (
            f'<h1>{len(runs)} runs compared</h1><div class="soft">{escape(", ".join(run.label for run in runs))}</div>'
        )
    run = runs[0]
    parts = [_status(run)]
    if times := [event["time"] for event in run.events if "time" in event]:
        parts.append(f"{escape(_clock(times[0]))} to {escape(_clock(times[-1]))} UTC")
    parts += [escape(text) for text in (_hardware(run), _versions(run)) if text]
    model, done = began_from(run)
    parts += [f"began from {model}" + (f" ({escape(done)})" if done else "")] if model else []
    return f'<h1>{escape(run.label)}</h1><div class="soft">{" &nbsp;·&nbsp; ".join(parts)}</div>'


def _status(run: Run) -> str:
    hint = "running, or stopped without a word" if run.status == "unfinished" else ""
    return f'<span class="status {run.status}" title="{hint}">{run.status}</span>'


def _hardware(run: Run) -> str:
    event = run.last_event("started", "resumed")
    kind, count = event.get("device_kind") or run.last_event("started").get("device_kind"), event.get("devices")
    return " × ".join(str(part) for part in (count, kind) if part)


def _versions(run: Run) -> str:
    versions = run.last_event("started").get("versions")
    if not isinstance(versions, dict):
        return ""
    return ", ".join(f"{name} {versions[name]}" for name in ("maxlm", "jax") if name in versions)


def _clock(time: str) -> str:
    """An ISO time to the second, which the page does not break over two lines."""
    return time[:19].replace("T", "\N{NO-BREAK SPACE}")


def _figures(run: Run, alone: bool) -> list[tuple[str, str, str]]:
    """(label, value, small print) of what sums a run up; `alone` on a page that compares none."""
    last = run.lines[-1] if run.lines else {}
    losses = run.last_losses
    skipped = int(np.nansum(run.column("skipped"))) if run.lines else 0
    parameters, active = (run.last_event("started").get(key) for key in ("parameters", "active_parameters"))
    met = f"{compact(active)} met by a token" if parameters and active and active != parameters else ""
    return [
        ("Parameters", compact(parameters) if parameters else "–", met),
        ("Tokens", compact(last["tokens"]) if last.get("tokens") is not None else "–", "slots, padding included"),
        ("Steps", f"{last['step']:,}" if last else "–", f"{skipped:,} skipped"),
        (
            "Training loss",
            f"{losses.mean():.4f}" if len(losses) else "–",
            f"mean of the last {len(losses)} lines" if len(losses) > 1 else "last line",
        ),
        *_validation_figures(run),
        *(_forgetting_figures(run) if alone else ()),
        *_speed_figures(run),
    ]


def _forgetting_figures(run: Run) -> list[tuple[str, str, str]]:
    found = forgotten(run)
    names = {"old": ("Forgotten", 1), "new": ("Learned", -1)}
    return [
        (name, signed(sign * found[domain].since[-1]), "bits per byte since start")
        for domain, (name, sign) in names.items()
        if domain in found
    ]


def _validation_figures(run: Run) -> list[tuple[str, str, str]]:
    if not run.validation:
        return [(label, "–", "") for label in ("Validation loss", "Perplexity", "Bits per byte")]
    step, loss, bits = min(run.validation, key=lambda entry: entry[1])
    where = f"best, at step {step:,}"
    return [
        ("Validation loss", f"{loss:.4f}", where),
        ("Perplexity", f"{math.exp(loss):,.2f}" if loss < 700 else "–", where),
        ("Bits per byte", f"{bits:.4f}" if math.isfinite(bits) else "–", where),
    ]


def _speed_figures(run: Run) -> list[tuple[str, str, str]]:
    speed, mfu = (_median(run.column(key)) for key in ("tokens_per_second", "mfu"))
    goodput = run.last_event("finished").get("goodput")
    if goodput is None:
        goodput = next((line["goodput"] for line in reversed(run.evals) if line.get("goodput") is not None), None)
    return [
        ("Tokens/s", f"{speed:,.0f}" if speed is not None else "–", "median"),
        ("MFU", f"{mfu:.1%}" if mfu is not None else "–", "median" if mfu is not None else "peak unknown"),
        ("Goodput", f"{goodput:.1%}" if goodput is not None else "–", "productive share of time"),
        ("Time in steps", duration(run.hours[-1] * 3600) if run.lines else "–", ""),
    ]


def _median(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _summary(runs: list[Run]) -> str:
    figures = [_figures(run, len(runs) == 1) for run in runs]
    if len(runs) == 1:
        return tiles(figures[0])
    head = ["Run", "Status", *[label for label, _, _ in figures[0]]]
    rows = [
        [f"{swatch(number)}{escape(run.label)}<small>{_hints(run)}</small>", _status(run)]
        + [escape(value) for _, value, _ in figures[number]]
        for number, run in enumerate(runs)
    ]
    return table(head, rows, numbers=range(2, len(head)))


def _hints(run: Run) -> str:
    model, _ = began_from(run)
    parts = [escape(_hardware(run)), f"from {model}" if model else ""]
    return "<br>".join(part for part in parts if part)


def _controls(runs: list[Run]) -> str:
    axes = ["step"]
    axes += ["tokens"] if all(np.isfinite(run.column("tokens")).all() for run in runs) else []
    axes += ["hours"] if all(run.hours[-1] > 0 for run in runs if run.lines) else []
    buttons = "".join(
        f'<button data-axis="{axis}" aria-pressed="{str(axis == "step").lower()}">{axis}</button>' for axis in axes
    )
    chips = "".join(
        f'<button class="run" data-run="{number}" aria-pressed="true">{swatch(number)}{escape(run.label)}</button>'
        for number, run in enumerate(runs)
    )
    switches = (("logX", "log x", ""), ("logY", "log loss", ""), ("events", "events", " checked"))
    boxes = "".join(
        f'<label><input type="checkbox" data-switch="{key}"{on}>{text}</label>' for key, text, on in switches
    )
    return (
        f'<div class="bar"><span class="choice">{buttons}</span>'
        '<label>smoothing <input type="range" id="smoothing" min="0" max="5" step="0.25" value="0.25">'
        f'<output id="smoothing-value">0.25%</output></label>{boxes}'
        + (f'<span class="runs">{chips}</span>' if len(runs) > 1 else "")
        + '<span class="hint">drag to zoom, double-click to reset</span></div>'
    )


def _section_parts(sections: list[Section]) -> Iterable[str]:
    numbers = itertools.count()
    for section in sections:
        yield f"<h2>{section.title}</h2>{section.lead}"
        for small, charts in itertools.groupby(section.charts, key=lambda chart: bool(chart.get("small"))):
            figures = (
                f'<figure class="card{" wide" if chart.get("wide") else ""}"><figcaption>{escape(chart["title"])}'
                f"<span>{escape(chart['note'])}</span></figcaption>"
                f'<div class="plot" data-chart="{next(numbers)}"></div></figure>'
                for chart in charts
            )
            yield f'<section class="charts{" small" if small else ""}">{"".join(figures)}</section>'
        yield section.tables


def _mixtures(runs: list[Run]) -> str:
    found = [(run, mixture) for run in runs if (mixture := read_mixture(run.path))]
    parts = [
        mixture_section(mixture, f": {run.label}" if len(runs) > 1 else "", [*run.sources, *run.eval_sources])
        for run, mixture in found
    ]
    return f"<h2>Mixture</h2>{''.join(parts)}" if parts else ""


def _validation_table(runs: list[Run]) -> str:
    rows = []
    for number, run in enumerate(runs):
        for one in run.held_out:
            lines = [line for line in one.lines if line.get("loss") is not None]
            if not lines:
                continue
            best, last = min(lines, key=lambda line: line["loss"]), lines[-1]
            cells = [f"{swatch(number)}{escape(run.label)}"] if len(runs) > 1 else []
            cells += [escape(one.label), f"{best['loss']:.4f}", f"{best['step']:,}", f"{last['loss']:.4f}"]
            bits = last.get("bits_per_byte")
            cells += [f"{math.exp(last['loss']):,.2f}" if last["loss"] < 700 else "–"]
            rows.append([*cells, f"{bits:.4f}" if bits is not None else "–", f"{last['step']:,}"])
    head = ["Run"] if len(runs) > 1 else []
    head += ["Source", "Best loss", "at step", "Last loss", "Perplexity", "Bits per byte", "at step"]
    return f"<h2>Validation</h2>{table(head, rows, range(len(head) - 6, len(head)))}" if rows else ""


def _event_table(runs: list[Run]) -> str:
    rows = []
    for number, run in enumerate(runs):
        for kind, group in itertools.groupby(run.events, key=lambda event: event["kind"]):
            events = list(group)
            if len(events) > ALIKE:
                first, last = events[0], events[-1]
                text = f"{len(events):,} times, from step {first['step']:,} to {last['step']:,}"
                rows.append((first.get("time", ""), number, kind, last["step"], text))
                continue
            rows += [(event.get("time", ""), number, kind, event["step"], event_text(event)) for event in events]
    cells = [
        ([f"{swatch(number)}{escape(runs[number].label)}"] if len(runs) > 1 else [])
        + [escape(_clock(time)), escape(kind), f"{step:,}", escape(text)]
        for time, number, kind, step, text in sorted(rows, key=lambda row: (row[0], row[3]))
    ]
    head = (["Run"] if len(runs) > 1 else []) + ["Time (UTC)", "Event", "Step", "Details"]
    return f"<h2>Events</h2>{table(head, cells, [len(head) - 2])}" if rows else ""


def _configs(runs: list[Run]) -> str:
    parts = ["<h2>Configuration</h2>"]
    if len(runs) > 1:
        rows = [[escape(key), *map(escape, values)] for key, values in config_differences(runs)]
        head = ["Key", *[f"{swatch(number)}{escape(run.label)}" for number, run in enumerate(runs)]]
        parts.append(table(head, rows) if rows else '<p class="soft">The configurations are the same.</p>')
    for run in runs:
        text = escape(run.config_text) or "This run has no config.yaml."
        parts.append(f'<details class="card"><summary>{escape(run.label)}</summary><pre>{text}</pre></details>')
    return "".join(parts)
