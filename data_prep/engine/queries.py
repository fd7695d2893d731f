"""Relational queries over small columns: ids, hashes and counts, never text. Nothing else knows that Daft runs them.

Daft 0.7 takes 130 to 170 bytes of memory a row of 16 for `shared` and `with_least`, so ranges of `RANGE_ROWS` hold a
query to 0.7 GB, more only where that many rows share one key.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import daft
    import pyarrow as pa

RANGE_ROWS = 2**22


def ranges(rows: int) -> Iterator[tuple[int, int]]:
    """First and last value of equal ranges of 64-bit hashes that hold about `RANGE_ROWS` of `rows` rows each."""
    count = max(1, -(-rows // RANGE_ROWS))
    edges = [2**64 * number // count for number in range(count + 1)]
    yield from ((low, high - 1) for low, high in zip(edges, edges[1:], strict=False))


class Sorted:
    """Columns of parquet files, each sorted by the 64-bit column `by`, of which ranges are read.

    Daft 0.7 leaves out what a condition excludes, but reads the whole of a file all the same (measured: 269 MB of 269
    for a 64th of the rows), so it is told which row groups hold a range.
    """

    def __init__(self, paths: Sequence[Path], columns: Sequence[str], by: str):
        import pyarrow.parquet as pq

        self.columns, self.by = list(columns), by
        self._groups: list[tuple[str, np.ndarray]] = []  # uint64 [row groups, 2], first and last value
        for path in paths:
            with pq.ParquetFile(path) as file:
                place = file.schema_arrow.names.index(by)
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                bounds = [group.column(place).statistics for group in groups if group.num_rows]
                self._schema = file.schema_arrow
            self._groups.append((str(path), np.array([(one.min, one.max) for one in bounds], np.uint64).reshape(-1, 2)))

    def between(self, low: int, high: int) -> "daft.DataFrame":
        """The rows with low <= by <= high."""
        os.environ |= {"DO_NOT_TRACK": "1", "DAFT_PROGRESS_BAR": "0", "DAFT_SHOW_QUERY_ID": "0"}
        import daft

        first, last = np.uint64(low), np.uint64(high)
        found = {
            path: np.flatnonzero((bounds[:, 0] <= last) & (bounds[:, 1] >= first)).tolist()
            for path, bounds in self._groups
        }
        found = {path: groups for path, groups in found.items() if groups}
        if not found:
            return daft.from_arrow(self._schema.empty_table()).select(*self.columns)
        table = daft.read_parquet(list(found), row_groups=list(found.values()))
        inside = (daft.col(self.by) >= low) & (daft.col(self.by) <= high)
        return table.where(inside).select(*self.columns)


def shared(table: "daft.DataFrame", keys: Sequence[str], value: str) -> "daft.DataFrame":
    """Of rows whose `keys` occur with more than one `value`: each value but the smallest, and that as `first`."""
    from daft import col

    groups = table.groupby(*keys).agg(col(value).min().alias("first"), col(value).max().alias("last"))
    # Collected first, which makes the join two times faster: it then builds its table of the few groups that repeat.
    repeated = groups.where(col("first") != col("last")).select(*keys, "first").collect()
    return table.join(repeated, on=list(keys)).where(col(value) != col("first")).select("first", value)


def with_least(table: "daft.DataFrame", key: str, value: str) -> "daft.DataFrame":
    """Every row, and as `least` the smallest `value` of the rows of its key."""
    from daft import col

    return table.join(table.groupby(key).agg(col(value).min().alias("least")), on=key)


def collect(table: "daft.DataFrame", order: Sequence[str] = ()) -> "pa.Table":
    """The rows of a query in this process, sorted by the columns of `order`."""
    return (table.sort(list(order)) if order else table).to_arrow()
