"""Batches of a run on the devices, read ahead as far as the schedule is known."""

from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import jax
from jax.sharding import Mesh

from maxlm.config import Config
from maxlm.data.loader import Batches, batches
from maxlm.data.sources import Source
from maxlm.parallel.batch import addressed_rows, place
from maxlm.train.position import Position

if TYPE_CHECKING:
    from grain import DatasetIterator


class Reader:
    """Iterates over the batches from a position on; `extend` lets it go on where a schedule was open.

    Reading ahead begins at once. A context manager that ends the reading threads or processes.
    """

    def __init__(self, sources: dict[str, Source], config: Config, mesh: Mesh, position: Position):
        self._sources, self._config, self._mesh = sources, config, mesh
        self._next = self._known = position.step
        self._stack, self._parts = ExitStack(), deque()
        self.extend(position)

    def extend(self, position: Position) -> None:
        """Read on to where the data is known at a later position; nothing is read again."""
        known = position.known_steps(self._config.total_tokens)
        if known <= self._known:
            return
        data, schedule = self._config.data, position.schedule
        rows = {s.batch_size: addressed_rows(s.batch_size, self._mesh) for s in schedule.following(self._known)}
        options = {"mask_documents": data.mask_documents, "cache": data.cache}
        source = Batches(self._sources, schedule, rows=rows, num_steps=known, **options)
        part = batches(source, start_step=self._known, workers=data.workers, prefetch=data.prefetch)
        self._stack.callback(_close, part, source)
        self._parts.append((part, source))
        self._known = known

    def __next__(self) -> dict[str, jax.Array]:
        while self._next == len(self._parts[0][1]):
            _close(*self._parts.popleft())
        part, source = self._parts[0]
        size = source.schedule.span(self._next).batch_size
        self._next += 1
        return place(next(part), source.rows[size].tolist(), size, self._mesh)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)


def _close(part: "DatasetIterator", source: Batches) -> None:
    part.close()
    source.close()
