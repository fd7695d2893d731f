"""How often documents occur: every copy of every document has a place on one line, and a share is cut off that line.

A document that an epoch holds c times (1, if nothing is upsampled) has copies k = 1, 2, ... at (k - u) / c, counted in
epochs, where u in [0, 1) is a hash of its id and of the pipeline's seed. So the first e epochs hold floor(c e + u)
copies of it, c e on average: of a fraction of an epoch a part of the documents, chosen by hash, of two epochs each one
twice. What is cut off for fewer tokens is a part of what is cut off for more, and documents stay whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.config import UpsampleConfig
from data_prep.documents import mix
from data_prep.tokenize.runs import Run
from maxlm.errors import DataError

# Of shuffle keys, which are hashes of ids and seed.
CHOICE_SALT, COPY_SALT = 1, 2**33


@dataclass(frozen=True)
class Copying:
    """The copies of a source's documents: in an epoch, by a column, and at most so many epochs."""

    upsample: UpsampleConfig | None
    max_epochs: float

    @property
    def key(self) -> list:
        return [self.upsample.model_dump() if self.upsample else None, self.max_epochs]

    def per_epoch(self, run: Run) -> np.ndarray:
        """Copies of each document in one epoch, float64 [documents]; `DataError` for a value in no bucket."""
        if self.upsample is None:
            return np.ones(run.documents)
        if self.upsample.labels:
            labels, copies = zip(*self.upsample.labels.items(), strict=True)
            # One more than the labels, which -1 finds.
            return np.array([*copies, self.upsample.other])[_labels(run, self.upsample.by, labels)]
        value = read_column(run, self.upsample.by, f"mix.upsample.{run.source}.by")
        buckets = sorted(self.upsample.buckets, key=lambda bucket: bucket.min)
        bucket = np.searchsorted([one.min for one in buckets], value, "right") - 1
        known = ~np.isnan(value)
        if (below := known & (bucket < 0)).any():
            raise DataError(
                f"mix.upsample.{run.source}: documents have {self.upsample.by} {value[below].min():g}, and the least "
                f"bucket begins at {buckets[0].min:g}; add one below it (copies: 0 leaves them out)"
            )
        return np.where(known, np.array([one.copies for one in buckets])[bucket], self.upsample.other)

    def places(self, run: Run) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """All first copies, then all second ones, ...: number from 0, rows int64 and places float64 [copies]."""
        copies = self.per_epoch(run)
        rows = np.flatnonzero(copies)
        # 53 bits, which a float64 holds exactly.
        chance = (mix(run.load("keys", "<u8"), CHOICE_SALT) >> np.uint64(11)) * 2.0**-53
        for number in range(2**16):
            place = (number + 1 - chance[rows]) / copies[rows]
            inside = place <= self.max_epochs
            rows, place = rows[inside], place[inside]
            if not len(rows):
                return
            yield number, rows, place


def _labels(run: Run, name: str, labels: Sequence[str]) -> np.ndarray:
    """The number of each document's label among `labels`, -1 for others; int64 [documents]."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    column = pq.read_table(run.file("parquet"), columns=[name])[name]
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise DataError(f"mix.upsample.{run.source}.by: the column '{name}' has {column.type}, expected labels")
    found = pc.index_in(column, pa.array(labels, column.type))
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def read_column(run: Run, name: str, key: str) -> np.ndarray:
    """A column of a run's documents, float64 [documents], NaN where there is no value.

    `key` is the one of the configuration that names the column, for the `DataError` where it has no numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    column = pq.read_table(run.file("parquet"), columns=[name])[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{key}: the column '{name}' of '{run.source}' has {column.type}, expected numbers")
    return pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
