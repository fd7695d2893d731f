"""What runs tasks: processes of this machine (local.py) or a Ray cluster (ray.py), with the same results."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_prep.engine.tasks import Task, report_to
from data_prep.manifest import Folder, Record
from maxlm.errors import MaxlmError

WHAT_TO_LOWER = (
    "use fewer workers or a smaller ingest.shard_bytes. What is done is kept, the same command goes on from there"
)


class Workers:
    """Runs tasks; whatever it needs for that stays until the block ends."""

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def run(self, folder: Folder, tasks: Sequence[Task], progress: Callable[[int], None]) -> tuple[list[Record], int]:
        """The records of all tasks, in order, and how many of them had to be made; what is there is not made again.

        `progress` is told the bytes done so far. Raises the first error of a task; tasks that are done stay done.
        """
        records = {task.key: record for task in tasks if (record := folder.find(task.key)) is not None}
        missing = list({task.key: task for task in tasks if task.key not in records}.values())
        if missing:
            # Large ones first: the last to finish should be small.
            with _memory_errors(folder.path.name):
                records |= self.make(folder, sorted(missing, key=lambda task: -task.size), progress)
        return [records[task.key] for task in tasks], len(missing)

    def run_here(self, folder: Folder, task: Task, progress: Callable[[int], None]) -> tuple[Record, bool]:
        """The record of one task, and whether it had to be made: in this process, which the queries are sent from."""
        if (record := folder.find(task.key)) is not None:
            return record, False
        with _memory_errors(folder.path.name):
            return make_here(folder, [task], progress)[task.key], True

    def make(self, folder: Folder, tasks: Sequence[Task], progress: Callable[[int], None]) -> dict[str, Record]:
        """Run every task; the records by key."""
        raise NotImplementedError


def make_here(folder: Folder, tasks: Sequence[Task], progress: Callable[[int], None]) -> dict[str, Record]:
    """Run tasks in this process, one after the other."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(done)

    report_to(add)
    try:
        return {task.key: task.function(folder, task.key, *task.arguments) for task in tasks}
    finally:
        report_to(None)


def killed(stage: str) -> MaxlmError:
    """The process of a task is gone; the system says no more than that."""
    return MaxlmError(f"{stage}: a worker process was killed, most often for want of memory; {WHAT_TO_LOWER}")


@contextlib.contextmanager
def _memory_errors(stage: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise MaxlmError(f"{stage}: there is not enough memory; {WHAT_TO_LOWER}") from None
