"""What runs forget and learn that go on from a model: held-out loss against that at their start.

The loss is in bits per byte. Nats per token are per token of one tokenizer, and a run with an extended vocabulary could
not be laid beside one without; bits per byte are of the text. A domain's change is the mean of those of its sources,
each counting alike, over the steps in which all of them were measured. Sources without a domain stand for themselves.
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from maxlm import saved
from maxlm.report.charts import AVERAGED, make_chart, make_trace
from maxlm.report.elements import swatch, table
from maxlm.report.runs import Run

DOMAINS = {"old": ("old domains", "solid"), "new": ("new domains", "dash")}
ORDER = ("old", "new", "")
BASE = [{"y": 0, "text": "start", "base": True}]
LOOK = {"format": "+.4f", "tick": "+.3~g", "levels": BASE}


class Change(NamedTuple):
    """Bits per byte of a held-out source, or means over several, from the start on."""

    name: str
    domain: str
    weights: str
    first: int  # the step of the start
    start: float
    steps: np.ndarray
    bits: np.ndarray  # [steps], finite

    @property
    def since(self) -> np.ndarray:
        return self.bits - self.start

    @property
    def label(self) -> str:
        return f"{self.name} ({self.weights})" if self.weights else self.name


def compared(runs: Sequence[Run]) -> list[int]:
    """The numbers of the runs that the picture is about: those that began from a model, else those with domains."""
    began = [number for number, run in enumerate(runs) if run.began]
    found = began or [number for number, run in enumerate(runs) if run.domains]
    return [number for number in found if changes(runs[number])]


def changes(run: Run) -> list[Change]:
    """Of every held-out source that was measured; averaged parameters begin as the parameters themselves."""
    found, starts = [], {}
    for one in sorted(run.held_out, key=lambda one: one.weights):
        steps, bits = one.steps, one.column("bits_per_byte")
        steps, bits = steps[np.isfinite(bits)], bits[np.isfinite(bits)]
        if len(bits):
            first, start = starts.setdefault(one.name, (int(steps[0]), float(bits[0])))
            domain = run.domains.get(one.name, "")
            found.append(Change(one.name, domain, one.weights, first, start, steps, bits))
    return sorted(found, key=lambda change: ORDER.index(change.domain))


def means(found: Iterable[Change]) -> list[Change]:
    """The parameters' change of each domain; a source that was not measured at the start is left out."""
    plain = [change for change in found if not change.weights]
    start = min((change.first for change in plain), default=0)
    together = []
    for domain in DOMAINS:
        of = [change for change in plain if change.domain == domain and change.first == start]
        if of:
            steps = sorted(set.intersection(*(set(change.steps.tolist()) for change in of)))
            bits = np.mean([change.bits[np.isin(change.steps, steps)] for change in of], axis=0)
            name = of[0].name if len(of) == 1 else f"mean of {len(of)} sources"
            first = float(np.mean([change.start for change in of]))
            together.append(Change(name, domain, "", start, first, np.array(steps), bits))
    return together


def forgetting_charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The domains of all runs in one picture, and each source by itself."""
    numbers = compared(runs)
    if not numbers:
        return []
    found = {number: changes(runs[number]) for number in numbers}
    traces = [_domain_trace(runs, number, change) for number in numbers for change in means(found[number])]
    note = "bits per byte since the start of the run"
    charts = [make_chart("Forgetting and learning", note, traces, wide=True, legend=True, **LOOK)] if traces else []
    sources: dict[tuple[str, str], list] = {}
    for number in numbers:
        for change in found[number]:
            dash = {"dash": AVERAGED} if change.weights else {}
            name = f"{runs[number].label} · {change.label}" if len(runs) > 1 else change.label
            colour = number if len(runs) > 1 else ORDER.index(change.domain)
            one = make_trace(number, name, change.steps, change.since, colour, **dash)
            sources.setdefault((change.domain, change.name), []).append(one)
    order = sorted(sources, key=lambda key: ORDER.index(key[0]))
    if len(order) > len(charts) or any(change.weights for of in found.values() for change in of):
        charts += [make_chart(name, domain, sources[domain, name], small=True, **LOOK) for domain, name in order]
    return charts


def _domain_trace(runs: Sequence[Run], number: int, change: Change) -> dict[str, Any] | None:
    text, dash = DOMAINS[change.domain]
    label = f"{text} ({change.name})"
    if len(runs) == 1:
        return make_trace(number, label, change.steps, change.since, ORDER.index(change.domain), dash=dash)
    label = f"{runs[number].label} · {label}"
    return make_trace(number, label, change.steps, change.since, number, dash=dash, source=text)


def forgetting_lead(runs: Sequence[Run]) -> str:
    """What the picture shows and what it leaves out."""
    numbers = compared(runs)
    others = [run.label for number, run in enumerate(runs) if number not in numbers]
    text = (
        "Held-out loss against the first evaluation of each run: above the line is worse than at the start. It is in "
        "bits per byte, since losses per token of two tokenizers cannot be compared. Sources of a domain count alike."
    )
    out = f" Left out, having begun from no model or without evaluations: {', '.join(others)}." if others else ""
    if not any(runs[number].domains for number in numbers):
        out += " Set data.validation.NAME.domain to old or new to see what is forgotten and what is learned."
    averaged = any(change.weights for number in numbers for change in changes(runs[number]))
    note = " Dashed lines of a source are of averaged parameters." if averaged else ""
    return f'<p class="soft">{escape(text + out + note)}</p>'


def forgetting_tables(runs: Sequence[Run]) -> str:
    """A line per run, and one per source and run."""
    numbers = compared(runs)
    found = {number: changes(runs[number]) for number in numbers}
    domains = [domain for domain in DOMAINS if any(c.domain == domain for of in found.values() for c in of)]
    names = {"old": "Forgotten (old domains)", "new": "Learned (new domains)"}
    head, rows = ["Run", "Began from", *[names[domain] for domain in domains]], []
    for number in numbers:
        by_domain = {change.domain: change for change in means(found[number])}
        cells = [_verdict(by_domain[domain]) if domain in by_domain else "–" for domain in domains]
        model, done = began_from(runs[number])
        origin = f"{model}<small>{escape(done)}</small>" if model else "–"
        rows.append([f"{swatch(number)}{escape(runs[number].label)}", origin, *cells])
    return table(head, rows) + _source_table(runs, found)


def _source_table(runs: Sequence[Run], found: dict[int, list[Change]]) -> str:
    """Runs stand below each other within a source, where they are compared."""
    entries = [(change, number) for number, of in found.items() for change in of]
    names = list(dict.fromkeys((change.domain, change.name) for change, _ in entries))
    names.sort(key=lambda key: ORDER.index(key[0]))
    entries.sort(key=lambda entry: names.index((entry[0].domain, entry[0].name)))
    rows = []
    for change, number in entries:
        best = int(np.argmin(change.bits))
        last = float(change.since[-1])
        rows.append(
            [escape(change.label), change.domain or "–"]
            + ([f"{swatch(number)}{escape(runs[number].label)}"] if len(runs) > 1 else [])
            + [_at(change.start, change.first), _at(change.bits[best], change.steps[best])]
            + [_at(change.bits[-1], change.steps[-1]), _coloured(signed(last), last, change.domain)]
            + [f"{last / change.start:+.2%}" if change.start else "–"]
        )
    head = ["Source", "Domain", *(["Run"] if len(runs) > 1 else [])]
    numbers = range(len(head), len(head) + 5)
    return table([*head, "At the start", "Best", "Last", "Change", "in percent"], rows, numbers)


def forgotten(run: Run) -> dict[str, Change]:
    """The means by domain of a run that the picture is about; else nothing."""
    return {change.domain: change for change in means(changes(run))} if compared([run]) else {}


def began_from(run: Run) -> tuple[str, str]:
    """Which model a run went on from, as HTML, and what was done with it, as text; two empty ones for none."""
    event = run.began
    if not event:
        return "", ""
    path, step = PurePath(str(event.get("from", ""))), event.get("from_step")
    # Of a checkpoint the run that it belongs to: its step is told anyway.
    model = path.parents[1] if path.name.isdecimal() and path.parent.name == saved.DIRECTORY else path
    told = model.name + (f" at step {step:,}" if isinstance(step, int) else "")
    name = f'<span title="{escape(str(path))}">{escape(told)}</span>'
    if event["kind"] == "forked":
        return name, "a branch, with its whole state"
    rows = (("rows_kept", "rows kept"), ("rows_new", f"rows new ({event.get('rows')})"))
    parts = [f"{event[key]:,} {text}" for key, text in rows if isinstance(event.get(key), int) and event[key]]
    return name, ", ".join([*parts, *([f"moments {event['moments']}"] if event.get("moments") else [])])


def _verdict(change: Change) -> str:
    """The change at the last evaluation, and where it went to in between."""
    if len(change.steps) == 1:
        return f"–<small>{escape(change.name)}: {change.start:.4f}, measured at the start alone</small>"
    last, worst = float(change.since[-1]), int(np.argmax(change.since))
    shown = signed(-last if change.domain == "new" else last)
    told = f"{change.name}: {change.start:.4f} → {change.bits[-1]:.4f} at step {int(change.steps[-1]):,}"
    if change.since[worst] > max(last, 0) and change.domain == "old":
        told += f"; most {change.since[worst]:+.4f} at step {int(change.steps[worst]):,}"
    return f"{_coloured(shown, last, change.domain)} bits per byte<small>{escape(told)}</small>"


def signed(bits: float) -> str:
    """With four digits, of which zero is not below zero."""
    return f"{round(bits, 4) + 0.0:+.4f}"


def _coloured(text: str, change: float, domain: str) -> str:
    """Forgetting is bad and learning good; a change of what has no domain is neither."""
    if not domain or not round(change, 4):
        return text
    return f'<b class="{"bad" if change > 0 else "good"}">{text}</b>'


def _at(bits: float, step: int) -> str:
    return f"{bits:.4f}<small>step {int(step):,}</small>"
