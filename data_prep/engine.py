"""The engine: a parallel map over tasks, and relational queries over small columns. Nothing else knows what runs them.

Queries run on Daft, embedded by default, on a Ray cluster with `DAFT_RUNNER=ray`; they see ids, hashes and counts,
never text. The map is a pool of spawned processes and not a Daft process function: the pool is ready in 0.06 s against
1.5 s, and Daft's embedded runner cannot split a column of paths into one task per path (`into_partitions` does nothing
there), so that its parallelism would depend on the batch size it happens to choose. Tasks carry paths, not text.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.manifest import Folder, Record
from maxlm.errors import MaxlmError

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

    import daft
    import pyarrow as pa

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """One result to make: `function(folder, key, *arguments)` writes its files and returns the committed record.

    `size` is its work in bytes, of which it tells `advance` as it goes; 0 where it cannot tell.
    """

    key: str
    function: Callable[..., Record]
    arguments: tuple[Any, ...]
    size: int


class Workers:
    """Runs tasks in `count` processes, which start when they are first needed and stay until the block ends."""

    def __init__(self, count: int):
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._done: Synchronized | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if error_type is not None:
            # Neither an error nor Ctrl-C should wait for tasks of minutes; a later run sweeps their temporary files.
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def run(self, folder: Folder, tasks: Sequence[Task], progress: Callable[[int], None]) -> tuple[list[Record], int]:
        """The records of all tasks, in order, and how many of them had to be made; what is there is not made again.

        `progress` is told the bytes done so far. Raises the first error of a task; tasks that are done stay done.
        """
        records = {task.key: record for task in tasks if (record := folder.find(task.key)) is not None}
        missing = list({task.key: task for task in tasks if task.key not in records}.values())
        if len(missing) == 1 or self.count == 1:
            _report_to(_Sum(progress))
            for task in missing:
                records[task.key] = task.function(folder, task.key, *task.arguments)
        elif missing:
            records |= self._run_in_processes(folder, missing, progress)
        return [records[task.key] for task in tasks], len(missing)

    def _run_in_processes(
        self, folder: Folder, tasks: Sequence[Task], progress: Callable[[int], None]
    ) -> dict[str, Record]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._done = context.Value("Q")
            self._pool = ProcessPoolExecutor(self.count, context, _start_worker, (self._done,))
        self._done.value = 0
        records: dict[str, Record] = {}
        try:
            # Large ones first: the last to finish should be small.
            futures: dict[Future, Task] = {
                self._pool.submit(task.function, folder, task.key, *task.arguments): task
                for task in sorted(tasks, key=lambda task: -task.size)
            }
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                records |= {futures[future].key: future.result() for future in finished}
                progress(self._done.value)
        except BrokenProcessPool:
            raise MaxlmError(
                f"{folder.path.name}: a worker process was killed, most often for want of memory; use fewer workers or "
                "a smaller ingest.shard_bytes. What is done is kept, the same command goes on"
            ) from None
        return records


class _Sum:
    """Passes increments on as their sum."""

    def __init__(self, progress: Callable[[int], None]):
        self.progress, self.total = progress, 0

    def __call__(self, count: int) -> None:
        self.total += count
        self.progress(self.total)


# Where the progress of the tasks of this process goes.
_advance: Callable[[int], None] | None = None


def advance(count: int) -> None:
    """Called by a task: `count` more bytes of its size are done."""
    if _advance is not None:
        _advance(count)


def _report_to(listener: Callable[[int], None]) -> None:
    global _advance
    _advance = listener


def _start_worker(done: "Synchronized") -> None:
    """Leave Ctrl-C to the parent, and end with it: a worker whose parent was killed would wait for tasks for ever."""

    def add(count: int) -> None:
        with done.get_lock():
            done.value += count

    _report_to(add)
    # There is a process per processor already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def scan(paths: Sequence[Path], columns: Sequence[str]) -> "daft.DataFrame":
    """Columns of parquet files as one table, with the file of each row as `path`."""
    os.environ |= {"DO_NOT_TRACK": "1", "DAFT_PROGRESS_BAR": "0", "DAFT_SHOW_QUERY_ID": "0"}
    import daft

    return daft.read_parquet([str(path) for path in paths], file_path_column="path").select(*columns, "path")


def repeated(table: "daft.DataFrame", key: str, order: Sequence[str], first: Sequence[str] = ()) -> "daft.DataFrame":
    """The rows whose `key` occurs more than once, with `copies` (how often) and `kept` (true for the first of them).

    The first is the smallest by `order`: columns compared as text; values of the first column named in `first` come
    before all others, in that sequence.
    """
    import daft
    from daft import col, lit
    from daft.functions import when

    rank = lit("")
    for position, value in enumerate(first):
        rank = when(col(order[0]) == value, lit(f"{position:06d}")).otherwise(rank)
    for name in order:
        rank = rank + lit("\t") + col(name).cast(daft.DataType.string())
    ranked = table.with_column("rank", rank)
    groups = ranked.groupby(key).agg(col("rank").count().alias("copies"), col("rank").min().alias("first"))
    joined = ranked.join(groups.where(col("copies") > 1), on=key)
    return joined.with_column("kept", col("rank") == col("first")).exclude("rank", "first")


def collect(table: "daft.DataFrame") -> "pa.Table":
    """The rows of a query in this process."""
    return table.to_arrow()
