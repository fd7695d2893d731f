"""The mixture of a run for the terminal: its parts, a picture of the shares, tokens and epochs per source."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from string import ascii_letters
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from maxlm.config import DataConfig
from maxlm.data.overview import Overview, Part
from maxlm.report.page import PALETTE
from maxlm.report.progress import compact
from maxlm.report.terminal import visible

COLUMNS, ROWS = 72, 12  # of the picture, which fits a terminal of 80 characters
AT_A_TIME = 5  # parts beside each other in the table of sources
MOST_PARTS = 25  # that a table lists


def mixture_tables(found: Overview, data: DataConfig, done: int = 0) -> Group:
    """Everything that is known of a run's mixture; `done` steps of it lie behind."""
    parts = merged(found.parts)
    items = [heading(found, done), parts_table(parts), picture(found), *sources_tables(found, parts)]
    notes = [Text(note) for note in notes_of(found, data)]
    return Group(*(line for item in items for line in (item, "")), *notes)


def to_json(found: Overview) -> dict[str, Any]:
    """Steps count from 1 as in metrics.jsonl; `steps` of a part are its first and last, which others may share."""
    parts = [
        part.segment.describe()
        | {
            "steps": [part.segment.first_step + 1, part.last_step + 1],
            "first_token": part.segment.first_tokens,
            "tokens": part.tokens,
            "tokens_by_source": part.tokens_by_source,
            "epochs": dict(part.epochs),
            "used_up": list(part.used_up),
            "abandoned_tokens": dict(part.abandoned),
            "empty_examples": part.empty,
            "undone_examples": part.undone,
        }
        for part in found.parts
    ]
    for part in parts:
        del part["abandoned"]  # in windows, also of sources that are not here
    totals = {"steps": found.steps, "tokens": found.tokens, "total_tokens": found.total_tokens}
    by_source = {"tokens_by_source": found.tokens_by_source, "without_data": list(found.unknown)}
    return totals | by_source | {"parts": parts}


def merged(parts: Sequence[Part]) -> list[Part]:
    """The parts with those that follow each other in one stage and differ by online weights alone as one."""
    found = []
    for _, group in groupby(
        parts, key=lambda part: (part.segment.kind == "online", part.segment.stage, part.segment.shape)
    ):
        first, *rest = group
        if first.segment.kind != "online":
            found += [first, *rest]
            continue
        for part in rest:
            read = {name: first.read.get(name, 0) + part.read.get(name, 0) for name in first.read | part.read}
            first = replace(
                first,
                examples=first.examples + part.examples,
                empty=first.empty + part.empty,
                undone=first.undone + part.undone,
                read=read,
                epochs=part.epochs,
            )
        found.append(first)
    return found


def heading(found: Overview, done: int) -> Text:
    text = Text(f"mixture: {found.steps:,} steps, {found.tokens:,} tokens", "bold")
    if done:
        text.append(f"; {done:,} steps are done", "not bold")
    return text


def parts_table(parts: Sequence[Part]) -> Table:
    table = Table(title_justify="left")
    for name in ("stage", "from step", "to step", "tokens", "seq_len", "batch_tokens"):
        table.add_column(name, justify="right")
    table.add_column("begins with")
    table.add_column("share of the slots, as they are read")
    for part in parts[:MOST_PARTS]:
        segment = part.segment
        if segment.kind == "end":
            table.add_row("", f"{segment.first_step + 1:,}", "", "", "", "", "the end of the data", "")
            continue
        steps = f"{segment.first_step + 1:,}", f"{part.last_step + 1:,}"
        batch = f"{segment.batch_size * segment.seq_len:,}"
        table.add_row(
            str(segment.stage), *steps, f"{part.tokens:,}", f"{segment.seq_len:,}", batch, segment.kind, _shares(part)
        )
    if len(parts) > MOST_PARTS:
        table.caption = f"and {len(parts) - MOST_PARTS:,} more parts; --json has them all"
    return table


def picture(found: Overview) -> Group:
    """The shares over the run as bars on top of each other, a letter and a colour for each source."""
    names = list(found.tokens_by_source)
    shares = found.shares(COLUMNS)
    columns = [_column(list(row)) for row in shares.tolist()]
    lines = []
    for row in range(ROWS):
        line = Text({0: "100% ", ROWS - 1: "  0% "}.get(row, "     "))
        for index, cells in groupby(column[row] for column in columns):
            line.append(_letter(index) * len(list(cells)), _style(index))
        lines.append(line)
    lines.append(Text("     " + _stages(found)))
    lines.append(Text("     0" + f"{compact(found.tokens)} tokens".rjust(COLUMNS - 1)))
    legend = Text("     ")
    for index, name in enumerate(names):
        legend.append(_letter(index), _style(index))
        legend.append(f" {visible(name)}   ")
    return Group(*lines, legend)


def sources_tables(found: Overview, parts: Sequence[Part]) -> Iterator[Table]:
    """Tokens of every source in the run and its parts, and how often it has been read by the end of each."""
    parts = [part for part in parts if part.examples]
    shown = parts if 1 < len(parts) <= MOST_PARTS else []
    total, last = max(found.tokens, 1), found.parts[-1].epochs
    for start in range(0, max(len(shown), 1), AT_A_TIME):
        table = Table()
        table.add_column("")
        table.add_column("source")
        if not start:
            for name in ("tokens", "share", "epochs"):
                table.add_column(name, justify="right")
        some = shown[start : start + AT_A_TIME]
        for part in some:
            table.add_column(f"stage {part.segment.stage}, to step {part.last_step + 1:,}", justify="right")
        for index, (name, tokens) in enumerate(found.tokens_by_source.items()):
            whole = [f"{tokens:,}", f"{tokens / total:.2%}", _epochs(last, name)] if not start else []
            cells = [f"{part.tokens_by_source.get(name, 0):,}{brackets(part.epochs, name)}" for part in some]
            table.add_row(Text(_letter(index), _style(index)), Text(visible(name)), *whole, *cells)
        if some and last:
            table.caption = "tokens in the stage, and in brackets the epochs from the start of the run to its end"
        yield table


def notes_of(found: Overview, data: DataConfig) -> Iterator[str]:
    """Where data run out, and everything that is not read or not learned from, in sentences."""
    if found.unknown:
        names = ", ".join(map(visible, found.unknown))
        yield f"not here: {names}; epochs, and where data run out, need the data"
    for part in found.parts:
        segment = part.segment
        if not part.used_up and segment.kind != "end":
            continue
        reached = ", ".join(f"{name} has been read {data.sources[name].max_epochs:g} times" for name in part.used_up)
        reached = reached or "of a source with max_epochs no block is left for the next length"
        where = f"at token {segment.first_tokens:,} (step {segment.first_step + 1:,}, stage {segment.stage})"
        then = "the others go on with their shares"
        if segment.kind == "end":
            then = f"the run ends with {found.tokens:,} of {found.total_tokens:,} tokens"
        yield f"data run out {where}: {reached}; {then} (data.exhausted: {data.exhausted})"
    for part in found.parts:
        where = f"step {part.segment.first_step + 1:,}"
        for name, tokens in part.abandoned.items():
            share = f" ({tokens:,} tokens)"
            yield f"abandoned at {where}, where the length changes: the rest of a block of {name}{share}"
        if part.empty:
            yield f"step {part.last_step + 1:,} is filled up with {part.empty:,} empty examples"
        if part.undone:
            yield f"undone by a rewind: {part.undone:,} examples after step {part.last_step + 1:,}"


def _shares(part: Part) -> str:
    if not part.examples:
        return "undone"
    shares = sorted(part.read.items(), key=lambda item: -item[1])
    told = [f"{visible(name)} {windows / part.examples:.2%}" for name, windows in shares[:6]]
    return ", ".join(told) + (f" and {len(shares) - 6} more" if len(shares) > 6 else "")


def _epochs(epochs: Mapping[str, float], name: str) -> str:
    return f"{epochs[name]:.3g}" if name in epochs else "?"


def brackets(epochs: Mapping[str, float], name: str) -> str:
    """A source's epochs, behind its tokens; nothing where its size is not known."""
    return f" ({epochs[name]:.3g})" if name in epochs else ""


def _column(shares: list[float]) -> list[int]:
    """Which source each cell of a column shows, from the top: as many cells as its share, by largest remainder."""
    cells = [int(share * ROWS) for share in shares]
    rest = sorted(range(len(shares)), key=lambda index: cells[index] - shares[index] * ROWS)
    for index in rest[: max(0, ROWS - sum(cells))]:
        cells[index] += 1
    return [index for index, count in enumerate(cells) for _ in range(count)][:ROWS]


def _letter(index: int) -> str:
    return ascii_letters.swapcase()[index] if index < len(ascii_letters) else "*"


def _style(index: int) -> str:
    return f"bold white on {PALETTE[index % len(PALETTE)]}"


def _stages(found: Overview) -> str:
    """A line with the number of each stage where it begins."""
    line, tokens, stage = [" "] * COLUMNS, 0, -1
    for part in found.parts:
        if part.examples and part.segment.stage != stage:
            stage = part.segment.stage
            label = f"|{stage}"
            start = min(tokens * COLUMNS // found.tokens, COLUMNS - len(label))
            line[start : start + len(label)] = label
        tokens += part.tokens
    return "".join(line[:COLUMNS])
