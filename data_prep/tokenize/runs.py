"""Text shards -> runs: the tokens of one text shard, in the order in which they are shuffled.

A document's place in the shuffle is a random 64-bit key that depends on (seed, document id) alone. A run is sorted by
it, so that an output shard, which is a range of keys, is one piece of every run.

Memory of a worker: the tokenizer with the words it remembers (0.2 GB), one row group of text (16 MB) with its tokens,
40 bytes per document of the shard, and the columns of 2**17 documents at a time. The tokens lie in a file from the
moment they are made. Measured: a shard of 232 MB in 447,000 documents took 0.4 GB, and the process 0.1 before it.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from data_prep.documents import SHUFFLE_SALT, Part, held_out, iterate, mix
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, make_key, save_error, writing
from data_prep.text.texts import Texts
from data_prep.tokenize.encode import Encoder, open_libraries
from data_prep.tokenize.tokens import add_boundaries, gather
from maxlm.data.shards import TokenizerEntry

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
SPLITS = ("train", "validation")
KINDS = ("tokens", "keys", "ends", "parquet")
LITTLE = {"uint16": "<u2", "uint32": "<u4"}
# Documents are put in order in pieces of so many tokens, their columns in pieces of so many documents.
BATCH_TOKENS, BATCH_DOCUMENTS = 2**22, 2**17
# A range of keys reads only the row groups that it touches, so they are small.
ROW_GROUP = 2048


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
        return make_key("runs", VERSION, part.key, settings, self.seed, self.fraction)


@dataclass(frozen=True)
class Run:
    """Tokens of one text shard and split, sorted by shuffle key: files SPLIT.tokens, .keys, .ends and .parquet.

    keys and ends are uint64 [documents]; an end counts tokens from the start of the run.
    """

    directory: Path
    split: str
    source: str
    documents: int
    bytes: int
    tokens: int

    @property
    def key(self) -> str:
        """Of the result that the run belongs to."""
        return self.directory.name

    def file(self, kind: str) -> Path:
        return self.directory / f"{self.split}.{kind}"

    def load(self, kind: str, dtype: str) -> np.ndarray:
        return _map(self.file(kind), dtype)

    def between(self, shard: int, shards: int) -> tuple[int, int]:
        """The rows whose keys lie in the shard's equal share of the 64-bit range."""
        keys = self.load("keys", "<u8")
        edges = [-(-(2**64) * edge // shards) for edge in (shard, shard + 1)]
        low, high = (np.searchsorted(keys, np.uint64(edge)) if edge < 2**64 else len(keys) for edge in edges)
        return int(low), int(high)

    def edges(self, low: int, high: int) -> np.ndarray:
        """Where the rows low..high begin and the last of them ends, in tokens; int64 [high - low + 1]."""
        ends = self.load("ends", "<u8")[max(0, low - 1) : high].astype(np.int64)
        return ends if low else np.append(0, ends)


def _map(file: Path | BinaryIO, dtype: str) -> np.ndarray:
    size = os.fstat(file.fileno()).st_size if hasattr(file, "fileno") else file.stat().st_size
    return np.asarray(np.memmap(file, dtype, "r")) if size else np.zeros(0, dtype)


@dataclass(frozen=True)
class _Documents:
    """What is known of each kept document of a part, in reading order; arrays [documents]."""

    keys: np.ndarray
    held: np.ndarray
    bytes: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths


def write_runs(folder: Folder, key: str, part: Part, encoding: Encoding) -> Record:
    """Tokenize the kept documents of a part.

    `values` has per split documents, bytes, tokens, and the `empty` documents that gave no token.
    """
    values, names = {}, []
    columns = ("id", "id_hash", *part.pedigree, *part.fingerprints)
    with _scratch(folder.path / key) as file:
        documents = _tokenize(part, encoding, file, folder.path / key)
        tokens = _map(file, LITTLE[encoding.dtype])
        for split, chosen in zip(SPLITS, (~documents.held, documents.held), strict=True):
            if not chosen.any():
                continue
            rows = np.flatnonzero(chosen & (documents.lengths > 0))
            rows = rows[np.argsort(documents.keys[rows], kind="stable")]
            starts, lengths = documents.starts[rows], documents.lengths[rows]
            write_tokens(folder, key, split, tokens, starts, lengths, documents.keys[rows])
            with writing(folder.file(key, f"{split}.parquet")) as temporary:
                write_columns(temporary, lambda: iterate(part, columns), rows)
            names += [f"{split}.{kind}" for kind in KINDS]
            values[split] = {
                "documents": len(rows),
                "bytes": int(documents.bytes[rows].sum()),
                "tokens": int(documents.lengths[rows].sum()),
                "empty": int(chosen.sum()) - len(rows),
            }
    return folder.commit(key, names, values)


def _scratch(directory: Path) -> BinaryIO:
    """A file without a name, which goes with the process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=directory)
    except OSError as error:
        raise save_error(directory, error) from error


def _tokenize(part: Part, encoding: Encoding, file: BinaryIO, place: Path) -> _Documents:
    """Write the tokens of the documents in reading order; `place` is where the file is, for messages."""
    libraries = open_libraries(encoding.directory, encoding.entry.model_dump_json(), encoding.fast)
    encoder = Encoder(*libraries, encoding.lossless)
    hashes, split = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    sizes, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for table in iterate(part, [*dict.fromkeys(("id_hash", "text", "bytes", part.split_by))]):
        hashes.append(table["id_hash"].to_numpy())
        split.append(table[part.split_by].to_numpy())
        sizes.append(table["bytes"].to_numpy())
        for _, texts in Texts.of(table["text"]).batches():
            ids, counts = encoder.encode(texts)
            tokens, counts = add_boundaries(ids, counts, encoding.entry.bos_id, encoding.entry.eos_id)
            _append(file, tokens.astype(LITTLE[encoding.dtype]), place)
            lengths.append(counts)
            advance(int(texts.bounds[-1] - texts.bounds[0]))
    hash_of, split_of, size_of, length_of = map(np.concatenate, (hashes, split, sizes, lengths))
    keys = mix(hash_of, SHUFFLE_SALT + encoding.seed)
    return _Documents(keys, held_out(split_of, encoding.fraction), size_of, length_of)


def _append(file: BinaryIO, array: np.ndarray, place: Path) -> None:
    try:
        file.write(array)
        file.flush()
    except OSError as error:
        raise save_error(place, error) from error


def write_tokens(
    folder: Folder,
    key: str,
    split: str,
    tokens: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
) -> None:
    """Write documents, tokens[starts : starts + lengths] each, in their order, with their keys and ends."""
    with writing(folder.file(key, f"{split}.tokens")) as temporary, open(temporary, "wb") as file:
        for batch in batches(lengths, BATCH_TOKENS):
            chunk = np.empty(lengths[batch].sum(), tokens.dtype)
            gather(tokens, starts[batch], lengths[batch], chunk)
            file.write(chunk)
    for kind, array in (("keys", keys), ("ends", np.cumsum(lengths))):
        with writing(folder.file(key, f"{split}.{kind}")) as temporary:
            temporary.write_bytes(array.astype("<u8").tobytes())


def batches(sizes: np.ndarray, limit: int) -> Iterator[slice]:
    """Consecutive pieces of an array of sizes, each of about `limit` together."""
    if len(sizes):
        edges = np.flatnonzero(np.diff(np.cumsum(sizes) // limit)) + 1
        for first, last in pairwise([0, *edges.tolist(), len(sizes)]):
            yield slice(first, last)


def write_columns(
    path: Path,
    read: Callable[[], Iterable["pa.Table"]],
    rows: np.ndarray,
    added: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the documents `rows` of those that `read` yields, in that order; one may occur more than once.

    `added` are columns of them [rows]. The documents are read again for every piece of the order: without
    their text that costs less than to sort on disk.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for first in range(0, max(1, len(rows)), BATCH_DOCUMENTS):
        wanted, places = np.unique(rows[first : first + BATCH_DOCUMENTS], return_inverse=True)
        found, start = [], 0
        for table in read():
            low, high = np.searchsorted(wanted, (start, start + table.num_rows))
            found.append(table.take(pa.array(wanted[low:high] - start)))
            start += table.num_rows
        table = pa.concat_tables(found).take(pa.array(places))
        for name, column in (added or {}).items():
            table = table.append_column(name, pa.array(column[first : first + BATCH_DOCUMENTS]))
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, ROW_GROUP)
    writer.close()
