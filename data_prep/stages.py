"""What a stage is given: it runs tasks, takes over their lists, and says what happened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from data_prep import lists
from data_prep.config import Selection
from data_prep.console import progress
from data_prep.documents import Part
from data_prep.engine import Task, Workers
from data_prep.funnel import Amount, FunnelRow
from data_prep.manifest import Folder, Record, make_key, writing
from maxlm.data.shards import Manifest


class Run:
    """One run of a pipeline; every stage adds a row to the funnel and marks the results it used."""

    def __init__(
        self, config: Selection, console: Console, workers: Workers, hide: Callable[[bytes], bytes] | None = None
    ):
        """`hide` takes personal data out of files that are published."""
        self.config, self.console, self.workers = config, console, workers
        self.hide = hide or (lambda data: data)
        self.funnel: list[FunnelRow] = []
        self.used: dict[str, set[str]] = {}

    def folder(self, stage: str) -> Folder:
        # Workers of a cluster do not start in this process's directory.
        return Folder(self.config.work.absolute() / stage)

    def tasks(self, stage: str, tasks: Sequence[Task], unit: str) -> list[Record]:
        """Run the tasks of a stage that are missing, and say how many there were."""
        with progress(self.console, stage, sum(task.size for task in tasks)) as report:
            records, made = self.workers.run(self.folder(stage), tasks, report)
        self.used.setdefault(stage, set()).update(task.key for task in tasks)
        self.say(stage, f"{len(tasks) - made} of {len(tasks)} {unit} up to date" + (f", {made} made" if made else ""))
        return records

    def query(self, stage: str, task: Task) -> Record:
        """Run one task in this process, from where queries reach the engine; tasks of `tasks` run anywhere."""
        with progress(self.console, stage, task.size) as report:
            record, made = self.workers.run_here(self.folder(stage), task, report)
        self.used.setdefault(stage, set()).add(task.key)
        self.say(stage, "query made" if made else "query up to date")
        return record

    def map_parts(
        self, stage: str, parts: Sequence[Part], function: Callable[..., Record], version: int, *arguments: object
    ) -> list[Record]:
        """`function(folder, key, part, *arguments)` for every part; the arguments are JSON values or have a `key`."""
        settings = [getattr(argument, "key", argument) for argument in arguments]
        tasks = [
            Task(make_key(stage, version, part.key, *settings), function, (part, *arguments), part.bytes)
            for part in parts
        ]
        return self.tasks(stage, tasks, "shards")

    def apply(self, stage: str, parts: Sequence[Part], records: Sequence[Record]) -> list[Part]:
        """The parts after the lists of a stage, with a row in the funnel; a part without a list stays the same."""
        after = self.listed(stage, parts, records)
        dropped, changed = (
            {name: Amount(*amount) for name, amount in lists.total(records, kind).items()}
            for kind in ("dropped", "changed")
        )
        self.funnel.append(FunnelRow(stage, Amount.of(parts), Amount.of(after), dropped, changed))
        return after

    def listed(self, stage: str, parts: Sequence[Part], records: Sequence[Record]) -> list[Part]:
        found = {name: (record, entry) for record in records for name, entry in record.values["lists"].items()}
        after = []
        for part in parts:
            if part.name in found:
                record, entry = found[part.name]
                # By its content: a list that was made again and is the same redoes nothing.
                key = make_key(stage, 1, part.key, entry["content"])
                path = self.folder(stage).file(record.key, f"{part.name}.parquet")
                part = part.with_list(stage, path, key, entry["documents"], entry["bytes"])
            after.append(part)
        return after

    def count_sources(self, parts: Sequence[Part]) -> None:
        """What the last stage that has a row in the funnel kept, by source."""
        self.funnel[-1] = replace(self.funnel[-1], sources=Amount.by_source(parts))

    def say(self, stage: str, text: str) -> None:
        self.console.print(f"{stage}: {text}", highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.say("warning", text)

    def found_outputs(self, found: Mapping[Path, Manifest | None]) -> None:
        """Told which output directories are up to date, before the others are made."""
        self.say("output", f"{sum(map(bool, found.values()))} of {len(found)} directories up to date")

    def publish(self, source: Path, path: Path) -> None:
        """Copy a JSON file of a result to where its reader finds it, unless it is there already."""
        data = self.hide(source.read_bytes())
        if not path.is_file() or path.read_bytes() != data:
            with writing(path) as temporary:
                temporary.write_bytes(data)

    def prune(self) -> None:
        """Delete intermediate results of former configurations, those of stages that it no longer has among them."""
        for path in self.config.work.absolute().iterdir():
            if path.is_dir():
                Folder(path).prune(self.used.get(path.name, ()))
