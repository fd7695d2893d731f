"""The mixture of a run in its report: what the schedule of the newest checkpoint reads, behind it and ahead of it."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from maxlm import saved
from maxlm.config import Config, validate
from maxlm.data import order
from maxlm.data.overview import Overview, overview
from maxlm.data.schedule import Schedule
from maxlm.data.sources import Endless, open_present
from maxlm.errors import MaxlmError
from maxlm.report.elements import swatch, table
from maxlm.report.mixture import MOST_PARTS, brackets, merged, notes_of
from maxlm.report.page import PALETTE
from maxlm.report.progress import compact

COLUMNS = 480  # of the picture, at most
WIDTH, HEIGHT = 1000, 160


class Mixture(NamedTuple):
    config: Config
    overview: Overview
    tokens: int  # slots trained on


def read_mixture(run_dir: Path) -> Mixture | None:
    """None where there is no checkpoint that can be read: a page is written all the same."""
    try:
        if (checkpoint := saved.latest(run_dir)) is None:
            return None
        run = saved.read_training(checkpoint)
        if run["loader"].get("order") != order.VERSION:
            return None
        config = validate(run["config"], Config, str(checkpoint))
        sources, _ = open_present(config.data, config.seed)
    except MaxlmError:
        return None
    # Data that were prepared anew say nothing of what was read.
    hashes = {name: one.shards.manifest.hash for name, one in sources.items() if not isinstance(one, Endless)}
    same = {name: one if hashes.get(name) == run["manifests"].get(name) else Endless() for name, one in sources.items()}
    unknown = [name for name, one in same.items() if isinstance(one, Endless)]
    schedule = Schedule.from_json(run["loader"]["schedule"])
    return Mixture(config, overview(schedule, config.total_tokens, same, unknown), run["tokens"])


def mixture_section(mixture: Mixture, label: str, named: Sequence[str]) -> str:
    """A picture and a table; `named` are sources that have colours on the page already, in the order of these."""
    found = mixture.overview
    colours = {name: number for number, name in enumerate(dict.fromkeys([*named, *found.tokens_by_source]))}
    epochs = {name: f", {count:.3g} epochs" for name, count in found.parts[-1].epochs.items()}
    legend = "".join(
        f"<span>{swatch(colours[name])}{escape(name)} {compact(tokens)} tokens{epochs.get(name, '')}</span>"
        for name, tokens in found.tokens_by_source.items()
    )
    told = f"{found.steps:,} steps, {compact(found.tokens)} tokens, as the schedule reads them"
    return (
        f'<figure class="card mixture"><figcaption>Mixture{escape(label)}<span>{told}</span></figcaption>'
        f'{_picture(mixture, colours)}<div class="legend">{legend}</div></figure>{_parts_table(found)}'
        + "".join(f'<p class="soft">{escape(note)}</p>' for note in notes_of(found, mixture.config.data))
    )


def _picture(mixture: Mixture, colours: Mapping[str, int]) -> str:
    """Shares over the run's slots as areas on top of each other, a line at each stage and one where the run stands."""
    found = mixture.overview
    columns = min(COLUMNS, sum(part.examples for part in found.parts))
    shares = [tuple(round(share, 4) for share in row) for row in found.shares(columns).tolist()]
    shapes, start = [], 0
    for row, alike in groupby(shares):
        stop, top = start + len(list(alike)), 0.0
        for name, share in zip(found.tokens_by_source, row, strict=True):
            if share:
                place = (start * WIDTH / columns, top * HEIGHT, (stop - start) * WIDTH / columns, share * HEIGHT)
                x, y, width, height = (f"{number:.2f}" for number in place)
                fill = PALETTE[colours[name] % len(PALETTE)]
                shapes.append(
                    f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}">'
                    f"<title>{escape(name)} {share:.2%}</title></rect>"
                )
            top += share
        start = stop
    tokens, stage = 0, -1
    for part in found.parts:
        if part.examples and part.segment.stage != stage:
            stage = part.segment.stage
            shapes.append(_line(tokens / found.tokens, "stage", f"stage {stage}"))
        tokens += part.tokens
    shapes.append(_line(min(mixture.tokens / found.tokens, 1), "now", "the newest checkpoint"))
    return f'<svg viewBox="0 -16 {WIDTH} {HEIGHT + 18}" role="img">{"".join(shapes)}</svg>'


def _line(share: float, kind: str, text: str) -> str:
    x = share * WIDTH
    anchor = "end" if share > 0.8 else "start"
    label = "" if kind == "now" else f'<text x="{x:.2f}" y="-4" text-anchor="{anchor}">{escape(text)}</text>'
    return f'<g class="{kind}"><title>{escape(text)}</title><path d="M{x:.2f} -3V{HEIGHT}"/>{label}</g>'


def _parts_table(found: Overview) -> str:
    head = ["Stage", "Begins with", "Steps", "Tokens", "seq_len", "Batch", "Tokens by source (epochs at the end)"]
    rows = []
    for part in merged(found.parts)[:MOST_PARTS]:
        segment = part.segment
        if segment.kind == "end":
            rows.append(["", "the end of the data", f"{segment.first_step + 1:,}", *[""] * 4])
            continue
        by_source = sorted(part.tokens_by_source.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {tokens:,}{brackets(part.epochs, name)}" for name, tokens in by_source)
        steps = f"{segment.first_step + 1:,}–{part.last_step + 1:,}" if part.examples else "undone"
        sizes = f"{part.tokens:,}", f"{segment.seq_len:,}", f"{segment.batch_size * segment.seq_len:,}"
        rows.append([str(segment.stage), segment.kind, steps, *sizes, escape(told)])
    return table(head, rows, range(2, 6))
