"""Tables of keys: what copies share, sorted by hash, so that queries take one range of hashes after the other.

A holder is what has documents: a part, or a shard of an earlier data set. Its number among all holders and a row give a
document's place, number * 2^32 + row.

Keys are found holder by holder (`write_keys`); `gather` puts those of up to `TOGETHER` holders into one table, as a
query that read its range from ten thousand files would take its time for their headers and for pieces of a few rows.

Memory of a worker: 40 bytes a key of one holder (1.2 kB a document with 14 bands and normalised: 60 MB for 50,000
documents of 5 kB, 1.3 GB for a million of 250 bytes); for a gathered table about 100 MB.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.manifest import Folder, Record, writing

GATHER_VERSION = 1
TOGETHER = 64
# Rows that are sorted together, and rows that a query reads or leaves together.
PIECE_ROWS, GROUP_ROWS = 2**20, 2**15
TABLE = "table.parquet"


def save(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, without pickle."""
    with writing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def load(path: Path) -> np.ndarray:
    """A saved array, on disk."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def first_place(number: int) -> int:
    return number << 32


def write_keys(path: Path, rows: np.ndarray, **columns: np.ndarray) -> None:
    """Save keys as records of the uint64 `columns` [keys] and `row`, sorted by the first column."""
    keys = np.empty(len(rows), [*((name, "<u8") for name in columns), ("row", "<u4")])
    order = np.argsort(next(iter(columns.values())), kind="stable")
    for name, column in (columns | {"row": rows}).items():
        keys[name] = column[order]
    save(path, keys)


def gather(folder: Folder, key: str, files: Sequence[tuple[int, Path]]) -> Record:
    """The keys of holders, by their numbers, as one parquet table sorted by key, with `place` in the place of row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in load(files[0][1]).dtype.names if name != "row"]
    schema = pa.schema([(name, pa.uint64()) for name in [*names, "place"]])
    rows = sum(len(load(path)) for _, path in files)
    pieces = max(1, rows // PIECE_ROWS)
    edges = np.array([2**64 * piece // pieces for piece in range(1, pieces)], np.uint64)
    # A file is mapped while it is read, and no longer: what was read of a mapped file counts as memory.
    cuts = [[0, *np.searchsorted(load(path)["key"], edges).tolist(), len(load(path))] for _, path in files]
    with (
        writing(folder.file(key, TABLE)) as temporary,
        # Hashes do not compress.
        pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=False) as writer,
    ):
        for piece in range(pieces):
            inside = [
                np.array(load(path)[cut[piece] : cut[piece + 1]]) for (_, path), cut in zip(files, cuts, strict=True)
            ]
            columns = {name: np.concatenate([array[name] for array in inside]) for name in names}
            columns["place"] = np.concatenate(
                [
                    array["row"] + np.uint64(first_place(number))
                    for (number, _), array in zip(files, inside, strict=True)
                ]
            )
            # Stable: equal keys stay in the order of their places.
            order = np.argsort(columns["key"], kind="stable")
            table = pa.table({name: column[order] for name, column in columns.items()}, schema)
            writer.write_table(table, row_group_size=GROUP_ROWS)
    return folder.commit(key, [TABLE], {"rows": rows})
