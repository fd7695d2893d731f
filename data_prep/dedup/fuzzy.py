"""Near duplicates: documents whose normalised texts are equal, or which share a band of their MinHash signatures.

One pass over the text computes both (signatures.py); what follows are queries over the hashes. Of each cluster of
documents that share something, directly or through others, the best one stays (copies.py); or all stay, and know their
cluster, so that none of it is held out while another is trained on.

Memory of a worker: 16 MB of text at a time and about ten times as much while it is hashed, and the keys of a part
(tables.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.config import DedupConfig
from data_prep.dedup import signatures
from data_prep.dedup.against import Shard
from data_prep.dedup.copies import Ranks, found_of
from data_prep.dedup.signatures import MinHash
from data_prep.dedup.tables import write_keys
from data_prep.documents import Part, iterate, write_columns
from data_prep.engine import advance
from data_prep.lists import Marks, write_list
from data_prep.manifest import Folder, Record, writing
from data_prep.text import words
from data_prep.text.texts import Texts

if TYPE_CHECKING:
    import pyarrow as pa

VERSION, MARK_VERSION = 1, 1
KEYS, COLUMNS = "keys.npy", "columns.parquet"


@dataclass(frozen=True)
class Signing:
    """Which signatures documents get."""

    config: DedupConfig

    @property
    def key(self) -> list:
        fuzzy = self.config.fuzzy.model_dump(exclude={"drop", "expect_matches"}) if self.config.fuzzy else None
        return [self.config.normalised, fuzzy, signatures.VERSION, words.version(signatures.SPLITTER)]

    @property
    def columns(self) -> list[str]:
        return ["normalised"] * self.config.normalised + ["bands"] * (self.config.fuzzy is not None)

    def sign(self, texts: Texts, languages: Sequence[str | None]) -> dict[str, np.ndarray]:
        """The signatures of documents by column: uint64 [documents] or [documents, buckets]."""
        found = {}
        if self.config.normalised:
            found["normalised"] = signatures.normalised(texts)
        if (fuzzy := self.config.fuzzy) is not None:
            shingles = [fuzzy.by_language.get(language, fuzzy) for language in languages]
            single = np.array([one.unit == "characters" for one in shingles], bool)
            ngrams = np.array([one.ngram for one in shingles], np.int64)
            found["bands"] = signatures.bands(texts, MinHash(fuzzy.buckets, fuzzy.rows, fuzzy.seed), single, ngrams)
        return found


def write_part_keys(folder: Folder, key: str, part: Part, signing: Signing) -> Record:
    """Write the signatures of the kept documents of a part, as columns and as sorted keys."""
    rows, found = [np.zeros(0, np.int64)], [signing.sign(Texts.from_strings([]), [])]
    for table in iterate(part, ("row", "text", "language")):
        languages = table["language"].to_pylist()
        for start, texts in Texts.of(table["text"]).batches():
            found.append(signing.sign(texts, languages[start : start + len(texts)]))
            advance(int(texts.bounds[-1] - texts.bounds[0]))
        rows.append(table["row"].to_numpy().astype(np.int64))
    row = np.concatenate(rows)
    columns = {name: np.concatenate([piece[name] for piece in found]) for name in signing.columns}
    _write_keys(folder.file(key, KEYS), [(row, array) for array in columns.values()])
    with writing(folder.file(key, COLUMNS)) as temporary:
        write_columns(temporary, part, row, {name: _arrow(array) for name, array in columns.items()})
    return folder.commit(key, [KEYS, COLUMNS])


def write_shard_keys(folder: Folder, key: str, shard: Shard, signing: Signing) -> Record:
    """Write the signatures of an earlier shard as sorted keys."""
    pieces = []
    for table in shard.iterate(signing.columns):
        row = table["row"].to_numpy().astype(np.int64)
        for name in signing.columns:
            column = table[name].combine_chunks()
            known = row[column.is_valid().to_numpy(zero_copy_only=False)]
            values = column.drop_null() if name == "normalised" else column.flatten()
            pieces.append((known, values.to_numpy().reshape(len(known), -1) if len(known) else np.zeros((0, 1), "u8")))
    _write_keys(folder.file(key, KEYS), pieces)
    return folder.commit(key, [KEYS])


def _write_keys(path: Path, pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Save rows [documents] and their signatures, uint64 [documents] or [documents, buckets], as keys."""
    rows, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for row, array in pieces:
        rows.append(np.repeat(row, array.size // max(1, len(row))))
        keys.append(array.ravel())
    write_keys(path, np.concatenate(rows), key=np.concatenate(keys))


def _arrow(array: np.ndarray) -> "pa.Array":
    """A column of integers, or of lists of them."""
    import pyarrow as pa

    if array.ndim == 1:
        return pa.array(array)
    bounds = np.arange(len(array) + 1, dtype=np.int32) * np.int32(array.shape[1])
    return pa.ListArray.from_arrays(bounds, array.ravel())


def mark(folder: Folder, key: str, part: Part, number: int, files: Sequence[Path], ranks: Ranks, drop: bool) -> Record:
    """The list of a part, and the size of each document's cluster as a column of those that stay.

    Without `drop` all stay but copies of earlier data sets, and get another column: their cluster, the hash of the id
    of its best document. The notes of the list name it, so that the list differs where the clusters do.
    """
    import pyarrow as pa

    marks, sizes, clusters = Marks(), np.ones(part.rows, np.int32), np.zeros(part.rows, np.uint64)
    for row, size, entry in found_of(files, part, number):
        if entry["best"] and drop:
            marks.note(row, f"cluster of {entry['size']}")
        elif drop or ranks.earlier(int(entry["rank"])) is not None:
            marks.drop(row, size, _reason(ranks, entry, ranks.of(part)))
        else:
            marks.note(row, f"cluster {entry['first']:016x} of {entry['size']}", "in a cluster")
        sizes[row], clusters[row] = entry["size"], entry["first"]
    sizes[[row for row, reason in zip(marks.rows, marks.reasons, strict=True) if reason]] = 0
    tables = list(iterate(part, ("row", "id_hash")))
    rows = np.concatenate([np.zeros(0, np.int64), *(table["row"].to_numpy() for table in tables)])
    hashes = np.concatenate([np.zeros(0, np.uint64), *(table["id_hash"].to_numpy() for table in tables)])
    kept = sizes[rows] > 0
    rows, hashes = rows[kept], hashes[kept]
    columns = {"cluster_size": sizes[rows]}
    if not drop:
        columns["cluster"] = np.where(clusters[rows] > 0, clusters[rows], hashes)
    with writing(folder.file(key, COLUMNS)) as temporary:
        write_columns(temporary, part, rows, {name: pa.array(column) for name, column in columns.items()})
    lists = {part.name: write_list(folder, key, part.name, marks)} if marks.rows else {}
    return folder.commit(key, [COLUMNS, *(f"{name}.parquet" for name in lists)], {"lists": lists})


def _reason(ranks: Ranks, entry: np.void, own: int) -> str:
    if (earlier := ranks.earlier(int(entry["rank"]))) is not None:
        return earlier
    if entry["same"]:
        return "duplicate but for case and punctuation"
    return "near duplicate" if entry["rank"] == own else "near duplicate of another source"
