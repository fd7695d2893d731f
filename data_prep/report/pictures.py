"""Bars and histograms as HTML and SVG that fit any width: text is never part of what is stretched."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from data_prep.console import count, size
from data_prep.report.excerpts import shortened
from maxlm.report.page import PALETTE

OTHER = "var(--faint)"
HEIGHT = 100

STYLE = """
:root { --faint: #b9c2ce; --kept: #3b7cf2; --all: #c9d7f2; --cut: #fde2e4; --put: #d8f3e4; }
@media (prefers-color-scheme: dark) { :root { --faint: #566273; --kept: #5b92f5; --all: #2b3d5e; --cut: #5a2430;
  --put: #17452f; } }
.table { max-height: none; }
h3 { font-size: 14px; margin: 20px 0 6px; }
p.soft { margin: 4px 0 10px; max-width: 78ch; }
td span.share { color: var(--soft); margin-left: 6px; white-space: nowrap; }
td.number { white-space: nowrap; }
td.why, .why { color: var(--soft); }
td:first-child { white-space: normal; overflow-wrap: anywhere; }
td span.why { padding-left: 14px; display: block; }
.tabs > input { position: absolute; opacity: 0; }
.tabs > label { display: inline-block; padding: 3px 12px; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); cursor: pointer; font-size: 13px; margin: 0 4px 10px 0; }
.tabs > input:checked + label { background: var(--accent); color: var(--card); }
.tabs > input:focus-visible + label { outline: 2px solid var(--accent); outline-offset: 1px; }
.tabs > .pane { display: none; }
.tabs > input:nth-of-type(1):checked ~ .pane:nth-of-type(1),
.tabs > input:nth-of-type(2):checked ~ .pane:nth-of-type(2),
.tabs > input:nth-of-type(3):checked ~ .pane:nth-of-type(3) { display: block; }
.bars { padding: 12px 16px; }
.bars > div { display: grid; grid-template-columns: 150px minmax(0, 1fr) 150px; gap: 2px 12px; align-items: center;
  padding: 5px 0; }
.bars .name { font-weight: 600; overflow-wrap: anywhere; }
.bars .figure { text-align: right; font-variant-numeric: tabular-nums; font-size: 13px; }
.track { display: flex; height: 16px; background: var(--back); border-radius: 4px; overflow: hidden; }
.track i { display: block; flex: none; }
.bars .legend { grid-column: 2 / -1; padding-top: 2px; gap: 2px 16px; overflow-wrap: anywhere; }
.legend .swatch { margin-right: 5px; }
.hists { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 14px; }
.hists figure { padding: 12px 14px 10px; }
.hists figcaption { padding: 0 0 6px; overflow-wrap: anywhere; }
.hists figcaption span { display: block; margin: 0; }
.hist { position: relative; height: 92px; }
.hist svg { display: block; width: 100%; height: 100%; }
.hist .all { fill: var(--all); } .hist .left { fill: var(--kept); }
.hist .limit { stroke: var(--bad); stroke-width: 2; vector-effect: non-scaling-stroke; }
.hist .beyond { fill: var(--bad); opacity: 0.09; }
.axis { display: flex; justify-content: space-between; border-top: 1px solid var(--line); padding-top: 3px;
  font-size: 11px; color: var(--soft); font-variant-numeric: tabular-nums; }
.left-of { padding: 10px 16px; }
.left-of > div { padding: 5px 0; } .left-of .name { font-weight: 600; overflow-wrap: anywhere; }
.chips { display: flex; flex-wrap: wrap; gap: 4px; }
.chips > span { font-size: 12px; padding: 1px 8px; border-radius: 10px; border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; background: linear-gradient(to right,
  var(--all) var(--part, 0%), transparent var(--part, 0%)); }
.sample { border-top: 1px solid var(--line); padding: 10px 0; }
.sample .id { font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.sample .value { color: var(--bad); font-weight: 600; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; background: var(--back);
  border-radius: 6px; padding: 8px 12px; margin: 6px 0 0; font-size: 13px; max-height: 320px; overflow: auto; }
.text del { background: var(--cut); text-decoration-color: var(--bad); }
.text ins { background: var(--put); text-decoration: none; }
.text mark { background: var(--cut); color: inherit; }
.text em { color: var(--soft); font-size: 12px; font-style: normal; padding: 0 4px; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
details h4 { margin: 16px 0 2px; font-size: 13px; overflow-wrap: anywhere; }
@media (max-width: 760px) { .hists, .pair { grid-template-columns: minmax(0, 1fr); }
  .bars > div { grid-template-columns: minmax(0, 1fr) auto; } .bars .track { grid-column: 1 / -1; order: 3; }
  .bars .legend { grid-column: 1 / -1; order: 4; } th, td { padding: 6px 3px; font-size: 11.5px; }
  td span.share { display: block; margin: 0; } td span.why { padding-left: 8px; } details { padding: 10px 12px; }
  th.number { white-space: normal; } }
"""


def name(text: str) -> str:
    """A name that comes from data."""
    return escape(shortened(text, 80))


def section(title: str, told: str, *body: str) -> str:
    return f'<h2>{title}</h2><p class="soft">{told}</p>{"".join(body)}'


def colour(number: int) -> str:
    return PALETTE[1 + number % (len(PALETTE) - 1)]


def swatch(look: str) -> str:
    return f'<span class="swatch" style="background:{look}"></span>'


def bar(name: str, figure: str, pieces: Iterable[tuple[float, str, str]], legend: Sequence[str] = ()) -> str:
    """A line of a bar chart: share of the whole, colour and words of each piece; `legend` is HTML, the rest is text."""
    track = "".join(
        f'<i style="width:{min(part, 1):.3%};background:{look}" title="{escape(what)}"></i>'
        for part, look, what in pieces
        if part > 0
    )
    told = f'<span class="legend">{"".join(f"<span>{one}</span>" for one in legend)}</span>' if legend else ""
    return (
        f'<div><span class="name">{escape(name)}</span><span class="track">{track}</span>'
        f'<span class="figure">{escape(figure)}</span>{told}</div>'
    )


def bars(lines: Iterable[str]) -> str:
    return f'<div class="bars card">{"".join(lines)}</div>'


def tabs(name: str, panes: Mapping[str, str]) -> str:
    """Pieces of HTML of which one is seen, by name."""
    heads = "".join(
        f'<input type="radio" name="{name}" id="{name}-{number}"{" checked" * (number == 0)}>'
        f'<label for="{name}-{number}">{escape(title)}</label>'
        for number, title in enumerate(panes)
    )
    return f'<div class="tabs">{heads}{"".join(f"<div class=pane>{pane}</div>" for pane in panes.values())}</div>'


def chips(values: Iterable[tuple[str, float]]) -> str:
    """Short texts in a row, each filled to its share."""
    return "".join(f'<span style="--part:{share:.1%}">{escape(text)}</span>' for text, share in values)


def histogram(one: Mapping[str, Any], title: str, note: str, unit: str = "") -> str:
    """A figure of what `histograms.histogram` counted: all documents in light bars, those that are kept in dark."""
    most, cut = _height(one["counts"])
    note += f"; the tallest bar, {max(one['counts']):,}, is cut" if cut else ""
    paths = "".join(
        f'<path class="{look}" d="{_steps(one[key], most)}"/>' for look, key in (("all", "counts"), ("left", "kept"))
    )
    limit = _limit(one) if "limit" in one else ""
    middle = (one["low"] * one["high"]) ** 0.5 if one["scale"] == "log" else (one["low"] + one["high"]) / 2
    axis = "".join(f"<span>{value(place, unit)}</span>" for place in (one["low"], middle, one["high"]))
    return (
        f'<figure class="card"><figcaption>{escape(title)}<span>{escape(note)}</span></figcaption>'
        f'<div class="hist"><svg viewBox="0 0 {len(one["counts"])} {HEIGHT}" preserveAspectRatio="none" role="img">'
        f'{paths}{limit}</svg></div><div class="axis">{axis}</div></figure>'
    )


def _height(counts: Sequence[int]) -> tuple[int, bool]:
    """The count as high as the figure, and whether the tallest bar is cut: others would not be seen beside it."""
    first, second = sorted([0, 0, *counts])[-1:-3:-1]
    return (3 * second, True) if first > 4 * second > 0 else (first or 1, False)


def _steps(counts: Sequence[int], most: int) -> str:
    """The outline of bars side by side; one that is not empty is seen."""
    path = f"M0 {HEIGHT}"
    for number, one in enumerate(counts):
        top = HEIGHT - min(max(round(HEIGHT * one / most, 1), 1), HEIGHT) if one else HEIGHT
        path += f"V{top:g}H{number + 1}"
    return f"{path}V{HEIGHT}Z"


def _limit(one: Mapping[str, Any]) -> str:
    bins, at = len(one["counts"]), one["limit_bar"]
    left, width = (0, at) if one["side"] == "least" else (at, bins - at)
    return (
        f'<rect class="beyond" x="{left}" y="0" width="{width}" height="{HEIGHT}"/>'
        f'<line class="limit" x1="{at}" x2="{at}" y1="0" y2="{HEIGHT}"/>'
    )


def value(number: float, unit: str = "") -> str:
    if unit == "bytes":
        return size(number)
    if abs(number) >= 1000:
        return count(number)
    return f"{round(number):,}" if abs(number - round(number)) < 1e-6 else f"{number:.3g}"
