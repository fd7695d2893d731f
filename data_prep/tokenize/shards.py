"""Last stage: runs -> token shards, shuffled over the whole of a source.

Two maps make a global shuffle whose memory does not grow with the corpus. `write_runs` tokenizes one text shard into
one run per split, its documents sorted by their keys (runs.py). `write_shard` makes one output shard: the documents of
all runs whose keys fall into its range, in the order of their keys. So the order is the same whatever the number of
workers, and any document may lie anywhere.

Memory of a worker: 64 MB of tokens, and what is known of the documents of one output shard, twice: about 0.5 kB per
document (measured: 0.2 GB for 442,000), so 0.3 GB for a shard of 2**29 tokens in documents of 1,000.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.documents import FINGERPRINTS
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, writing
from data_prep.tokenize.runs import LITTLE, ROW_GROUP, Run, batches
from data_prep.tokenize.tokens import gather
from maxlm.data.shards import HASH_DTYPE, file_entry

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
BATCH_TOKENS = 2**23
# The files of a finished shard, before they get their number.
TOKENS, INDEX, DOCUMENTS, PRINTS, HASHES = (
    "tokens.bin",
    "tokens.idx",
    "documents.parquet",
    "fingerprints.parquet",
    "hashes",
)


def write_shard(folder: Folder, key: str, runs: Sequence[Run], shard: int, shards: int, dtype: str) -> Record:
    """Write output shard `shard` of `shards`, which may be empty.

    `values` has tokens, documents, bytes, and `files`: {name: {size, sha256}}.
    """
    bounds = [run.between(shard, shards) for run in runs]
    keys = np.concatenate([run.load("keys", "<u8")[low:high] for run, (low, high) in zip(runs, bounds, strict=True)])
    order = np.argsort(keys, kind="stable")
    edges = [run.edges(low, high) for run, (low, high) in zip(runs, bounds, strict=True)]
    lengths = np.concatenate([np.diff(edge) for edge in edges])[order]
    with writing(folder.file(key, TOKENS)) as temporary:
        _write_tokens(temporary, runs, edges, order, lengths, LITTLE[dtype])
    with writing(folder.file(key, INDEX)) as temporary:
        temporary.write_bytes(np.cumsum(lengths).astype("<u8").tobytes())
    table = _columns(runs, bounds).take(order)
    prints = [name for name in FINGERPRINTS if name in table.schema.names]
    with writing(folder.file(key, DOCUMENTS)) as temporary:
        _write_table(temporary, table.drop_columns(["id_hash", *prints]))
    with writing(folder.file(key, PRINTS)) as temporary:
        # Hashes do not repeat: a dictionary of them would be the column once more.
        _write_table(temporary, table.select(prints), use_dictionary=False)
    with writing(folder.file(key, HASHES)) as temporary:
        temporary.write_bytes(_hash_table(table["id_hash"].to_numpy()).tobytes())
    values = {
        "tokens": int(lengths.sum()),
        "documents": len(order),
        "bytes": int(table["bytes"].to_numpy().sum()),
        "files": {name: file_entry(folder.file(key, name)).model_dump() for name in (TOKENS, INDEX, DOCUMENTS, PRINTS)},
    }
    return folder.commit(key, [TOKENS, INDEX, DOCUMENTS, PRINTS, HASHES], values)


def _write_tokens(
    path: Path, runs: Sequence[Run], edges: Sequence[np.ndarray], order: np.ndarray, lengths: np.ndarray, dtype: str
) -> None:
    """Write the documents of the runs in their order.

    edges[r] are the bounds of run r's documents in its tokens; order [documents] counts over the documents of all runs
    and keeps those of one run in sequence, so that a batch is one piece of each run.
    """
    tokens = [run.load("tokens", dtype) for run in runs]
    firsts = np.cumsum([0, *(len(edge) - 1 for edge in edges)])
    owners = np.repeat(np.arange(len(runs)), np.diff(firsts))
    taken = np.zeros(len(runs), np.int64)
    with open(path, "wb") as file:
        for batch in batches(lengths, BATCH_TOKENS):
            documents = order[batch]
            after = taken + np.bincount(owners[documents], minlength=len(runs))
            (present,) = np.nonzero(after > taken)
            staged = np.concatenate([tokens[r][edges[r][taken[r]] : edges[r][after[r]]] for r in present])
            # Where each of the batch's documents begins among the staged tokens, by run and then by place in it.
            begins = np.empty(len(documents), np.int64)
            staging = np.argsort(documents)
            begins[staging] = np.cumsum(lengths[batch][staging]) - lengths[batch][staging]
            chunk = np.empty(len(staged), staged.dtype)
            gather(staged, begins, lengths[batch], chunk)
            file.write(chunk)
            advance(chunk.nbytes)
            taken = after


def _columns(runs: Sequence[Run], bounds: Sequence[tuple[int, int]]) -> "pa.Table":
    """What is known of the documents between the bounds of each run, read from the row groups that hold them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for run, (low, high) in zip(runs, bounds, strict=True):
        first = low // ROW_GROUP
        with pq.ParquetFile(run.file("parquet")) as file:
            table = file.read_row_groups(list(range(first, -(-high // ROW_GROUP))))
        tables.append(table.slice(low - first * ROW_GROUP, high - low))
    return pa.concat_tables(tables)


def _write_table(path: Path, table: "pa.Table", **options: object) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", row_group_size=2**16, **options)


def _hash_table(id_hash: np.ndarray) -> np.ndarray:
    table = np.zeros(len(id_hash), HASH_DTYPE)
    table["hash"], table["row"] = id_hash, np.arange(len(id_hash))
    return table[np.argsort(table["hash"], kind="stable")]
