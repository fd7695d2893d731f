"""Tasks on a Ray cluster, one processor each; the text stays on storage that all nodes share.

Ray core tasks over paths and not Ray Data: Ray Data carries text through its object store, which a measurement found
three times as slow, and a task that is a function of paths is the same on one machine and on many.
"""

import contextlib
import importlib.util
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.engine.tasks import Task, report_to
from data_prep.engine.workers import Workers, killed
from data_prep.manifest import TEMPORARY, Folder, Record, writing
from maxlm.errors import ConfigError, MaxlmError, StartError

POLL_SECONDS, REPORT_SECONDS = 0.2, 0.5
# How long a port may take to answer, Ray to let a process in, and a node to run its first task.
ANSWER_SECONDS, CONNECT_SECONDS, NODE_SECONDS = 10, 30, 120
# Tasks that are submitted per processor: enough that none waits, and few enough that 100,000 tasks fill no memory.
AHEAD = 2
# How often a task is tried again when its process or its node is lost. Errors of the task itself are not tried again.
RETRIES = 3
# Nothing is reported to anybody, and nothing printed but errors.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_DASHBOARD": "1",
}


class Cluster(Workers):
    """Runs tasks on the cluster at `address`, or on one that it starts on this machine with `count` processors.

    With an address, `count` is how many tasks run at once; None for as many as the cluster has processors. Ray is
    started or connected to (seconds) when the first task or query is missing, so a run with nothing to do is quick.
    """

    def __init__(self, address: str | None, count: int | None):
        if importlib.util.find_spec("ray") is None:
            raise MaxlmError("the module 'ray' is not installed; --runner ray needs it: pip install 'maxlm[prep,ray]'")
        self.address, self.count = address and _checked(address), count
        self._board: Any = None

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            import ray

            self._board = None
            ray.shutdown()

    def run_here(self, folder: Folder, task: Task, progress: Callable[[int], None]) -> tuple[Record, bool]:
        if folder.find(task.key) is None:
            self._start(folder.path.parent)
        return super().run_here(folder, task, progress)

    def make(self, folder: Folder, tasks: Sequence[Task], progress: Callable[[int], None]) -> dict[str, Record]:
        self._start(folder.path.parent)
        import ray
        from ray import exceptions

        run = ray.remote(num_cpus=1, max_retries=RETRIES)(run_task)
        ray.get(self._board.clear.remote())
        records: dict[str, Record] = {}
        waiting: dict[Any, str] = {}
        queue, told = iter(tasks), 0.0
        try:
            while len(records) < len(tasks):
                for task in islice(queue, max(0, self._in_flight() - len(waiting))):
                    call = (task.function, folder, task.key, task.arguments)
                    waiting[run.options(name=folder.path.name).remote(*call, self._board, os.getcwd())] = task.key
                done, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
                records |= {waiting.pop(reference): ray.get(reference) for reference in done}
                if time.monotonic() - told >= POLL_SECONDS or len(records) == len(tasks):
                    told = time.monotonic()
                    with contextlib.suppress(exceptions.RayActorError, exceptions.GetTimeoutError):
                        progress(ray.get(self._board.total.remote(), timeout=ANSWER_SECONDS))
        except BaseException as error:
            # Tasks end with the connection, which `__exit__` closes. Cancelled one by one they would end this process:
            # Ray aborts, with a trace of its own, where a task finishes while it is cancelled.
            raise _plain(error, folder.path.name) from None
        return records

    def _in_flight(self) -> int:
        """Asked anew each time: clusters grow and shrink."""
        import ray

        ahead = AHEAD * int(ray.cluster_resources().get("CPU", 1))
        return min(ahead, self.count) if self.address and self.count else max(1, ahead)

    def _start(self, work: Path) -> None:
        if self._board is not None:
            return
        os.environ |= ENVIRONMENT
        import ray

        if self.address:
            _try(self.address)
        cluster = {"address": self.address} if self.address else {"address": "local", "num_cpus": self.count}
        try:
            ray.init(**cluster, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise StartError(f"Ray cannot be reached or started: {_first_line(error)}") from None
        here = ray.get_runtime_context().get_node_id()
        self._board = ray.remote(num_cpus=0, max_restarts=-1)(Board).options(**_on_node(here)).remote()
        _check_nodes(work)


class Board:
    """Where tasks tell how far they are: bytes done by key, so that a task that starts again counts once."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.done: dict[str, int] = {}

    def tell(self, key: str, done: int) -> None:
        self.done[key] = done

    def total(self) -> int:
        return sum(self.done.values())


def run_task(
    function: Callable[..., Record], folder: Folder, key: str, arguments: tuple[Any, ...], board: Any, directory: str
) -> Record:
    """A task in a process of the cluster; paths that are relative are so to `directory`, where the run started."""
    with contextlib.suppress(OSError):
        os.chdir(directory)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    done, told = 0, 0.0

    def add(count: int) -> None:
        nonlocal done, told
        done += count
        if (now := time.monotonic()) - told >= REPORT_SECONDS:
            told = now
            board.tell.remote(key, done)

    report_to(add)
    record = function(folder, key, *arguments)
    board.tell.remote(key, done)
    return record


def _checked(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--address: found '{address}', expected HOST:PORT of a Ray cluster, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from None
    return address


def _try(address: str) -> None:
    """Connect in another process: on a port that is not a cluster's, Ray waits for ever or ends the process."""
    code = f"import ray; ray.init({address!r}, log_to_driver=False, logging_level=50)"
    try:
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=CONNECT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise _no_cluster(address, f"no answer in {CONNECT_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        if "InvalidAuthToken" in error.stderr:
            raise StartError(
                f"--address {address}: the cluster asks for a token, and Ray has none here; set RAY_AUTH_MODE=token, "
                "and RAY_AUTH_TOKEN_PATH to the file with the cluster's token where that is not ~/.ray/auth_token"
            ) from None
        raise _no_cluster(address, error.stderr.strip().rpartition("\n")[2]) from None


def _no_cluster(address: str, reason: str) -> StartError:
    return StartError(
        f"--address {address}: no Ray cluster can be reached there ({reason}); expected the address that `ray start "
        "--head` printed, with port 6379 where none was chosen"
    )


def _check_nodes(work: Path) -> None:
    """Every node must see the work directory, and have this package."""
    import ray

    marker = work / f"shared-{secrets.token_hex(8)}"
    with writing(marker) as temporary:
        temporary.write_text(marker.name)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        probe = ray.remote(num_cpus=0, max_retries=0)(see)
        for node, seen in [(node, probe.options(**_on_node(node["NodeID"])).remote(marker)) for node in nodes]:
            where = f"node {node['NodeManagerAddress']}"
            try:
                found = ray.get(seen, timeout=NODE_SECONDS)
            except ray.exceptions.RayError as error:
                # What a task raises here is that this package is not there, or is another one.
                ours = isinstance(error, ray.exceptions.RayTaskError)
                remedy = "; install the same version on every node" if ours else ""
                raise StartError(f"{where}: cannot run maxlm ({_first_line(error)}){remedy}") from None
            if not found:
                raise StartError(
                    f"{where}: does not see {work}, or cannot write there; set work_dir to a directory on storage that "
                    "all nodes share"
                )
    finally:
        for path in (marker, Path(f"{marker}{TEMPORARY}")):
            path.unlink(missing_ok=True)


def see(marker: Path) -> bool:
    """Whether this node reads what the driver wrote, and writes what the driver reads."""
    try:
        # Read first: where another directory has this name, nothing is left in it.
        if marker.read_text() != marker.name:
            return False
        Path(f"{marker}{TEMPORARY}").write_text("seen")
        return True
    except OSError:
        return False


def _on_node(node: str) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _plain(error: BaseException, stage: str) -> BaseException:
    """The error of a task itself, or one line on what happened to its process."""
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        return error.cause if isinstance(error.cause, MaxlmError | MemoryError) else error
    if isinstance(error, exceptions.OutOfMemoryError | exceptions.WorkerCrashedError | exceptions.NodeDiedError):
        return killed(stage)
    if isinstance(error, exceptions.RayError):
        return MaxlmError(f"{stage}: Ray failed: {_first_line(error)}. What is done is kept, the same command goes on")
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if "Traceback" in str(error) else 0] if lines else type(error).__name__
