"""Fetching from object stores ahead of the reader: the order of the data is known, so what it will need is too."""

import weakref
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING

from maxlm.config import CacheConfig
from maxlm.data.cache import Full
from maxlm.data.storage import Range
from maxlm.errors import MaxlmError

if TYPE_CHECKING:
    from maxlm.data.shards import Shards

Span = tuple["Shards", int, int]  # tokens start..stop of a source
Part = tuple["Shards", int, int]  # a source, and what its `range_of` takes


class ReadAhead:
    """Keeps the next steps of a reader in the cache; the reader says where it is and never waits for that.

    At most `cache.read_ahead` steps are fetched ahead of the reader, and never more than half of the cache holds: what
    is fetched and not yet read is not deleted for something else that is fetched ahead, in any process of the host.
    What fails here is left to the reader, which asks again when it comes to it, and raises.

    Args:
        spans: what a step reads, in the order in which it is read; called in the reader's thread, once a step and again
            where it must wait for room.
        steps: steps of the run; none beyond is fetched.
        cache: as the sources were opened with.
    """

    def __init__(self, spans: Callable[[int], Iterable[Span]], steps: int, cache: CacheConfig):
        self._spans, self._steps, self._cache = spans, steps, cache
        self._budget = int(cache.gib * 2**30) // 2
        self._lock = Lock()
        self._next = 0  # the first step that was not asked for
        self._wanted: dict[Part, Range] = {}  # what was asked for and not let go
        self._last: dict[Part, int] = {}  # the last step that is known to need it
        self._bytes = 0
        self._queue: SimpleQueue[Part | None] | None = None

    def __getstate__(self):
        return self._spans, self._steps, self._cache

    def __setstate__(self, state):
        self.__init__(*state)

    def at(self, step: int) -> None:
        """The reader begins with a step: let go what only earlier ones needed, ask for this one and those ahead."""
        with self._lock:
            if not step <= self._next <= step + self._cache.read_ahead + 1:
                self._next = step  # it has jumped
                self._release(lambda last: True)
            self._release(lambda last: last < step)
            while self._next < min(step + self._cache.read_ahead + 1, self._steps) and self._ask_for(self._next):
                self._next += 1

    def close(self) -> None:
        """Fetch nothing more; the threads end after what they are fetching."""
        with self._lock:
            self._release(lambda last: True)
            if self._queue is not None:
                self._finalizer()
                self._queue = None

    def _ask_for(self, step: int) -> bool:
        """Queue what a step needs beyond what was asked for; False where there is no room for it yet."""
        spans = [span for span in self._spans(step) if span[0].remote]
        needed = dict.fromkeys((shards, *part) for shards, start, stop in spans for part in shards.pieces(start, stop))
        new = {part: part[0].range_of(*part[1:]) for part in needed if part not in self._wanted}
        size = sum(found.stop - found.start for found in new.values())
        if self._bytes + size > self._budget:
            return False
        self._bytes += size
        if new and self._queue is None:
            self._start()
        for part in needed:
            self._last[part] = step
        for part, found in new.items():
            self._wanted[part] = found
            self._queue.put(part)
        return True

    def _release(self, done: Callable[[int], bool]) -> None:
        for part in [part for part, last in self._last.items() if done(last)]:
            del self._last[part]
            found = self._wanted.pop(part)
            self._bytes -= found.stop - found.start
            found.folder.release(found)

    def _start(self) -> None:
        self._queue = SimpleQueue()
        threads = self._cache.threads
        for _ in range(threads):
            # Daemons: a program that ends does not wait for a slow store.
            Thread(target=_work, args=(self._queue, self._wanted), name="read-ahead", daemon=True).start()
        self._finalizer = weakref.finalize(self, _stop, self._queue, threads)


def _work(queue: "SimpleQueue[Part | None]", wanted: dict[Part, Range]) -> None:
    """Fetch what is still wanted when its turn comes, until None."""
    while (part := queue.get()) is not None:
        if (found := wanted.get(part)) is None:
            continue
        try:
            found.folder.fetch(found, ahead=True)
        except (MaxlmError, Full):
            continue
        if part not in wanted:  # meanwhile the reader has passed
            found.folder.release(found)


def _stop(queue: "SimpleQueue[Part | None]", threads: int) -> None:
    for _ in range(threads):
        queue.put(None)
