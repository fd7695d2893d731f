"""Reading batches: sources are opened and checked, steps are random access, Grain reads them ahead.

The batch of a step depends on (seed, manifests, schedule, step) alone. A host reads the rows of the global batch
that its devices hold, whichever they are, so any split of the rows gives the same global batch.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maxlm.config import DataConfig
from maxlm.data import mixture, order, packing
from maxlm.data.packing import Batch
from maxlm.data.shards import Shards
from maxlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from grain import DatasetIterator, IterDataset, MapDataset


class Sources(NamedTuple):
    """Opened sources by name, in the order of the configuration."""

    train: dict[str, Shards]
    validation: dict[str, Shards]


def open_sources(data: DataConfig, vocab_size: int) -> Sources:
    """Open every source of the configuration and check that they fit together and fit the model.

    Raises `DataError` for a directory that is missing, unreadable or empty, `ConfigError` where tokenizers differ
    or have more ids than the model's vocabulary.
    """
    sources = Sources(
        *({name: Shards(s.path) for name, s in group.items()} for group in (data.sources, data.validation))
    )
    everything = [*sources.train.values(), *sources.validation.values()]
    first = everything[0]
    for shards in everything:
        if len(shards) < 2:
            raise DataError(f"{shards.directory}: holds {len(shards)} tokens; expected at least one document")
        if shards.manifest.tokenizer.hash != first.manifest.tokenizer.hash:
            raise ConfigError(
                f"data: {first.directory} and {shards.directory} were prepared with different tokenizers; "
                "prepare them with the same one"
            )
    if (needed := first.manifest.tokenizer.vocab_size) > vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, the tokenizer of {first.directory} has {needed} ids; set it to at "
            f"least {needed}, for example {-(-needed // 128) * 128} (a multiple of 128)"
        )
    return sources


class Batches:
    """The batches of a run by step: a Grain random-access source, of which a process reads some rows.

    Args:
        sources: training sources by name; the `sources` of a batch index this order.
        schedule: of the run; another schedule needs another `Batches`.
        seed: of the run.
        rows: the rows of the global batch to read, ascending or not; the batch has them in this order.
        num_steps: steps of the run, the length of the source.
        mask_documents: as in `packing.concat`.
    """

    def __init__(
        self,
        sources: Mapping[str, Shards],
        schedule: mixture.Schedule,
        *,
        seed: int,
        rows: Sequence[int],
        num_steps: int,
        mask_documents: bool = True,
    ):
        self.names = tuple(sources)
        self.schedule, self.seed, self.num_steps, self.mask_documents = schedule, seed, num_steps, mask_documents
        self.rows = np.asarray(rows, np.int64)
        self._shards = list(sources.values())
        self._ids = np.array([order.source_id(name) for name in self.names], np.uint64)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        """The rows of one step: tokens, targets, segment_ids, positions int32 [R, S], weights float32 [R, S] and
        sources int32 [R], which index `names`."""
        first, batch_size = mixture.examples_of_step(self.schedule, step)
        if self.rows.max() >= batch_size:
            raise ValueError(f"row {self.rows.max()} of step {step}, which has {batch_size} examples")
        source, window = self.windows(first + self.rows)
        windows = [
            (self._shards[index], number) for index, number in zip(source.tolist(), window.tolist(), strict=True)
        ]
        batch = packing.concat(windows, self.schedule[-1].seq_len, self.mask_documents)
        return batch | {"sources": source.astype(np.int32)}

    def windows(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source (index into `names`) and window of each example, both int64 of the same shape."""
        seq_len = self.schedule[-1].seq_len
        source, position = mixture.locate(self.schedule, examples, self.names)
        windows = np.array([order.num_windows(len(shards), seq_len) for shards in self._shards])
        per_block = order.windows_per_block(seq_len)
        return source, order.window_order(position, windows[source], per_block, self.seed, self._ids[source])


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
    rows. The batches are those of `packing.concat`.
    """
    available = order.num_windows(len(shards), seq_len)
    total = available if sequences is None else min(sequences, available)
    for first in range(0, total, batch_size):
        windows = [(shards, first + row) if first + row < total else None for row in rows]
        yield packing.concat(windows, seq_len, mask_documents)
