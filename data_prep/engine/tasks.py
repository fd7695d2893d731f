"""A task: one result to make, wherever the work directory can be read and written. Tasks carry paths, not text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_prep.manifest import Record


@dataclass(frozen=True)
class Task:
    """`function(folder, key, *arguments)` writes the result's files and returns the committed record.

    `size` is its work in bytes, of which it tells `advance` as it goes; 0 where it cannot tell.
    """

    key: str
    function: Callable[..., Record]
    arguments: tuple[Any, ...]
    size: int


# Where the progress of the tasks of this process goes.
_advance: Callable[[int], None] | None = None


def advance(count: int) -> None:
    """Called by a task: `count` more bytes of its size are done."""
    if _advance is not None:
        _advance(count)


def report_to(listener: Callable[[int], None] | None) -> None:
    """Send what the tasks of this process tell `advance` to a listener, or to nobody."""
    global _advance
    _advance = listener
