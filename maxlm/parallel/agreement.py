"""Processes that act as one: what one of them does for all, what all must see alike, and how they fail together.

With a single process everything here is plain Python and touches no device. With several, all of them must come to
each of these calls in the same order, as they must to every program on the devices.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from maxlm import errors
from maxlm.errors import MaxlmError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the process that writes and tells for all."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """The texts of all processes, in the order of their numbers."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(data.size))
    if not lengths.max():
        return [""] * len(lengths)
    everything = multihost_utils.process_allgather(np.pad(data, (0, lengths.max() - data.size)))
    return [row[:length].tobytes().decode() for row, length in zip(everything, lengths, strict=True)]


def from_first(flag: bool) -> bool:
    """Process 0's flag, in every process; waits until the devices have done what they were given before."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


@contextmanager
def together() -> Iterator[None]:
    """All processes come through, or none does: an error in one is raised in all, under its own kind."""
    if jax.process_count() == 1:
        yield
        return
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    told = gather(_described(mine) if mine else "")
    failed = [number for number, text in enumerate(told) if text]
    if not failed:
        return
    kind, _, message = told[failed[0]].partition("\n")
    others = f" (and {len(failed) - 1} processes more)" if len(failed) > 1 else ""
    error = mine
    if mine is None or isinstance(mine, MaxlmError):
        error = getattr(errors, kind)(f"process {failed[0]}: {message}{others}")
        error.quiet = not is_first() and jax.process_index() != failed[0]
    error.everywhere = True
    raise error from None


def _described(error: Exception) -> str:
    """The kind under which the other processes raise an error, and on the next line its message."""
    if isinstance(error, MaxlmError):
        return f"{type(error).__name__}\n{error}"
    return f"{MaxlmError.__name__}\n{type(error).__name__}: {error}"


def by_first(action: Callable[[], T]) -> T | None:
    """Process 0 alone acts while the others wait; its error is an error in all. Its result, None in the others."""
    with together():
        return action() if is_first() else None


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something that another process has done is seen here: network disks show it after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def everywhere(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A host value that all processes have alike as a replicated array. `jax.device_put` would compare the
    processes' values, which takes a collective and waits for the devices."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


@contextmanager
def one_fate() -> Iterator[None]:
    """An error that this process has alone must reach the others soon, so it leaves without waiting for them.

    At the end of a process jax waits for all the others, which a process that failed alone would do in vain: it
    would end in jax's abort, its exit code lost. Leaving at once lets them see that it is gone: by a broken
    connection, or after processes.heartbeat_timeout_seconds at the latest.
    """
    try:
        yield
    except BaseException as error:
        number, count = jax.process_index(), jax.process_count()
        if count > 1 and not getattr(error, "everywhere", False):
            atexit.register(_leave, exit_code(error))  # runs before jax's, which was registered earlier
            if isinstance(error, MaxlmError):
                error.args = (f"process {number}: {error}",)
            else:
                error.add_note(f"(in process {number} of {count})")
        elif count > 1 and isinstance(error, MaxlmError) and type(error).everywhere:
            error.quiet = number > 0
        raise


def exit_code(error: BaseException) -> int:
    if isinstance(error, MaxlmError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
