"""Directories of shards written straight from documents, without data_prep."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maxlm.data.shards import (
    HASH_DTYPE,
    HASHES,
    MANIFEST,
    Manifest,
    ShardEntry,
    Shards,
    TokenizerEntry,
    document_hash,
    documents_name,
    file_entry,
    index_name,
    tokens_name,
)

Documents = Sequence[Sequence[int]]
EOS = 0


def write_directory(
    directory: Path,
    documents: Documents,
    shards: int = 1,
    dtype: str = "uint16",
    vocab_size: int = 2**16,
    tokenizer: str = "one",
) -> Shards:
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer" / "tokenizer.json").write_text(tokenizer)
    parts = [documents[len(documents) * s // shards : len(documents) * (s + 1) // shards] for s in range(shards)]
    entries = [_write_shard(directory, number, part, dtype) for number, part in enumerate(parts)]
    ids = [(document_hash(f"{s}/{row}"), s, row) for s, part in enumerate(parts) for row in range(len(part))]
    np.array(sorted(ids), HASH_DTYPE).tofile(directory / HASHES)
    manifest = Manifest(
        dtype=dtype,
        tokens=sum(entry.tokens for entry in entries),
        documents=len(documents),
        bytes=sum(entry.bytes for entry in entries),
        tokenizer=TokenizerEntry(
            kind="tokenizers",
            vocab_size=vocab_size,
            bos_id=None,
            eos_id=EOS,
            files={"tokenizer.json": file_entry(directory / "tokenizer" / "tokenizer.json")},
        ),
        shards=entries,
        document_hashes=file_entry(directory / HASHES),
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    return Shards(directory)


def _write_shard(directory: Path, number: int, documents: Documents, dtype: str) -> ShardEntry:
    paths = [directory / name(number) for name in (tokens_name, index_name, documents_name)]
    np.array([token for document in documents for token in document]).astype(dtype).tofile(paths[0])
    np.cumsum([len(document) for document in documents]).astype("<u8").tofile(paths[1])
    sizes = [4 * len(document) for document in documents]
    pq.write_table(pa.table({"id": [f"{number}/{row}" for row in range(len(documents))], "bytes": sizes}), paths[2])
    tokens = sum(map(len, documents))
    files = {path.name: file_entry(path) for path in paths}
    return ShardEntry(tokens=tokens, documents=len(documents), bytes=sum(sizes), files=files)


def documents_of_lengths(lengths: Sequence[int], first: int = 1) -> list[list[int]]:
    """Documents of the given lengths, EOS included; their other ids count up from `first`, so each occurs once."""
    bounds = np.cumsum([first, *(length - 1 for length in lengths)]).tolist()
    return [[*range(start, stop), EOS] for start, stop in pairwise(bounds)]


def documents_of_random_lengths(seed: int, count: int, first: int = 1) -> list[list[int]]:
    """Documents of 2 to 40 tokens."""
    return documents_of_lengths(np.random.default_rng(seed).integers(2, 41, count).tolist(), first)
