"""Answers as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from maxlm.inspection.opened import Opened
from maxlm.report.terminal import visible

LONGEST = 120  # characters of what preparation recorded, a value


def step_heading(opened: Opened, header: dict[str, Any]) -> Text:
    text = run_heading(opened)
    first, stop = header["slots"]
    empty = header["batch_size"] - header["examples"]
    text.append(
        f"step {header['step']:,} of {opened.steps:,}, {header['state']}: {header['batch_size']:,} examples of "
    )
    text.append(f"{header['seq_len']:,} tokens" + (f", {empty:,} of them empty" if empty else ""))
    text.append(f"; slots {first:,}:{stop:,} of the run")
    for mixture in header["mixtures"]:
        shares = ", ".join(f"{visible(name)} {share:.2%}" for name, share in mixture["shares"].items())
        text.append(f"\nstage {mixture['stage']} ({mixture['why']}): {shares}")
    return text


def run_heading(opened: Opened) -> Text:
    at = "has not begun" if opened.checkpoint is None else f"as of the checkpoint of step {opened.checkpoint:,}"
    text = Text.assemble((f"{opened.config.name}, {at}\n", "bold"))
    if opened.known_steps < opened.steps:
        text.append(
            f"its mixture follows the losses: steps after {opened.known_steps:,} are as it would be unchanged\n"
        )
    return text


def documents_table(documents: Sequence[dict[str, Any]], full: bool, steps: bool) -> Table:
    """One line per document and example; `steps` where they may be of several."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in [*(["step"] if steps else []), "row", "slots"]:
        table.add_column(name, justify="right", vertical="top", no_wrap=True)
    table.add_column("source and document", max_width=None if full else 44, overflow="fold")
    table.add_column("tokens of it", justify="right", no_wrap=True)
    table.add_column("text", overflow="fold")
    before = None
    for one in documents:
        here = one["step"], one["row"]
        if before not in (None, here):
            table.add_section()
        place = [f"{one['step']:,}"] if steps else []
        place = place + [str(one["row"])] if here != before else [""] * (len(place) + 1)
        text = visible(one["text"]) if full else " ".join(visible(one["text"]).split())
        if one["rearranged"]:
            text += "\n(as prepared; rearranged by fill-in-the-middle)"
        tokens = f"{_span(one['tokens'])}\nof {one['document_tokens']:,}"
        table.add_row(*place, _span(one["slots"]), record_text(one["source"], one["document"]), tokens, Text(text))
        before = here
    return table


def record_text(source: str, record: Mapping[str, Any]) -> Text:
    """What is known of a document, its id first and then a line for every column that says something."""
    text = Text.assemble((visible(source), "dim"), " ", (visible(str(record.get("id"))), "bold"))
    for column, value in record.items():
        if column in ("id", "source") or value is None:
            continue
        pairs = (
            value if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value) else [(column, value)]
        )
        for key, inner in pairs:
            shown = f"{inner:,}" if isinstance(inner, int) and not isinstance(inner, bool) else str(inner)
            shown = visible(shown if len(shown) <= LONGEST else shown[:LONGEST] + "…")
            text.append(f"\n{visible(str(key))}: {shown}", "dim")
    return text


def document_tables(opened: Opened, answer: dict[str, Any]) -> Group:
    """A document, how often a run reads it, and when."""
    counts = answer["counts"]
    heading = run_heading(opened)
    heading.append_text(record_text(answer["source"], answer["document"]))
    heading.append(
        f"\n{answer['document_tokens']:,} tokens, row {answer['shard_row']:,} of shard {answer['shard']:,}\n"
    )
    heading.append(
        f"read {counts['read']:,} times until step {opened.position.step:,}, to be read {counts['to_come']:,} times "
    )
    heading.append(f"until step {opened.steps:,}, undone by a rewind {counts['undone']:,} times")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("step", "row", "epoch", "stage", "tokens of it", "slots"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in answer["readings"]:
        places = f"{one['step']:,}", str(one["row"]), f"{one['epoch']:,}", str(one["stage"])
        spans = ["\n".join(_span(some[key]) for some in one["spans"]) for key in ("tokens", "slots")]
        told = {"undone": "read, then undone by a rewind"}.get(one["state"], one["state"])
        table.add_row(*places, *spans, told)
    if answer["left_out"]:
        table.caption = f"and {answer['left_out']:,} more; --limit N lists N, --json all"
    if not answer["readings"]:
        table = Text("no window that the run reads has it")
    return Group(heading, table)


def pipeline_texts(pipelines: Mapping[str, dict[str, Any]]) -> Group:
    """How sources were prepared, a line for every step that ran; sources that were prepared alike share them."""
    alike: dict[str, list[str]] = {}
    for name, pipeline in pipelines.items():
        steps = [f"    {key}: {_brief(value)}" for key, value in pipeline.items() if value is not None]
        alike.setdefault("\n".join(map(visible, steps)) or "    the manifest does not say", []).append(visible(name))
    return Group(*(Text(f"preparation of {', '.join(names)}\n{steps}") for steps, names in alike.items()))


def _brief(value: Any) -> str:
    """Scalars of a section, and the keys of what lies deeper."""
    if not isinstance(value, dict):
        return str(value)
    told = (f"{key} {_inner(inner)}" for key, inner in value.items() if inner not in (None, [], {}))
    return ", ".join(told) or "as by default"


def _inner(value: Any) -> str:
    if isinstance(value, dict | list):
        return "(" + ", ".join(map(str, value)) + ")"
    return f"{value:,}" if type(value) is int else str(value)


def _span(bounds: Sequence[int]) -> str:
    return f"{bounds[0]:,}:{bounds[1]:,}"
