"""The charts of a report as plain data: what the page's script draws, downsampled to what a screen can show.

A chart is {title, note, traces} and how it looks: format and tick (d3 formats of values and axis), log (None: as the
page's switch says), zero (the axis starts there), smooth, share (stacked), shape, legend, wide, small, levels (lines
across it, {y, text}; a base line has {base}). A trace is {run, name, colour, step, y}, {mean: {step, y}} for smoothing
to start from where points were left out, {error} (one standard error), {dash}, {source} where the legend names dashes
and colours stand for runs, and {metric} where the chart shows one of several: that of the page's switch, at first its
{main}. `y` is null in gaps.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from maxlm.report.runs import Run

POINTS = 2000  # per trace
BINS = 120  # of the mixture over time
AVERAGED = "dash"  # of averaged parameters, where dashes stand for nothing else
DASHES = ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")
QUIET = {"started", "checkpoint", "evaluated", "finished"}  # kinds of events that are in the table alone
# Title, note and key of the charts of held-out sources.
HELD_OUT = (
    ("Validation loss", "nats per target token", "loss"),
    ("Validation bits per byte", "", "bits_per_byte"),
)
# Keys of a metrics line that a chart below shows, or that are no curve.
SHOWN = {"step", "tokens", "loss", "learning_rate", "grad_norm", "param_norm", "update_norm", "step_seconds"}
SHOWN |= {"data_wait_seconds", "tokens_per_second", "mfu", "hbm_gib", "skipped", "target_tokens"}
SHOWN |= {"bubble", "expert_max_load", "expert_dropped"}


def downsample(y: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Indices of at most `points` values of y [n] that keep every extreme, the gaps (NaN) and both ends."""
    n = len(y)
    if n <= points:
        return np.arange(n)
    keep = {0, n - 1}
    # Three of each bucket (least, greatest, first gap), and the two ends.
    edges = np.linspace(0, n, (points - 2) // 3 + 1).astype(int)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        part = y[start:stop]
        gaps = np.isnan(part)
        if gaps.any():
            keep.add(start + int(np.argmax(gaps)))
        if not gaps.all():
            keep |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
    return np.array(sorted(keep))


def bucket_means(step: np.ndarray, y: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means of step and y [n] in at most `points` buckets; NaN where a bucket has no finite value."""
    edges = np.linspace(0, len(y), min(len(y), points) + 1).astype(int)[:-1]
    finite = ~np.isnan(y)
    count = np.add.reduceat(finite.astype(int), edges)
    total = np.add.reduceat(np.where(finite, y, 0.0), edges)
    size = np.diff(edges, append=len(y))
    mean = np.divide(total, count, out=np.full(len(edges), np.nan), where=count > 0)
    return np.add.reduceat(step, edges) / size, mean


def build_charts(runs: list[Run]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Sections of the page with their charts; a chart without a finite value is left out."""
    lines = _Charts(runs)
    sections = [
        (
            "Loss and data",
            [
                lines.metric(
                    "Training loss", "nats per target token", "loss", format=".4f", wide=True, smooth=True, log=None
                ),
                *([] if lines.crowded else lines.evals()),
                lines.by_source("Training loss by source", "nats per target token", "loss_by_source"),
                lines.by_source(
                    "Mixture weights",
                    "of the sources, as the run finds them",
                    "mixture_weights",
                    format=".2%",
                    tick=".3~p",
                    smooth=False,
                    log=None,
                ),
                lines.by_source("Excess loss by source", "nats above the reference", "excess_by_source"),
                *[lines.mixture(number) for number in range(len(runs))],
                *(lines.evals_apart() if lines.crowded else []),
            ],
        ),
        (
            "Optimisation",
            [
                lines.metric("Learning rate", "", "learning_rate", format=".3e", tick="~e"),
                lines.metric("Gradient norm", "before clipping", "grad_norm", log=True, smooth=True),
                lines.metric("Parameter norm", "", "param_norm", log=True),
                lines.metric("Update norm", "", "update_norm", log=True, smooth=True),
                lines.metric("Expert load", "fullest expert of a layer over its mean", "expert_max_load"),
                lines.nonzero("Dropped assignments", "of tokens to experts", "expert_dropped", format=",.0f"),
                lines.skipped(),
                *[lines.metric(key, "", key) for key in _other_keys(runs)],
            ],
        ),
        (
            "Speed",
            [
                lines.metric(
                    "Throughput",
                    "tokens per second",
                    "tokens_per_second",
                    format=",.0f",
                    tick=".3~s",
                    smooth=True,
                    zero=True,
                ),
                lines.data_wait(),
                lines.metric("Model FLOPs utilisation", "", "mfu", format=".1%", tick=".3~p", smooth=True, zero=True),
                lines.nonzero("Pipeline bubble", "share of the ticks", "bubble", format=".1%", tick=".3~p", zero=True),
                lines.metric("Device memory", "GiB", "hbm_gib", format=".1f", zero=True),
            ],
        ),
    ]
    shown = [(title, [chart for chart in charts if chart["traces"]]) for title, charts in sections]
    return [(title, charts) for title, charts in shown if charts]


def event_marks(runs: list[Run]) -> list[dict[str, Any]]:
    """The events that charts mark: {run, step, kind, text}."""
    return [
        {"run": number, "step": event["step"], "kind": event["kind"], "text": event_text(event)}
        for number, run in enumerate(runs)
        for event in run.events
        if event["kind"] not in QUIET
    ]


def event_text(event: dict[str, Any]) -> str:
    """The fields of an event, whatever its kind, as one line."""
    fields = {key: value for key, value in event.items() if key not in ("time", "kind", "step", "nonfinite")}
    return " · ".join(f"{key}: {_value_text(value)}" for key, value in fields.items())


def axis_knots(run: Run) -> dict[str, list[float]]:
    """Points that turn a step into tokens and hours by linear interpolation."""
    step, tokens = run.steps, run.column("tokens")
    keep = downsample(tokens)
    start = {"step": run.first_step, "tokens": run.first_tokens, "hours": 0.0}
    columns = {"step": step, "tokens": tokens, "hours": run.hours}
    before = int(not len(step) or step[0] > run.first_step)
    return {name: [float(start[name])] * before + _numbers(column[keep]) for name, column in columns.items()}


class _Charts:
    """Makes the charts; runs tell each other apart by colour, and the sources of one run alone do so too."""

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.sources = list(dict.fromkeys(name for run in runs for name in [*run.sources, *run.eval_sources]))
        labels = [one.label for run in runs for one in run.held_out if one.weights]
        self.dashed = [*self.sources, *dict.fromkeys(labels)]  # what dashes tell apart where colours stand for runs

    def metric(self, title: str, note: str, key: str, **look: Any) -> dict[str, Any]:
        traces = [make_trace(n, run.label, run.steps, run.column(key), n) for n, run in enumerate(self.runs)]
        return make_chart(title, note, traces, **look)

    def nonzero(self, title: str, note: str, key: str, **look: Any) -> dict[str, Any]:
        """A chart of what most runs do not have, and log as 0; without traces where no run has it."""
        chart = self.metric(title, note, key, **look)
        return chart if any(any(trace["y"]) for trace in chart["traces"]) else chart | {"traces": []}

    @property
    def crowded(self) -> bool:
        """Whether there are more held-out sources in several runs than dashes can tell apart."""
        return len(self.runs) > 1 and len({one.label for run in self.runs for one in run.held_out}) > len(DASHES)

    def evals(self) -> list[dict[str, Any]]:
        """All held-out sources in one chart."""

        def of(key: str) -> list[dict[str, Any] | None]:
            return [
                self._source_trace(number, one.name, one.steps, one.column(key), one.weights)
                for number, run in enumerate(self.runs)
                for one in run.held_out
            ]

        return [make_chart(title, note, of(key), format=".4f", legend=True) for title, note, key in HELD_OUT]

    def evals_apart(self) -> list[dict[str, Any]]:
        """A small chart for each held-out source."""
        charts = []
        for title, note, key in HELD_OUT:
            sources: dict[str, list[dict[str, Any] | None]] = {}
            for number, run in enumerate(self.runs):
                for one in run.held_out:
                    look = {"dash": AVERAGED} if one.weights else {}
                    name = f"{run.label} · {one.label}"
                    one_trace = make_trace(number, name, one.steps, one.column(key), number, **look)
                    sources.setdefault(one.name, []).append(one_trace)
            charts += [
                make_chart(f"{title}: {source}", note, traces, format=".4f", small=True)
                for source, traces in sources.items()
            ]
        return charts

    def by_source(self, title: str, note: str, key: str, **look: Any) -> dict[str, Any]:
        traces = [
            self._source_trace(number, source, run.steps, run.column(key, source))
            for number, run in enumerate(self.runs)
            for source in run.sources
            if len(self.sources) > 1
        ]
        return make_chart(title, note, traces, **{"format": ".4f", "legend": True, "smooth": True} | look)

    def mixture(self, number: int) -> dict[str, Any]:
        """Share of the tokens by source in each span of steps, of one run."""
        run = self.runs[number]
        traces = []
        if len(run.sources) > 1:
            edges = np.linspace(0, len(run.steps), min(BINS, len(run.steps)) + 1).astype(int)
            counts = np.nan_to_num(
                [run.column("tokens_by_source", source) for source in run.sources]
            )  # [sources, lines]
            sums = np.add.reduceat(counts, edges[:-1], axis=1)
            shares = sums / np.maximum(sums.sum(axis=0), 1)
            # The first span reaches back to where its counts began, so that one line alone is an area too.
            step = np.concatenate([run.steps[:1] - np.diff(run.steps, prepend=0)[:2].min(), run.steps[edges[1:] - 1]])
            shares = np.concatenate([shares[:, :1], shares], axis=1)
            for source, share in zip(run.sources, shares, strict=True):
                traces.append(make_trace(number, source, step, share, self.sources.index(source)))
        title = "Tokens by source" + (f": {run.label}" if len(self.runs) > 1 else "")
        return make_chart(title, "share of what was read", traces, format=".1%", tick=".3~p", legend=True, share=True)

    def skipped(self) -> dict[str, Any]:
        counts = [np.cumsum(np.nan_to_num(run.column("skipped"))) for run in self.runs]
        traces = [
            make_trace(number, run.label, run.steps, count, number)
            for number, (run, count) in enumerate(zip(self.runs, counts, strict=True))
            if any(count.any() for count in counts)
        ]
        return make_chart("Skipped steps", "cumulative", traces, format=",.0f", shape="hv", zero=True)

    def data_wait(self) -> dict[str, Any]:
        traces = []
        for number, run in enumerate(self.runs):
            seconds = run.column("step_seconds")
            share = np.divide(
                run.column("data_wait_seconds"), seconds, out=np.full(len(seconds), np.nan), where=seconds > 0
            )
            traces.append(make_trace(number, run.label, run.steps, share, number))
        return make_chart(
            "Waiting for data", "share of the step time", traces, format=".1%", tick=".3~p", smooth=True, zero=True
        )

    def _source_trace(
        self, number: int, source: str, step: np.ndarray, y: np.ndarray, weights: str = ""
    ) -> dict[str, Any] | None:
        label = f"{source} ({weights})" if weights else source
        if len(self.runs) == 1:
            look = {"dash": AVERAGED} if weights else {}
            return make_trace(number, label, step, y, self.sources.index(source), **look)
        look = {"source": label, "dash": DASHES[self.dashed.index(label) % len(DASHES)]}
        return make_trace(number, f"{self.runs[number].label} · {label}", step, y, number, **look)


def make_chart(title: str, note: str, traces: Iterable[dict[str, Any] | None], **look: Any) -> dict[str, Any]:
    look = {"format": ".4g", "log": False} | look
    return {"title": title, "note": note, "traces": [trace for trace in traces if trace], **look}


def make_trace(run: int, name: str, step: np.ndarray, y: np.ndarray, colour: int, **look: Any) -> dict[str, Any] | None:
    """A trace, or None when it has no finite value; an `error` in `look` is one standard error for each value."""
    if not np.isfinite(y).any():
        return None
    keep = downsample(y)
    found = {"run": run, "name": name, "colour": colour, "step": _numbers(step[keep]), "y": _numbers(y[keep]), **look}
    if "error" in look:
        found["error"] = _numbers(look["error"][keep])
    if len(keep) < len(y):
        means = bucket_means(step, y)
        found["mean"] = {"step": _numbers(means[0]), "y": _numbers(means[1])}
    return found


def _numbers(values: np.ndarray) -> list[float | None]:
    """Eight significant digits, more than a screen shows; null for NaN."""
    return [None if np.isnan(value) else float(f"{value:.8g}") for value in values]


def _other_keys(runs: list[Run]) -> list[str]:
    """Numbers in the lines that this page does not know by name."""
    keys = dict.fromkeys(
        key for run in runs for line in run.lines for key, value in line.items() if isinstance(value, int | float)
    )
    return [key for key in keys if key not in SHOWN]


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)
