"""Relational queries over small columns: ids, hashes and counts, never text. Nothing else knows that Daft runs them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import daft
    import pyarrow as pa


def scan(paths: Sequence[Path], columns: Sequence[str]) -> "daft.DataFrame":
    """Columns of parquet files as one table, with the file of each row as `path`."""
    os.environ |= {"DO_NOT_TRACK": "1", "DAFT_PROGRESS_BAR": "0", "DAFT_SHOW_QUERY_ID": "0"}
    import daft

    return daft.read_parquet([str(path) for path in paths], file_path_column="path").select(*columns, "path")


def repeated(table: "daft.DataFrame", key: str, order: Sequence[str], first: Sequence[str] = ()) -> "daft.DataFrame":
    """The rows whose `key` occurs more than once, with `copies` (how often) and `kept` (true for the first of them).

    The first is the smallest by `order`: columns compared as text; values of the first column named in `first` come
    before all others, in that sequence.
    """
    import daft
    from daft import col, lit
    from daft.functions import when

    rank = lit("")
    for position, value in enumerate(first):
        rank = when(col(order[0]) == value, lit(f"{position:06d}")).otherwise(rank)
    for name in order:
        rank = rank + lit("\t") + col(name).cast(daft.DataType.string())
    ranked = table.with_column("rank", rank)
    groups = ranked.groupby(key).agg(col("rank").count().alias("copies"), col("rank").min().alias("first"))
    joined = ranked.join(groups.where(col("copies") > 1), on=key)
    return joined.with_column("kept", col("rank") == col("first")).exclude("rank", "first")


def collect(table: "daft.DataFrame") -> "pa.Table":
    """The rows of a query in this process."""
    return table.to_arrow()
