"""Relational queries over small columns: ids, hashes and counts, never text. Nothing else knows that Daft runs them.

A query over `between` reads the row groups of its range alone, where files are sorted by that column. Daft 0.7 takes
130 to 170 bytes of memory a row of 20 for `shared` and `with_least`, so ranges of `RANGE_ROWS` hold a query to 0.7 GB,
more only where that many rows share one key.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import daft
    import pyarrow as pa

RANGE_ROWS = 2**22


def ranges(rows: int) -> Iterator[tuple[int, int]]:
    """First and last value of equal ranges of 64-bit hashes that hold about `RANGE_ROWS` of `rows` rows each."""
    count = max(1, -(-rows // RANGE_ROWS))
    edges = [2**64 * number // count for number in range(count + 1)]
    yield from ((low, high - 1) for low, high in zip(edges, edges[1:], strict=False))


def scan(paths: Sequence[Path], columns: Sequence[str]) -> "daft.DataFrame":
    """Columns of parquet files as one table."""
    os.environ |= {"DO_NOT_TRACK": "1", "DAFT_PROGRESS_BAR": "0", "DAFT_SHOW_QUERY_ID": "0"}
    import daft

    return daft.read_parquet([str(path) for path in paths]).select(*columns)


def between(table: "daft.DataFrame", column: str, low: int, high: int) -> "daft.DataFrame":
    """The rows with low <= column <= high."""
    from daft import col

    return table.where((col(column) >= low) & (col(column) <= high))


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
