"""The engine: a parallel map over tasks, and relational queries over small columns.

Nothing outside this room knows what runs them: processes of this machine or a Ray cluster the tasks, Daft the queries.
"""

# ruff: noqa: F401
import os

from data_prep.engine.local import Processes
from data_prep.engine.ray import Cluster
from data_prep.engine.tasks import Task, advance
from data_prep.engine.workers import Workers
from maxlm.errors import ConfigError


def open_workers(runner: str, count: int | None, address: str | None = None) -> Workers:
    """`native`: `count` processes of this machine, by default one per processor that this process may use.

    `ray`: the cluster at `address` (HOST:PORT), or one of `count` processors that is started on this machine.
    """
    if address is not None and runner != "ray":
        raise ConfigError("--address is for --runner ray")
    # Daft reads it when the first query runs; queries go where the tasks go.
    os.environ["DAFT_RUNNER"] = runner
    if runner == "ray":
        return Cluster(address, count if address else count or _processors())
    return Processes(count or _processors())


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
