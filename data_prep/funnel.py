"""The funnel: what every stage kept and dropped, in documents, bytes and tokens, and why."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Protocol

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from data_prep.console import count, right, size
from data_prep.manifest import writing


class Counted(Protocol):
    """Documents of a source: a part of text, or a run of tokens."""

    source: str
    documents: int
    bytes: int


@dataclass(frozen=True)
class Amount:
    """How much: documents, and bytes of their text in UTF-8."""

    documents: int
    bytes: int

    @staticmethod
    def of(parts: Sequence[Counted]) -> "Amount":
        return Amount(sum(part.documents for part in parts), sum(part.bytes for part in parts))

    @staticmethod
    def by_source(parts: Sequence[Counted]) -> "dict[str, Amount]":
        sources = dict.fromkeys(part.source for part in parts)
        return {name: Amount.of([part for part in parts if part.source == name]) for name in sources}


@dataclass(frozen=True)
class FunnelRow:
    """What a stage did to the documents.

    `dropped` is by reason; `changed` by what was done to documents that stay, its bytes those that their text lost;
    `sources` is what was kept, by source.
    """

    stage: str
    before: Amount
    after: Amount
    dropped: Mapping[str, Amount] = field(default_factory=dict)
    changed: Mapping[str, Amount] = field(default_factory=dict)
    sources: Mapping[str, Amount] = field(default_factory=dict)


def print_funnel(console: Console, rows: Sequence[FunnelRow], bytes_per_token: Mapping[str, float]) -> None:
    """A table of all stages and reasons, from what was read to what is kept of it.

    Shares are of what a stage was given, those of the last line of all that was read. Tokens are estimated by the
    bytes per token of what was written in the end, by source; nothing for none.
    """
    columns = (right(name) for name in ("documents", "", "text", ""))
    table = Table(Column("stage", overflow="fold"), *columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    if bytes_per_token:
        table.add_column("about\ntokens", justify="right", no_wrap=True)
    for cells, style in _lines(rows, bytes_per_token):
        # A reason that takes more than one line stays below its stage.
        label, *numbers = cells
        indent = len(label) - len(label.lstrip())
        table.add_row(Padding(Text(label.strip()), (0, 0, 0, indent)), *numbers[: len(table.columns) - 1], style=style)
    console.print(table)


def _lines(rows: Sequence[FunnelRow], bytes_per_token: Mapping[str, float]) -> Iterator[tuple[list[str], str]]:
    """The cells of each line of the table, and its style."""
    read, kept = rows[0].before, rows[-1].after
    yield _cells("read", read, None, "", 0), "dim"
    for row in rows:
        per_token = rate(row, bytes_per_token)
        yield _cells(row.stage, row.after, row.before, "", per_token), "bold"
        for reason, amount in sorted(row.dropped.items(), key=lambda item: (-item[1].documents, item[0])):
            if amount.documents:
                yield _cells(f"  {reason}", amount, row.before, "-", per_token), "none"
        for kind, amount in sorted(row.changed.items(), key=lambda item: (-item[1].documents, item[0])):
            if amount.documents:
                sign = "+" if amount.bytes < 0 else "-"
                label, documents, share, *text = _cells(f"  {kind}", amount, row.before, sign, per_token)
                documents = f"({documents.lstrip(sign)})"
                yield [label, documents, share, *(text if amount.bytes else ())], "dim"
    yield _cells("kept of all", kept, read, "", rate(rows[-1], bytes_per_token)), "bold"


def _cells(label: str, amount: Amount, whole: Amount | None, sign: str, rate: float) -> list[str]:
    shares = [share(part, of) for part, of in zip(astuple(amount), astuple(whole), strict=True)] if whole else ["", ""]
    documents, text = f"{sign}{amount.documents:,}", f"{sign}{size(abs(amount.bytes))}" if amount.bytes else ""
    tokens = f"{sign}{count(abs(amount.bytes) / rate)}" if rate and amount.bytes else ""
    return [label, documents, shares[0], text, shares[1] if text else "", tokens]


def rate(row: FunnelRow, bytes_per_token: Mapping[str, float]) -> float:
    """Bytes per token of what a stage kept, 0 where it is not known; a source without an output counts as the others.

    Sources differ by a factor of two and more: one figure for all would misjudge a stage that empties one of them.
    """
    known = {name: amount.bytes for name, amount in row.sources.items() if name in bytes_per_token and amount.bytes}
    if known:
        return sum(known.values()) / sum(amount / bytes_per_token[name] for name, amount in known.items())
    return sum(bytes_per_token.values()) / len(bytes_per_token) if bytes_per_token else 0


def write_funnel(path: Path, rows: Sequence[FunnelRow]) -> None:
    """Write the rows as JSON, unless they are there already."""
    text = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
    if not path.is_file() or path.read_text() != text:
        with writing(path) as temporary:
            temporary.write_text(text)


def share(part: int, whole: int) -> str:
    """Per cent, in which something lost or left never looks like nothing."""
    if not whole:
        return ""
    if 0 < abs(part) < whole / 2000:
        return "<0.1%"
    return ">99.9%" if whole * 0.9995 <= part < whole else f"{abs(part) / whole:.1%}"
