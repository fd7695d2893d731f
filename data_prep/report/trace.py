"""What every stage of a pipeline got and did, found again by a walk that makes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.config import Pipeline
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.manifest import Record
from data_prep.status import Look, Status, look
from maxlm.data.shards import Manifest
from maxlm.errors import DataError


@dataclass(frozen=True)
class Step:
    """One stage that wrote lists: the parts before and after it, in the same order, and the records of its results.

    `stage` is what the parts' lists are called by; `row` the number of its row in the funnel.
    """

    stage: str
    row: int
    before: tuple[Part, ...]
    after: tuple[Part, ...]
    records: tuple[Record, ...]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The place of each part, by its name."""
        return {part.name: number for number, part in enumerate(self.before)}

    def list_of(self, number: int) -> Path | None:
        """The list that the stage wrote for a part, if it did anything to that."""
        added = self.after[number].lists[len(self.before[number].lists) :]
        return added[0][1] if added else None


class Trace(Look):
    """A look that remembers the steps; `status` says where it came to an end.

    `read` are the parts as they were read, `parts` what they have become by the last stage that is done.
    """

    def __init__(self, config: Pipeline):
        super().__init__(config)
        self.steps: list[Step] = []
        self.records: dict[str, list[Record]] = {}
        self.read: list[Part] = []
        self.parts: list[Part] = []
        self.manifests: dict[str, Manifest | None] = {}
        self.status: Status = look(config, self)

    def tasks(self, stage: str, tasks: Sequence[Task], unit: str) -> list[Record]:
        records = super().tasks(stage, tasks, unit)
        self.records.setdefault(stage, []).extend(records)
        return records

    def listed(self, stage: str, parts: Sequence[Part], records: Sequence[Record]) -> list[Part]:
        self.parts = super().listed(stage, parts, records)
        self.steps.append(Step(stage, len(self.funnel), tuple(parts), tuple(self.parts), tuple(records)))
        return self.parts

    def count_sources(self, parts: Sequence[Part]) -> None:
        super().count_sources(parts)
        self.parts = list(parts)
        self.read = self.read or self.parts

    def found_outputs(self, found: Mapping[Path, Manifest | None]) -> None:
        super().found_outputs(found)
        self.manifests = {str(directory): manifest for directory, manifest in found.items()}

    def label(self, step: int) -> str:
        """What the funnel calls a step; with the number of steps what is kept in the end."""
        return self.funnel[self.steps[step].row].stage if step < len(self.steps) else "kept in the end"

    def files(self, stage: str, kind: str) -> list[Path]:
        """The files of a stage's results that a record names by `kind`."""
        return [
            self.folder(stage).file(record.key, name)
            for record in self.records.get(stage, ())
            if isinstance(names := record.values.get(kind), list)
            for name in names
            if name in record.files
        ]


def trace(config: Pipeline) -> Trace:
    """Raises `DataError` where nothing has been read yet."""
    found = Trace(config)
    if not found.read:
        reason = found.status.problem or "its sources have not been read"
        raise DataError(f"{config.work}: nothing of the pipeline is there ({reason}); `maxlm-prep run` makes it")
    return found
