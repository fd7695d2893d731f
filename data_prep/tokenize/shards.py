"""Last stage: text shards -> token shards, shuffled over the whole of a source.

Two maps make a global shuffle whose memory does not grow with the corpus. `write_runs` tokenizes one text shard into
one run per split, its documents sorted by a random 64-bit key that depends on (seed, document id) alone. `write_shard`
makes one output shard: the documents of all runs whose keys fall into its range, in the order of their keys. So the
order is the same whatever the number of workers, and any document may lie anywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.documents import SHUFFLE_SALT, Part, held_out, mix, read
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.tokenize.encode import Encoder
from maxlm.data.shards import HASH_DTYPE, TokenizerEntry, file_entry
from maxlm.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

RUNS_VERSION, SHARD_VERSION = 1, 1
SPLITS = ("train", "validation")
LITTLE = {"uint16": "<u2", "uint32": "<u4"}
# Documents are encoded in batches of this much text and gathered in batches of this many tokens.
BATCH_BYTES, BATCH_TOKENS = 2**23, 2**24
# A range of keys reads only the row groups that it touches, so they are small.
PEDIGREE_ROWS = 2048
# The files of a finished shard, before they get their number.
TOKENS, INDEX, DOCUMENTS, HASHES = "tokens.bin", "tokens.idx", "documents.parquet", "hashes"


@dataclass(frozen=True)
class Encoding:
    """How text becomes tokens: everything that the runs depend on beside the documents."""

    directory: Path
    entry: TokenizerEntry
    fast: bool
    lossless: bool
    seed: int
    fraction: float

    @property
    def dtype(self) -> str:
        return "uint16" if self.entry.vocab_size <= 2**16 else "uint32"

    def key(self, part: Part) -> str:
        settings = [self.entry.hash, self.entry.bos_id, self.entry.eos_id, self.fast, self.lossless]
        return make_key("runs", RUNS_VERSION, part.key, settings, self.seed, self.fraction)


@dataclass(frozen=True)
class Run:
    """Tokens of one text shard and split, sorted by shuffle key: files SPLIT.tokens, .keys, .ends and .parquet."""

    directory: Path
    split: str

    def load(self, kind: str, dtype: str) -> np.ndarray:
        path = self.directory / f"{self.split}.{kind}"
        return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.zeros(0, dtype)

    def between(self, shard: int, shards: int) -> tuple[int, int]:
        """The rows whose keys lie in the shard's equal share of the 64-bit range."""
        keys = self.load("keys", "<u8")
        edges = [-(-(2**64) * edge // shards) for edge in (shard, shard + 1)]
        low, high = (np.searchsorted(keys, np.uint64(edge)) if edge < 2**64 else len(keys) for edge in edges)
        return int(low), int(high)

    def spans(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """First token and exclusive last token of the rows low..high."""
        ends = self.load("ends", "<u8").astype(np.int64)
        return np.concatenate([np.zeros(1, np.int64), ends])[low:high], ends[low:high]


def write_runs(folder: Folder, key: str, part: Part, encoding: Encoding) -> Record:
    """Tokenize the kept documents of a part.

    `values` has per split documents, bytes, tokens, and the `empty` documents that gave no token.
    """
    table = read(part, ("id", "id_hash", "text", *part.pedigree))
    hashes = table["id_hash"].to_numpy()
    validation = held_out(hashes, encoding.fraction)
    keys = mix(hashes, SHUFFLE_SALT + encoding.seed)
    encoder = Encoder(Tokenizer(encoding.directory, encoding.entry), encoding.fast, encoding.lossless)
    values, names = {}, []
    for split, chosen in zip(SPLITS, (~validation, validation), strict=True):
        rows = np.flatnonzero(chosen)
        if len(rows):
            rows = rows[np.argsort(keys[rows], kind="stable")]
            values[split] = _write_run(folder, key, split, table.take(rows), keys[rows], encoder, encoding)
            names += [f"{split}.{kind}" for kind in ("tokens", "keys", "ends", "parquet")]
    return folder.commit(key, names, values)


def _write_run(
    folder: Folder, key: str, split: str, table: "pa.Table", keys: np.ndarray, encoder: Encoder, encoding: Encoding
) -> dict[str, int]:
    sizes = table["bytes"].to_numpy()
    lengths = []
    with writing(folder.file(key, f"{split}.tokens")) as temporary, open(temporary, "wb") as file:
        for batch in _batches(np.arange(len(keys)), sizes, BATCH_BYTES):
            ids, counts = encoder.encode(table["text"].slice(batch[0], len(batch)).to_pylist())
            tokens, counts = add_boundaries(ids, counts, encoding.entry.bos_id, encoding.entry.eos_id)
            file.write(tokens.astype(LITTLE[encoding.dtype]).tobytes())
            lengths.append(counts)
            advance(int(sizes[batch].sum()))
    length = np.concatenate(lengths)
    kept = np.flatnonzero(length)
    for kind, array in (("keys", keys[kept]), ("ends", np.cumsum(length[kept]))):
        with writing(folder.file(key, f"{split}.{kind}")) as temporary:
            temporary.write_bytes(array.astype("<u8").tobytes())
    with writing(folder.file(key, f"{split}.parquet")) as temporary:
        _write_table(table.drop_columns(["text"]).take(kept), temporary, PEDIGREE_ROWS)
    counts = {"documents": len(kept), "bytes": int(sizes[kept].sum()), "tokens": int(length.sum())}
    return counts | {"empty": len(keys) - len(kept)}


def _write_table(table: "pa.Table", path: Path, row_group_size: int) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", row_group_size=row_group_size)


def _batches(rows: np.ndarray, sizes: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Consecutive rows whose sizes add up to about `limit`."""
    if len(rows):
        groups = np.cumsum(sizes[rows]) // limit
        yield from np.split(rows, np.flatnonzero(np.diff(groups)) + 1)


def add_boundaries(
    ids: np.ndarray, counts: np.ndarray, bos_id: int | None, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put [BOS] and EOS around every document that has tokens.

    ids [tokens] and counts [documents] become tokens uint32 [more tokens] and their counts; 0 stays 0.
    """
    filled = counts > 0
    lengths = np.where(filled, counts + (1 if bos_id is None else 2), 0)
    ends = np.cumsum(lengths)[filled]
    tokens = np.empty(lengths.sum(), np.uint32)
    inside = np.ones(len(tokens), bool)
    inside[ends - 1] = False
    tokens[ends - 1] = eos_id
    if bos_id is not None:
        starts = ends - lengths[filled]
        inside[starts] = False
        tokens[starts] = bos_id
    tokens[inside] = ids
    return tokens, lengths


def write_shard(folder: Folder, key: str, runs: Sequence[Run], shard: int, shards: int, dtype: str) -> Record:
    """Write output shard `shard` of `shards`, which may be empty.

    `values` has tokens, documents, bytes, and `files`: {name: {size, sha256}}.
    """
    bounds = [run.between(shard, shards) for run in runs]
    keys = np.concatenate([run.load("keys", "<u8")[low:high] for run, (low, high) in zip(runs, bounds, strict=True)])
    order = np.argsort(keys, kind="stable")
    owner = np.repeat(np.arange(len(runs)), [high - low for low, high in bounds])
    spans = [run.spans(low, high) for run, (low, high) in zip(runs, bounds, strict=True)]
    starts, ends = (np.concatenate(arrays) for arrays in zip(*spans, strict=True))
    tokens = [run.load("tokens", LITTLE[dtype]) for run in runs]
    with writing(folder.file(key, TOKENS)) as temporary, open(temporary, "wb") as file:
        for batch in _batches(order, ends - starts, BATCH_TOKENS):
            chunk = np.concatenate([tokens[owner[row]][starts[row] : ends[row]] for row in batch]).tobytes()
            file.write(chunk)
            advance(len(chunk))
    with writing(folder.file(key, INDEX)) as temporary:
        temporary.write_bytes(np.cumsum((ends - starts)[order]).astype("<u8").tobytes())
    pedigree = _pedigree(runs, bounds).take(order)
    with writing(folder.file(key, DOCUMENTS)) as temporary:
        _write_table(pedigree.drop_columns(["id_hash"]), temporary, 2**16)
    hashes = np.zeros(len(order), HASH_DTYPE)
    hashes["hash"], hashes["row"] = pedigree["id_hash"].to_numpy(), np.arange(len(order))
    with writing(folder.file(key, HASHES)) as temporary:
        temporary.write_bytes(hashes[np.argsort(hashes["hash"], kind="stable")].tobytes())
    values = {
        "tokens": int((ends - starts).sum()),
        "documents": len(order),
        "bytes": int(pedigree["bytes"].to_numpy().sum()),
        "files": {name: file_entry(folder.file(key, name)).model_dump() for name in (TOKENS, INDEX, DOCUMENTS)},
    }
    return folder.commit(key, [TOKENS, INDEX, DOCUMENTS, HASHES], values)


def _pedigree(runs: Sequence[Run], bounds: Sequence[tuple[int, int]]) -> "pa.Table":
    """What is known of the documents between the bounds of each run, read from the row groups that hold them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for run, (low, high) in zip(runs, bounds, strict=True):
        first = low // PEDIGREE_ROWS
        file = pq.ParquetFile(run.directory / f"{run.split}.parquet")
        table = file.read_row_groups(list(range(first, -(-high // PEDIGREE_ROWS))))
        tables.append(table.slice(low - first * PEDIGREE_ROWS, high - low))
    return pa.concat_tables(tables)
