"""From the tokens that sources have and the shares that are wanted to the tokens that each of them gives."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Column, Table

from data_prep.config import MixConfig
from data_prep.console import count
from data_prep.manifest import Folder, Record, writing
from maxlm.errors import DataError

VERSION, REPORT = 1, "mix.json"


@dataclass(frozen=True)
class Supply:
    """The training tokens that a unit, one source or several of one weight, has in max_epochs."""

    name: str
    weight: float
    most: int


@dataclass(frozen=True)
class Share:
    """A source's part of the mixture, in tokens.

    `available` are those of its documents, once each; `epoch` those of one epoch, which upsampling changes; `wanted`
    what the configuration asks for; `taken` what it gets. `share_wanted` and `share` are of all tokens.
    """

    source: str
    unit: str
    available: int
    epoch: int
    wanted: int
    taken: int
    share_wanted: float
    share: float

    @property
    def epochs(self) -> float:
        return self.taken / self.epoch if self.epoch else 0.0


@dataclass(frozen=True)
class Allocation:
    """Of every unit its share of all tokens, the tokens wanted of it and those to take; and what is short, in words."""

    shares: dict[str, float]
    wanted: dict[str, int]
    take: dict[str, int]
    short: list[str]


def allocate(config: MixConfig, supplies: Sequence[Supply]) -> Allocation:
    """Raises `DataError` where a unit has less than its share and `exhausted` is stop."""
    total = sum(supply.weight for supply in supplies)
    share = {supply.name: supply.weight / total for supply in supplies}
    possible = min(int(supply.most / share[supply.name]) for supply in supplies if supply.weight)
    wanted = possible if config.tokens is None else config.tokens
    short = [
        f"'{one.name}' has {one.most:,} tokens in {config.max_epochs.get(one.name, 1):g} epochs, and its share is "
        f"{round(share[one.name] * wanted):,} of {wanted:,}"
        for one in supplies
        if one.most < int(share[one.name] * wanted)
    ]
    if short and config.exhausted == "stop":
        raise DataError(
            f"mix: {'; '.join(short)}; lower mix.tokens to {possible:,}, raise mix.max_epochs, or set mix.exhausted to "
            "shrink"
        )
    # Rounded up, as the unit that bounds the whole must not lose a document to it.
    taken = min(wanted, possible)
    take = {one.name: min(one.most, math.ceil(share[one.name] * taken)) for one in supplies}
    return Allocation(share, {name: round(part * wanted) for name, part in share.items()}, take, short)


def by_source(
    units: Mapping[str, Sequence[str]], allocation: Allocation, tokens: Mapping[str, tuple[int, int, int]]
) -> list[Share]:
    """The shares of sources; `tokens` are those available, of one epoch, and taken. A unit has its sources' sizes."""
    everything, rows = sum(taken for _, _, taken in tokens.values()), []
    for unit, sources in units.items():
        whole = sum(tokens[source][1] for source in sources)
        for source in sources:
            available, epoch, taken = tokens[source]
            part = epoch / whole if whole else 0.0
            wanted, share = round(allocation.wanted[unit] * part), allocation.shares[unit] * part
            rows.append(Share(source, unit, available, epoch, wanted, taken, share, taken / max(1, everything)))
    return rows


def print_shares(console: Console, rows: Sequence[Share]) -> None:
    """A table of the sources, in tokens, with a line for all of them."""
    grouped = any(row.unit not in (row.source, "all") for row in rows)
    upsampled = any(row.epoch != row.available for row in rows)
    table = Table(Column("source", overflow="fold"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = [*(["group"] if grouped else []), "available", *(["up-\nsampled"] if upsampled else [])]
    for name in (*names, "wanted", "taken", "epochs", "share\nwanted", "share\ntaken"):
        table.add_column(name, justify="right", no_wrap=True)
    everything = Share("all", "", *(sum(getattr(row, name) for row in rows) for name in TOKENS), 1.0, 1.0)
    for row in (*rows, everything):
        cells = [row.source, *([row.unit] if grouped else []), count(row.available)]
        cells += [count(row.epoch)] if upsampled else []
        cells += [count(row.wanted), count(row.taken), f"{row.epochs:.3f}"]
        shown = (f"{row.share_wanted:.2%}", f"{row.share:.2%}")
        table.add_row(*cells, *shown, style="bold" if row is everything else None)
    console.print(table)


TOKENS = ("available", "epoch", "wanted", "taken")


def write_report(folder: Folder, key: str, rows: Sequence[Share]) -> Record:
    """The shares as JSON."""
    with writing(folder.file(key, REPORT)) as temporary:
        report = {"sources": [asdict(row) | {"epochs": row.epochs} for row in rows]}
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    return folder.commit(key, [REPORT])
