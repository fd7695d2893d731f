"""The directories that training reads: finished shards get their numbers, a hash table and a manifest.

A directory is assembled beside its final place and takes that place in one rename, so that a reader finds the former
one, the new one, or (for the moment between two renames) none.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.manifest import Folder, Record, make_key, save_error, writing
from data_prep.tokenize.shards import DOCUMENTS, HASHES, INDEX, PRINTS, TOKENS
from maxlm.data import shards as layout
from maxlm.errors import DataError

VERSION = 1
# documents.hash is merged range by range of the hash, so that memory holds a share of it.
HASH_RANGES = 64


@dataclass(frozen=True)
class Output:
    """One directory of shards; `shard_keys` are the keys of its shards, in order."""

    directory: Path
    shard_keys: tuple[str, ...]
    dtype: str
    tokenizer: layout.TokenizerEntry

    @property
    def key(self) -> str:
        settings = [self.directory.name, self.dtype, self.tokenizer.model_dump()]
        return make_key("output", VERSION, settings, self.shard_keys)


def find(folder: Folder, output: Output) -> layout.Manifest | None:
    """The manifest of a directory that is complete, as this pipeline wrote it, else None."""
    record = folder.find(output.key)
    try:
        if record is None or layout.file_entry(output.directory / layout.MANIFEST).sha256 != record.values["manifest"]:
            return None
        shards = layout.Shards(output.directory)
        shards.verify("sizes")
    except (OSError, DataError):
        return None
    return layout.read_manifest(output.directory)


def assemble(
    folder: Folder,
    output: Output,
    shard_folder: Folder,
    records: Sequence[Record],
    tokenizer: Path,
    pipeline: dict[str, Any],
) -> layout.Manifest:
    """Put a directory together and in its place; the shards' files are moved, the tokenizer's copied."""
    records = [record for record in records if record.values["documents"]]
    staging = output.directory.with_name(f".{output.directory.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "tokenizer").mkdir(parents=True)
        for name in output.tokenizer.files:
            shutil.copyfile(tokenizer / name, staging / "tokenizer" / name)
        with writing(staging / layout.HASHES) as temporary:
            _merge_hashes(temporary, [shard_folder.file(record.key, HASHES) for record in records])
        manifest = _manifest(output, records, layout.file_entry(staging / layout.HASHES), pipeline)
        for number, record in enumerate(records):
            for name, final in _final_names(number).items():
                shutil.move(shard_folder.file(record.key, name), staging / final)
        with writing(staging / layout.MANIFEST) as temporary:
            temporary.write_text(manifest.model_dump_json(indent=1) + "\n")
        _swap(staging, output.directory)
    except OSError as error:
        raise save_error(output.directory, error) from error
    folder.commit(output.key, (), {"manifest": layout.file_entry(output.directory / layout.MANIFEST).sha256})
    return manifest


def _final_names(number: int) -> dict[str, str]:
    return {
        TOKENS: layout.tokens_name(number),
        INDEX: layout.index_name(number),
        DOCUMENTS: layout.documents_name(number),
        PRINTS: layout.fingerprints_name(number),
    }


def _manifest(
    output: Output, records: Sequence[Record], hashes: layout.FileEntry, pipeline: dict[str, Any]
) -> layout.Manifest:
    entries = []
    for number, record in enumerate(records):
        files = {final: record.values["files"][name] for name, final in _final_names(number).items()}
        entries.append(layout.ShardEntry(**{**record.values, "files": files}))
    return layout.Manifest(
        dtype=output.dtype,
        tokens=sum(entry.tokens for entry in entries),
        documents=sum(entry.documents for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        tokenizer=output.tokenizer,
        shards=entries,
        document_hashes=hashes,
        pipeline=pipeline,
    )


def _merge_hashes(path: Path, sorted_files: Sequence[Path]) -> None:
    """Merge the hash tables of the shards and number their shards."""
    tables = [np.memmap(file, layout.HASH_DTYPE, "r") for file in sorted_files]
    edges = [2**64 * edge // HASH_RANGES for edge in range(1, HASH_RANGES)]
    cuts = [[0, *np.searchsorted(table["hash"], np.array(edges, np.uint64)), len(table)] for table in tables]
    with open(path, "wb") as file:
        for part in range(HASH_RANGES):
            pieces = [np.array(table[cut[part] : cut[part + 1]]) for table, cut in zip(tables, cuts, strict=True)]
            for number, piece in enumerate(pieces):
                piece["shard"] = number
            merged = np.concatenate(pieces)
            file.write(merged[np.argsort(merged["hash"], kind="stable")].tobytes())


def _swap(staging: Path, final: Path) -> None:
    former = final.with_name(f".{final.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        final.rename(former)
    staging.rename(final)
    shutil.rmtree(former, ignore_errors=True)
