"""How many tokens of each source there are, which documents occur more than once, and the order that they lie in.

Works on runs, where the tokens of every document are known and no text is read: another share, number of epochs or
order tokenizes nothing again. Held-out documents stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from data_prep.config import Pipeline, UpsampleConfig
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.funnel import Amount, FunnelRow
from data_prep.manifest import Record, make_key
from data_prep.mix import cut, rearrange, shares
from data_prep.mix.copies import Copying
from data_prep.mix.rearrange import Plan
from data_prep.stages import Run
from data_prep.tokenize import runs
from maxlm.errors import DataError

STAGE, TRAIN = "mix", runs.SPLITS[0]


def wanted(config: Pipeline) -> bool:
    return config.mix is not None or config.shards.order is not None


def check_columns(config: Pipeline, parts: Sequence[Part]) -> None:
    """Raise `DataError` where documents lack a column that is asked for: before they are tokenized."""
    asked = {f"mix.upsample.{source}.by": (one.by, [source]) for source, one in _upsample(config).items()}
    if (order := config.shards.order) is not None:
        asked["shards.order.by"] = (order.by, order.sources or list(config.ingest.sources))
    for key, (name, sources) in asked.items():
        for part in parts:
            if part.source in sources and name not in part.pedigree:
                raise DataError(
                    f"{key}: documents of '{part.source}' have no column '{name}'; they have {', '.join(part.pedigree)}"
                )


def _upsample(config: Pipeline) -> Mapping[str, UpsampleConfig]:
    return config.mix.upsample if config.mix is not None else {}


def run(this: Run, made: list[runs.Run], dtype: str) -> list[runs.Run]:
    """The runs that are shuffled in the place of those that were made; a row of the funnel, and the table of shares."""
    if not wanted(this.config):
        return made
    train = [one for one in made if one.split == TRAIN and one.documents]
    held = [one for one in made if one.split != TRAIN]
    if this.config.mix is None:
        plans = {source: Plan(None, None, None) for source in this.config.ingest.sources}
    else:
        mixing = Mixing(this, train)
        plans = mixing.plans()
    if (order := this.config.shards.order) is not None:
        ordered = plans if order.sources is None else order.sources
        plans |= {name: replace(plan, order=order) for name, plan in plans.items() if name in ordered}
    after, records = _rearrange(this, [one for one in train if one.source in plans], plans, dtype)
    if order is not None:
        _say_unranked(this, order.by, records)
    if this.config.mix is not None:
        left = Amount.of([one for one in train if one.source not in plans])
        _add_row(this, made, [*after, *held], left, records)
        mixing.report(after)
    return [*after, *held]


class Mixing:
    """The shares of the sources: what there is, what is wanted of it, and where it is cut.

    A unit is what has one weight, a source or a group of them: its sources' runs have one line and one cut.
    """

    def __init__(self, this: Run, train: Sequence[runs.Run]):
        self.this, self.train, self.config = this, train, this.config.mix
        self.units = self.config.units(list(this.config.ingest.sources))
        self.copying = {
            source: Copying(self.config.upsample.get(source), self.config.max_epochs.get(unit, 1.0))
            for unit, sources in self.units.items()
            for source in sources
        }
        tasks = []
        for one in train:
            copying = self.copying[one.source]
            key = make_key("count", cut.VERSION, one.key, copying.key)
            tasks.append(Task(key, cut.count, (one, copying), 0))
        self.counts = dict(zip(train, this.tasks(STAGE, tasks, "counts"), strict=True))
        self.supplies = [
            shares.Supply(
                unit,
                self.config.weights.get(unit, 1.0),
                sum(self.counts[one].values["most"] for one in self._members(unit)),
            )
            for unit in self.units
        ]
        self.allocation = shares.allocate(self.config, self.supplies)
        for line in self.allocation.short:
            this.warn(f"mix: {line}; all sources give less, so that the shares hold")

    def _members(self, unit: str) -> list[runs.Run]:
        return [one for one in self.train if one.source in self.units[unit]]

    def plans(self) -> dict[str, Plan]:
        """What becomes of every source's runs; without the sources of weight 0."""
        folder, tasks, taking = self.this.folder(STAGE), {}, self.allocation.take
        for supply in self.supplies:
            if taking[supply.name] < supply.most and supply.weight:
                members, tokens = self._members(supply.name), taking[supply.name]
                key = make_key("cut", cut.VERSION, [self.counts[one].key for one in members], tokens)
                files = [folder.file(self.counts[one].key, cut.SUMS) for one in members]
                copying = [self.copying[one.source] for one in members]
                tasks[supply.name] = Task(key, cut.find_cut, (members, copying, files, tokens), 0)
        found = self.this.tasks(STAGE, list(tasks.values()), "shares") if tasks else []
        until = {unit: record.values["until"] for unit, record in zip(tasks, found, strict=True)}
        return {
            source: Plan(self.copying[source], until.get(supply.name), None)
            for supply in self.supplies
            if supply.weight
            for source in self.units[supply.name]
        }

    def report(self, after: Sequence[runs.Run]) -> None:
        """Print the table of shares, and publish it beside the funnel."""
        tokens = {}
        for source in self.copying:
            own = [one for one in self.train if one.source == source]
            epoch = sum(self.counts[one].values["once"] for one in own)
            taken = sum(one.tokens for one in after if one.source == source)
            tokens[source] = (sum(one.tokens for one in own), epoch, taken)
        rows = shares.by_source(self.units, self.allocation, tokens)
        key = make_key("report", shares.VERSION, [asdict(row) for row in rows])
        self.this.tasks(STAGE, [Task(key, shares.write_report, (rows,), 0)], "reports")
        self.this.publish(self.this.folder(STAGE).file(key, shares.REPORT), self.this.config.work / shares.REPORT)
        shares.print_shares(self.this.console, rows)
        for row in rows:
            if row.share_wanted and not row.taken:
                raise DataError(f"mix: the share of '{row.source}', {row.wanted:,} tokens, holds none of its documents")


def _rearrange(
    this: Run, train: Sequence[runs.Run], plans: Mapping[str, Plan], dtype: str
) -> tuple[list[runs.Run], list[Record]]:
    """The runs after the plans of their sources, and the records of those that were written anew."""
    changed = [one for one in train if plans[one.source] != Plan(None, None, None)]
    tasks = []
    for one in changed:
        key = make_key("rearrange", rearrange.VERSION, one.key, plans[one.source].key, dtype)
        arguments = (one, plans[one.source], dtype)
        tasks.append(Task(key, rearrange.write_run, arguments, one.bytes))
    records = dict(zip(changed, this.tasks(STAGE, tasks, "shards"), strict=True))
    after = []
    for one in train:
        if one in records:
            record = records[one]
            amounts = (record.values[name] for name in ("documents", "bytes", "tokens"))
            one = runs.Run(this.folder(STAGE).path / record.key, one.split, one.source, *amounts)
        after.append(one)
    return after, list(records.values())


def _say_unranked(this: Run, column: str, records: Sequence[Record]) -> None:
    ranked, unranked = (sum(record.values[name] for record in records) for name in ("ranked", "unranked"))
    if unranked and not ranked:
        raise DataError(f"shards.order.by: no document has a value of '{column}'")
    if unranked:
        this.say(STAGE, f"{unranked:,} of {ranked + unranked:,} documents have no {column}; they lie anywhere")


def _add_row(
    this: Run, before: Sequence[runs.Run], after: Sequence[runs.Run], left: Amount, records: Sequence[Record]
) -> None:
    """The funnel's row: documents that are not in the mixture, and copies of others that are."""
    left_out, repeated = (
        [sum(numbers) for numbers in zip((0, 0), *(record.values[name] for record in records), strict=True)]
        for name in ("left_out", "repeated")
    )
    dropped = {"not in the mixture": Amount(left.documents + left_out[0], left.bytes + left_out[1])}
    # What is repeated counts as text that was added.
    changed = {"copies": Amount(repeated[0], -repeated[1])}
    row = FunnelRow(STAGE, Amount.of(before), Amount.of(after), dropped, changed, Amount.by_source(after))
    this.funnel.append(row)
