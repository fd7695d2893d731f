"""What preparation wrote down of documents: their rows in documents-NNNNN.parquet, and the way there from an id.

Neither a table of hashes nor a file of rows is loaded: the one is searched where it is mapped, of the other the row
groups are read that hold the rows asked for.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maxlm.data.shards import HASH_DTYPE, Shards, document_hash
from maxlm.errors import DataError

Place = tuple[int, int]  # shard and row


def find(shards: Shards, document_id: str) -> list[Place]:
    """Where documents with an id are: none, one place, or as many as preparation made copies of it."""
    path = shards.local_hashes()
    try:
        table = np.memmap(path, HASH_DTYPE, "r", shape=(shards.manifest.documents,))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected {shards.manifest.documents} entries") from None
    # Of the table's own type: any other would make numpy convert all of it.
    key = np.uint64(document_hash(document_id))
    low, high = (int(table["hash"].searchsorted(key, side)) for side in ("left", "right"))
    places = [(int(shard), int(row)) for shard, row in table[["shard", "row"]][low:high].tolist()]
    rows = read(shards, places, ["id"])
    return [place for place, row in zip(places, rows, strict=True) if row["id"] == document_id]


def read(shards: Shards, places: Sequence[Place], columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of documents, in the order asked for, with all columns or some.

    Values are those that JSON has; a map is a list of pairs, any other type its text. Raises `DataError` for a file
    that is missing, damaged or too short.
    """
    found: dict[Place, dict[str, Any]] = {}
    for shard in sorted({shard for shard, _ in places}):
        rows = sorted({row for number, row in places if number == shard})
        found |= {(shard, row): values for row, values in zip(rows, _read(shards, shard, rows, columns), strict=True)}
    return [found[place] for place in places]


def some_ids(shards: Shards, count: int) -> list[str]:
    """Ids of the first documents."""
    rows = range(min(count, shards.manifest.shards[0].documents))
    return [row["id"] for row in read(shards, [(0, row) for row in rows], ["id"])]


def _read(shards: Shards, shard: int, rows: list[int], columns: list[str] | None) -> list[dict[str, Any]]:
    """Rows of one file, ascending."""
    path = shards.local_documents(shard)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            groups = range(file.metadata.num_row_groups)
            ends = list(accumulate(file.metadata.row_group(group).num_rows for group in groups))
            if rows[-1] >= (ends or [0])[-1]:
                raise DataError(
                    f"{path}: has {(ends or [0])[-1]} rows; expected {shards.manifest.shards[shard].documents}"
                )
            owner = np.searchsorted(ends, rows, "right")
            found: list[dict[str, Any]] = []
            for group in np.unique(owner).tolist():
                first = ends[group - 1] if group else 0
                inside = [row - first for row, one in zip(rows, owner.tolist(), strict=True) if one == group]
                table = file.read_row_group(group, columns, use_threads=False)
                for start, length in _runs(inside):
                    found += table.slice(start, length).to_pylist()
            return _plain(found)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({reason}); the manifest lists it") from None


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, length) of those that follow each other, as the documents of a window do."""
    for _, group in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [number for _, number in group]
        yield run[0], len(run)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
