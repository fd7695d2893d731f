"""The funnel: what every stage kept and dropped, in documents, bytes and tokens, and why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.console import right, size
from data_prep.documents import Part
from data_prep.manifest import writing


@dataclass(frozen=True)
class Amount:
    """How much: documents, and bytes of their text in UTF-8."""

    documents: int
    bytes: int

    @staticmethod
    def of(parts: Sequence[Part]) -> "Amount":
        return Amount(sum(part.documents for part in parts), sum(part.bytes for part in parts))


@dataclass(frozen=True)
class FunnelRow:
    """What a stage did to the documents.

    `dropped` is by reason; `changed` by what was done to documents that stay, its bytes those that their text lost.
    """

    stage: str
    before: Amount
    after: Amount
    dropped: Mapping[str, Amount] = field(default_factory=dict)
    changed: Mapping[str, Amount] = field(default_factory=dict)


def print_funnel(console: Console, rows: Sequence[FunnelRow], bytes_per_token: float | None) -> None:
    """A table of all stages and reasons; tokens are estimated by the bytes per token of what was written in the end."""
    names = ("documents", "", "text", "", *(["about tokens"] if bytes_per_token else []))
    table = Table("stage", *map(right, names))

    def tokens(count: int) -> list[str]:
        return [f"{count / bytes_per_token:,.0f}"] if bytes_per_token else []

    def add(label: str, amount: Amount, whole: Amount, sign: str, style: str | None) -> None:
        table.add_row(
            label,
            f"{sign}{amount.documents:,}",
            _share(amount.documents, whole.documents),
            f"{sign}{size(amount.bytes)}",
            _share(amount.bytes, whole.bytes),
            *(f"{sign}{text}" for text in tokens(amount.bytes)),
            style=style,
        )

    for row in rows:
        add(row.stage, row.after, row.before, "", "bold")
        for reason, amount in sorted(row.dropped.items(), key=lambda item: (-item[1].documents, item[0])):
            if amount.documents:
                add(f"  {reason}", amount, row.before, "-", None)
        for kind, amount in sorted(row.changed.items()):
            table.add_row(
                f"  {kind}",
                f"({amount.documents:,})",
                _share(amount.documents, row.before.documents),
                f"-{size(amount.bytes)}" if amount.bytes else "",
                _share(amount.bytes, row.before.bytes) if amount.bytes else "",
                *(f"-{text}" for text in tokens(amount.bytes) if amount.bytes),
                style="dim",
            )
    console.print(table)


def write_funnel(path: Path, rows: Sequence[FunnelRow]) -> None:
    """Write the rows as JSON, unless they are there already."""
    text = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
    if not path.is_file() or path.read_text() != text:
        with writing(path) as temporary:
            temporary.write_text(text)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""
