"""Reading batches: steps are random access, and Grain reads them ahead.

The batch of a step depends on (seed, manifests, schedule, step) alone. A host reads the rows of the global batch
that its devices hold, whichever they are, so any split of the rows gives the same global batch.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maxlm.config import CacheConfig
from maxlm.data import concat, order, packing, transforms
from maxlm.data.packing import Batch, Text
from maxlm.data.read_ahead import ReadAhead
from maxlm.data.schedule import Schedule, Span
from maxlm.data.shards import Shards
from maxlm.data.sources import Source

if TYPE_CHECKING:
    from grain import DatasetIterator, IterDataset, MapDataset


class Batches:
    """The batches of a run by step: a Grain random-access source, of which a process reads some rows.

    Args:
        sources: training sources by name; the `sources` of a batch index this order.
        schedule: of the run; another schedule needs another `Batches`.
        rows: the rows to read of the global batch, ascending or not, by the number of examples that it has; a batch
            has them in this order.
        num_steps: steps of the run, the length of the source.
        mask_documents: as in `packing.assemble`.
        cache: of sources in object stores, with which they were opened.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        schedule: Schedule,
        *,
        rows: Mapping[int, Sequence[int]],
        num_steps: int,
        mask_documents: bool = True,
        cache: CacheConfig | None = None,
    ):
        self.names, self._sources = tuple(sources), list(sources.values())
        self.schedule, self.num_steps, self.mask_documents = schedule, num_steps, mask_documents
        remote = any(source.shards.remote for source in self._sources)
        self._ahead = ReadAhead(self._spans, num_steps, cache or CacheConfig()) if remote else None
        self._ids = np.array([order.source_id(name) for name in self.names], np.uint64)
        self._has_prefixes = any(source.config.prefix_lm for source in self._sources)
        self.rows = {size: np.asarray(numbers, np.int64) for size, numbers in rows.items()}

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        """The rows of one step: tokens, targets, segment_ids, positions int32 [R, S], weights float32 [R, S] and
        sources int32 [R], which index `names`; prefix bool [R, S] where a source has prefix_lm. Rows behind the step's
        last example are empty."""
        if self._ahead:
            self._ahead.at(step)
        span, rows, real = self._rows(step)
        texts: list[Text | None] = [None] * len(rows)
        examples = span.first_example + rows[real]
        source, *places = self.windows(examples, span.seq_len)
        keys = transforms.example_keys(self._sources[0].seed, self._ids[source], examples)
        for row, index, *place in zip(*(part.tolist() for part in (real, source, *places, keys)), strict=True):
            texts[row] = self._sources[index].read(span.seq_len, *place)
        batch = packing.assemble(texts, span.seq_len, self.mask_documents, self._has_prefixes)
        of_row = np.zeros(len(rows), np.int32)
        of_row[real] = source
        return batch | {"sources": of_row}

    def close(self) -> None:
        """Fetch nothing more ahead."""
        if self._ahead:
            self._ahead.close()

    def _rows(self, step: int) -> tuple[Span, np.ndarray, np.ndarray]:
        """What a step reads, the rows that are wanted of it, and which of these have an example."""
        span = self.schedule.span(step)
        rows = self.rows[span.batch_size]
        if rows.max() >= span.batch_size:
            raise ValueError(f"row {rows.max()} of step {step}, which has {span.batch_size} examples")
        return span, rows, np.flatnonzero(rows < span.examples)

    def _spans(self, step: int) -> Iterator[tuple[Shards, int, int]]:
        """The tokens that a step reads, for reading them ahead; one more for the target of the last input."""
        span, rows, real = self._rows(step)
        places = self.windows(span.first_example + rows[real], span.seq_len)
        for index, *place in zip(*(part.tolist() for part in places), strict=True):
            source = self._sources[index]
            for piece in source.pieces(span.seq_len, *place):
                stop = min(piece.first + piece.length + 1, len(source.shards))
                yield source.shards, piece.first, stop

    def windows(self, examples: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source (index into `names`), block and window of examples of one length, int64 of the same shape."""
        source, position = self.schedule.locate(examples, self.names)
        orders = [source.order(seq_len) for source in self._sources]
        return source, *order.window_order(orders, source, position)


def batches(source: Batches, *, start_step: int = 0, workers: int = 0, prefetch: int = 4) -> "DatasetIterator[Batch]":
    """Iterate from a step to the end, reading ahead at once: `prefetch` batches, in a thread or in worker processes.

    Starting at step N costs the same for every N. The iterator's `close` ends the thread or the processes; worker
    processes import the caller's main module, so that needs a guard (`if __name__ == "__main__"`).
    """
    import grain

    steps = grain.MapDataset.source(source)[start_step:]
    if workers:
        dataset = _in_processes(steps, workers, -(-prefetch // workers))
    else:
        # One thread: more of them compete for the interpreter lock and read less in total.
        dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    iterator = iter(dataset)
    iterator.start_prefetch()
    return iterator


def _in_processes(steps: "MapDataset[Batch]", workers: int, buffer: int) -> "IterDataset[Batch]":
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags when it starts workers; without absl's main none are set
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    # Pipes rather than shared memory: as fast here, a container's /dev/shm is often 64 MiB, and the batches that are
    # alive when the program ends would be reported as leaked.
    options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer))


def sequential(
    shards: Shards,
    *,
    seq_len: int,
    sequences: int | None,
    batch_size: int,
    rows: Sequence[int],
    mask_documents: bool = True,
) -> Iterator[Batch]:
    """The first `sequences` windows of a held-out source (None for all) in written order, as batches of one shape.

    A global batch has `batch_size` examples, of which this yields `rows`; the last batch is filled up with empty
    rows. The batches are those of `packing.assemble`.
    """
    sizes = concat.sizes(len(shards), seq_len)
    starts, total = np.concatenate([[0], np.cumsum(sizes)]), num_sequences(shards, seq_len, sequences)

    def read(number: int) -> Text | None:
        block = int(starts.searchsorted(number, "right")) - 1
        return concat.read_window(shards, seq_len, block, number - int(starts[block])) if number < total else None

    for first in range(0, total, batch_size):
        yield packing.assemble([read(first + row) for row in rows], seq_len, mask_documents)


def num_sequences(shards: Shards, seq_len: int, sequences: int | None) -> int:
    """Windows of a held-out source that are read: the first `sequences`, all of them for None."""
    available = int(concat.sizes(len(shards), seq_len).sum())
    return available if sequences is None else min(sequences, available)
