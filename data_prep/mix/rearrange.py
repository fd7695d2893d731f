"""Runs -> runs: the copies that belong to a source's share, in the order in which they are written.

The shuffle reads a run from its start to its end, one output shard after the other, so what is chosen, repeated or
ordered is written as a run again: the tokens once more on disk until the next run with other shares. In exchange no
output shard reads documents from everywhere.

Memory of a worker: 8 MB of tokens, 50 bytes per document and copy, and what is known of 2**17 documents. Measured:
398,353 documents of 38.2 M tokens took 0.23 GiB, each three times 0.27, with 0.07 of them the mapped file of tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.config import OrderConfig
from data_prep.documents import mix
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, writing
from data_prep.mix.copies import COPY_SALT, Copying, read_column
from data_prep.tokenize.runs import KINDS, LITTLE, Run, write_columns, write_tokens
from maxlm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What becomes of a source's runs.

    `copying` None leaves every document once. `until` is the place of the first copy that is too many, None where all
    are taken. `order` None leaves the documents shuffled.
    """

    copying: Copying | None
    until: float | None
    order: OrderConfig | None

    @property
    def key(self) -> list:
        order = self.order and self.order.model_dump(exclude={"sources"})
        return [self.copying and self.copying.key, self.until, order]


def write_run(folder: Folder, key: str, run: Run, plan: Plan, dtype: str) -> Record:
    """Write the copies of a run's documents that the plan says, sorted by their new keys.

    `values` has documents, bytes and tokens; of documents that have no copy the number and bytes (`left_out`), of
    second and further copies the same (`repeated`); and where they are ordered the number of those with a rank
    (`ranked`) and without (`unranked`).
    """
    import pyarrow.parquet as pq

    rows, numbers, keys = _chosen(run, plan)
    ranks = np.zeros(0) if plan.order is None else _ranks(run, plan.order)[rows]
    if plan.order is not None:
        keys = order_keys(keys, ranks, plan.order)
    order = np.argsort(keys, kind="stable")
    rows, numbers, edges = rows[order], numbers[order], run.edges(0, run.documents)
    tokens, lengths = run.load("tokens", LITTLE[dtype]), np.diff(edges)
    write_tokens(folder, key, run.split, tokens, edges[rows], lengths[rows], keys[order])
    added = {"copy": numbers} if plan.copying else {}
    with writing(folder.file(key, f"{run.split}.parquet")) as temporary:
        write_columns(temporary, lambda: _tables(run.file("parquet")), rows, added)
    advance(run.tokens * tokens.itemsize)
    sizes = pq.read_table(run.file("parquet"), columns=["bytes"])["bytes"].to_numpy()
    left = np.setdiff1d(np.arange(run.documents), rows)
    values = {
        "documents": len(rows),
        "bytes": int(sizes[rows].sum()),
        "tokens": int(lengths[rows].sum()),
        "left_out": [len(left), int(sizes[left].sum())],
        "repeated": [int((numbers > 0).sum()), int(sizes[rows[numbers > 0]].sum())],
        "ranked": int((~np.isnan(ranks)).sum()),
        "unranked": int(np.isnan(ranks).sum()),
    }
    return folder.commit(key, [f"{run.split}.{kind}" for kind in KINDS], values)


def _chosen(run: Run, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (int64), numbers from 0 (uint16) and shuffle keys (uint64) of the copies that the plan says; [copies].

    A first copy keeps the document's key, so that others do not move it; further ones have keys of their own.
    """
    keys = run.load("keys", "<u8")
    if plan.copying is None:
        return np.arange(run.documents), np.zeros(run.documents, np.uint16), keys
    found = [(np.zeros(0, np.int64), np.zeros(0, np.uint16), np.zeros(0, np.uint64))]
    for number, rows, places in plan.copying.places(run):
        if plan.until is not None:
            rows = rows[places < plan.until]
        own = mix(keys[rows], COPY_SALT + number) if number else keys[rows]
        found.append((rows, np.full(len(rows), number, np.uint16), own))
    rows, numbers, keys = map(np.concatenate, zip(*found, strict=True))
    return rows, numbers, keys


def _ranks(run: Run, order: OrderConfig) -> np.ndarray:
    ranks = read_column(run, order.by, "shards.order.by")
    known = ranks[~np.isnan(ranks)]
    if len(known) and not (known.min() >= 0 and known.max() < 1):
        raise DataError(
            f"shards.order.by: '{order.by}' of {run.source} has values from {known.min():g} to {known.max():g}, "
            f"expected a rank in [0, 1), such as {order.by}_rank"
        )
    return ranks


def order_keys(keys: np.ndarray, ranks: np.ndarray, order: OrderConfig) -> np.ndarray:
    """Keys that sort by bucket, and by the former key in each.

    keys uint64, ranks float64 in [0, 1) or NaN, [documents]. Buckets have equal parts of the 64-bit range; without a
    rank a document keeps its key, which may be in any of them.
    """
    known = ~np.isnan(ranks)
    # The product may round up to the number of buckets.
    bucket = np.minimum(np.where(known, ranks, 0) * order.buckets, order.buckets - 1).astype(np.int64)
    bucket = order.buckets - 1 - bucket if order.descending else bucket
    # The same edges as those of output shards (runs.Run.between).
    starts = np.array([-(-(2**64) * number // order.buckets) for number in range(order.buckets)], np.uint64)
    inside = np.minimum(keys // np.uint64(order.buckets), np.uint64(2**64 // order.buckets - 1))
    return np.where(known, starts[bucket] + inside, keys)


def _tables(path: Path) -> "Iterator[pa.Table]":
    """What is known of a run's documents, one row group at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)
