"""What a pipeline has, what it lacks and what is left of former configurations: a walk that makes nothing.

The stages themselves are run, up to the first task that is missing, so that what is said here is what a run would do.
"""

import contextlib
import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from data_prep.config import Pipeline
from data_prep.console import right, size
from data_prep.engine import Task, Workers
from data_prep.manifest import TEMPORARY, Record, is_key
from data_prep.pipeline import LOCK, check, planned, walk
from data_prep.stages import Run
from maxlm.data.shards import Manifest
from maxlm.errors import MaxlmError

# What the tasks of a stage are called where they have other names.
TASKS = {
    "tokenizer": ("tokenizer", "comparison"),
    "mix": ("tokenize", "mix"),
    "shards": ("tokenize", "shuffle"),
}


@dataclass
class StageStatus:
    """`done` of `total` results are there, both null where an earlier stage must end first.

    `begun` are missing results that have unfinished files. `others` are results on disk that the stages did not ask
    for, and `other_bytes` the size of their files: where all stages are done those of former configurations. A stage
    that is not `planned` has only such results.
    """

    stage: str
    done: int | None = None
    total: int | None = None
    begun: int = 0
    others: int = 0
    other_bytes: int = 0
    planned: bool = True


@dataclass
class Status:
    """The stages that have results or tasks, in order; the output directories and whether each is up to date.

    `waits_for` is the first stage that is not done, null where all are; `problem` is what keeps a run from going on.
    `running` says who runs the pipeline now, null for nobody.
    """

    stages: list[StageStatus] = field(default_factory=list)
    outputs: dict[str, bool] = field(default_factory=dict)
    waits_for: str | None = None
    problem: str | None = None
    running: str | None = None

    @property
    def done(self) -> bool:
        return self.waits_for is None and self.problem is None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"done": self.done}


class Unfinished(Exception):
    """The walk came to a stage whose results are not all there."""


class Look(Run):
    """A run that finds results and makes none; workers without `make` see to it that nothing slips through."""

    def __init__(self, config: Pipeline):
        super().__init__(config, Console(quiet=True), Workers())
        self.found: dict[str, StageStatus] = {}
        self.outputs: dict[str, bool] = {}

    def tasks(self, stage: str, tasks: Sequence[Task], unit: str) -> list[Record]:
        records = {task.key: self.folder(stage).find(task.key) for task in tasks}
        missing = [key for key, record in records.items() if record is None]
        self.used.setdefault(stage, set()).update(records)
        entry = self.found.setdefault(stage, StageStatus(stage, 0, 0))
        entry.total += len(records)
        entry.done += len(records) - len(missing)
        entry.begun += sum(any((self.folder(stage).path / key).glob(f"*{TEMPORARY}")) for key in missing)
        # Where outputs are missing, what follows the last task writes them.
        if missing or not all(self.outputs.values()):
            raise Unfinished(stage)
        return [records[task.key] for task in tasks]

    def query(self, stage: str, task: Task) -> Record:
        return self.tasks(stage, [task], "queries")[0]

    def found_outputs(self, found: Mapping[Path, Manifest | None]) -> None:
        self.outputs = {str(directory): manifest is not None for directory, manifest in found.items()}

    def publish(self, source: Path, path: Path) -> None:
        pass


def look(config: Pipeline, this: Look | None = None) -> Status:
    """The state of a pipeline on disk; reads it beside a run, and writes nothing. `this` sees what the stages find."""
    status, this = Status(running=_who_runs(config.work)), this or Look(config)
    for step in (lambda: walk(this, "shards"), lambda: check(config)):
        try:
            step()
        except Unfinished as error:
            status.waits_for = str(error)
        except MaxlmError as error:
            # What a run says first, whatever else is wrong.
            status.problem = str(error)
    status.outputs = this.outputs
    expected = [name for stage in planned(config) for name in TASKS.get(stage, (stage,))]
    for stage in dict.fromkeys([*this.found, *expected, *sorted(path.name for path in _directories(config.work))]):
        entry = this.found.get(stage, StageStatus(stage, planned=stage in expected))
        for path in _directories(config.work / stage):
            if is_key(path.name) and path.name not in this.used.get(stage, ()):
                entry.others += 1
                entry.other_bytes += _size(path)
        # Shards that are finished have moved into the outputs.
        if entry.others or entry.total is not None or (entry.planned and not status.done):
            status.stages.append(entry)
    return status


def print_status(console: Console, config: Pipeline, status: Status) -> None:
    """A table of the stages, a line for every output directory, and one on what a run would do."""
    table = Table("stage", right("results"), Column("state"), Column("other results on disk"))
    for entry in status.stages:
        others = f"{entry.others:,}, {size(entry.other_bytes)}" if entry.others else ""
        done = f"{entry.done:,} of {entry.total:,}" if entry.total is not None else ""
        table.add_row(entry.stage, done, _state(entry, status), others)
    console.print(table)
    if status.done and any(entry.others for entry in status.stages):
        lines = ["other results are of former configurations; the next `maxlm-prep run` deletes them"]
    else:
        lines = []
    lines += [f"{directory}: {'up to date' if done else 'to be written'}" for directory, done in status.outputs.items()]
    lines.append(f"at work now: {status.running}" if status.running else f"no run is at work in {config.work}")
    if status.problem:
        lines.append(f"a run would stop: {status.problem}")
    else:
        lines.append("all is done" if status.done else f"a run would go on with {status.waits_for}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _state(entry: StageStatus, status: Status) -> str:
    if entry.total is None:
        return f"waits for {status.waits_for}" if status.waits_for and entry.planned else ""
    if entry.done == entry.total:
        return "done"
    return f"{entry.total - entry.done:,} missing" + (f", {entry.begun:,} of them begun" if entry.begun else "")


def _who_runs(work: Path) -> str | None:
    """What the run that holds the lock wrote into it; a lock that is shared for a moment stops no run, which waits."""
    try:
        descriptor = os.open(work / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.read(descriptor, 1000).decode(errors="replace").strip() or "a run"
    finally:
        os.close(descriptor)
    return None


def _directories(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [entry for entry in path.iterdir() if entry.is_dir()]
    return []


def _size(directory: Path) -> int:
    """Bytes of the files of a result; those that a run beside this one removes meanwhile are left out."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
