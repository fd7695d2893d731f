"""Tasks in the report of runs: a small chart each, and a table of the last values.

Runs are compared task by task, and only where all settings are the same; of one task with two kinds of settings there
are two charts and two rows. A switch of the page says which metric is shown, at first the main one of each task.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from maxlm.report.charts import AVERAGED, make_chart, make_trace
from maxlm.report.elements import swatch, table
from maxlm.report.evaluations import LESS_IS_BETTER, Series, chance, differing, metrics
from maxlm.report.runs import Run

Key = tuple[str, str]  # see Series.key


class Task(NamedTuple):
    """What may be compared: one task with the same settings, in some runs."""

    name: str
    told: str  # of its settings
    metrics: list[str]  # the main one first
    series: list[tuple[int, Series]]  # by number of the run


def read_tasks(runs: Sequence[Run]) -> list[Task]:
    found: dict[Key, list[tuple[int, Series]]] = {}
    for number, run in enumerate(runs):
        for one in run.tasks:
            found.setdefault(one.key, []).append((number, one))
    told = differing(one for series in found.values() for _, one in series)
    tasks = [
        Task(key[0], told[key], metrics(one for _, one in series), sorted(series, key=_place))
        for key, series in found.items()
    ]
    return sorted((task for task in tasks if task.metrics), key=lambda task: (task.name, task.told))


def task_charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A small chart for each task that some run was measured in twice, with a line for chance."""
    charts = []
    for task in read_tasks(runs):
        if max(len(one.lines) for _, one in task.series) < 2:
            continue
        traces = [_trace(runs, number, one, metric) for metric in task.metrics for number, one in task.series]
        levels = [
            {"y": value, "text": "chance", "metric": metric}
            for metric in task.metrics
            if not math.isnan(value := chance(task.series[0][1], metric))
        ]
        look = {"format": ".4f", "small": True, "main": task.metrics[0], "levels": levels}
        charts.append(make_chart(task.name, task.told, traces, **look))
    return charts


def _trace(runs: Sequence[Run], number: int, one: Series, metric: str) -> dict[str, Any] | None:
    name = " · ".join([runs[number].label] * (len(runs) > 1) + [metric + (f" ({one.weights})" if one.weights else "")])
    look: dict[str, Any] = {"metric": metric} | ({"dash": AVERAGED} if one.weights else {})
    error = one.column("stderr", metric)
    if np.isfinite(error).any():
        look["error"] = error
    return make_trace(number, name, one.steps, one.column("metrics", metric), number, **look)


def tasks_lead(runs: Sequence[Run]) -> str:
    """The switch between metrics, where there are several, and what lines mean."""
    tasks = read_tasks(runs)
    names = list(dict.fromkeys(metric for task in tasks for metric in task.metrics))
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in sorted(names))
    switch = f'<select id="metric"><option value="">the main one of each task</option>{options}</select>'
    parts = [f"<label>metric {switch}</label>"] if len(names) > 1 else []
    traces = [trace for chart in task_charts(runs) for trace in chart["traces"]]
    parts += ["bars: one standard error"] if any("error" in trace for trace in traces) else []
    parts += ["dashed: averaged parameters"] if any("dash" in trace for trace in traces) else []
    return f'<p class="soft">{" &nbsp;·&nbsp; ".join(parts)}</p>' if parts else ""


def tasks_tables(runs: Sequence[Run]) -> str:
    """The last values of every task, and by topic where a task has topics."""
    tasks = read_tasks(runs)
    if not tasks:
        return ""
    parts = [_table(runs, [(escape(task.name) + _small(task.told), task) for task in tasks], "Task")]
    parts.append(
        '<p class="soft">± is one standard error. A change since the first evaluation has a colour where it is more '
        "than two standard errors of a difference of independent samples; on the same questions that is cautious.</p>"
    )
    for task in tasks:
        topics = _topics(task)
        if topics:
            inner = _table(runs, [(escape(topic.name), topic) for topic in topics], "Topic")
            title = escape(task.name) + _small(task.told)
            parts.append(f'<details class="card topics"><summary>Topics of {title}</summary>{inner}</details>')
    return "".join(parts)


def _table(runs: Sequence[Run], entries: Sequence[tuple[str, Task]], what: str) -> str:
    """A row for each task and metric, a column for each run and kind of weights; rows of other metrics are hidden."""
    columns = list(dict.fromkeys((number, one.weights) for _, task in entries for number, one in task.series))
    columns.sort()
    guessed = any(not math.isnan(_chance(task, metric)) for _, task in entries for metric in task.metrics)
    head = [what, "Metric", "Items", *(["Chance"] if guessed else [])]
    numbers = range(2, len(head) + len(columns))
    head += [f"{swatch(number)}{escape(runs[number].label)}{f' ({kind})' if kind else ''}" for number, kind in columns]
    rows, attributes = [], []
    for label, task in entries:
        at = {(number, one.weights): one for number, one in task.series}
        for metric in task.metrics:
            guess = _chance(task, metric)
            items = " / ".join(dict.fromkeys(_items(one) for one in at.values()))
            cells = [label, escape(metric), items, *([_figure(guess)] if guessed else [])]
            rows.append(cells + [_cell(at[column], metric) if column in at else "–" for column in columns])
            main = metric == task.metrics[0]
            attributes.append(f' data-metric="{escape(metric)}"' + (" data-main" if main else " hidden"))
    return table(head, rows, numbers, attributes)


def _cell(one: Series, metric: str) -> str:
    """The last value with its error, and the change since the first evaluation."""
    values, errors = one.column("metrics", metric), one.column("stderr", metric)
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return "–"
    first, last = finite[0], finite[-1]
    error = f" ± {_figure(errors[last])}" if np.isfinite(errors[last]) else ""
    text, step = f"{_figure(values[last])}{error}", f"step {int(one.steps[last]):,}"
    if first == last:
        return f"{text}<small>{step}</small>"
    change, noise = values[last] - values[first], 2 * math.hypot(errors[first], errors[last])
    shown = _figure(change, "+")
    if abs(change) > noise:
        better = (change < 0) == (metric.partition(",")[0] in LESS_IS_BETTER)
        shown = f'<b class="{"good" if better else "bad"}">{shown}</b>'
    return f"{text}<small>{shown} since step {int(one.steps[first]):,} · {step}</small>"


def _topics(task: Task) -> list[Task]:
    """A task for each topic, whose lines have what the topic had in the lines of the task."""
    found: dict[str, list[tuple[int, Series]]] = {}
    for number, one in task.series:
        names = dict.fromkeys(name for line in one.lines for name in _topics_of(line))
        for name in names:
            lines = [_topic_line(line, name) for line in one.lines if name in _topics_of(line)]
            # What guessing gives is told of the whole alone.
            found.setdefault(name, []).append((number, Series(name, one.weights, {}, lines)))
    return [Task(name, "", metrics(one for _, one in series), series) for name, series in sorted(found.items())]


def _topics_of(line: Mapping[str, Any]) -> Mapping[str, Any]:
    topics = line.get("topics")
    return (
        {name: topic for name, topic in topics.items() if isinstance(topic, dict)} if isinstance(topics, dict) else {}
    )


def _topic_line(line: Mapping[str, Any], name: str) -> dict[str, Any]:
    topic = dict(_topics_of(line)[name])
    found = {"step": line["step"], "items": topic.pop("items", None), "stderr": topic.pop("stderr", {})}
    return found | {"metrics": topic}


def _place(entry: tuple[int, Series]) -> tuple[int, str]:
    number, one = entry
    return number, one.weights


def _chance(task: Task, metric: str) -> float:
    return chance(task.series[0][1], metric)


def _items(one: Series) -> str:
    items = one.lines[-1].get("items")
    return f"{items:,}" if isinstance(items, int) else "–"


def _figure(value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "–"
    return f"{value:{sign}{'.4f' if abs(value) < 100 else ',.1f'}}"


def _small(text: str) -> str:
    return f" <small>{escape(text)}</small>" if text else ""
