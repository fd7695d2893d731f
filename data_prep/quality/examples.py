"""The documents that a classifier learns from: which they are, their features, and on which side of the evaluation."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.config import ClassifierTraining
from data_prep.documents import LIMIT_SALT, Part, chosen, iterate, mix
from data_prep.engine import Task, advance
from data_prep.limit import find_limit
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.quality import features
from data_prep.stages import Run
from data_prep.text.texts import Texts
from maxlm.data.shards import document_hash
from maxlm.errors import DataError

VERSION = 1
CHOICE, STAGE = "model-choice", "model-examples"
DOCUMENTS, FEATURES = "documents.parquet", "features.bin"
COLUMNS = ("id", "id_hash", "hash", "language", "bytes", "text")
HELD_OUT_SALT, EVALUATION_SALT, ORDER_SALT = 2**34, 2**34 + 1, 2**35
TRAINED, CALIBRATING, EVALUATING, COPIES = range(4)


@dataclass(frozen=True)
class Examples:
    """Documents in memory: `found` int32 [features], those of document i from bounds[i] to bounds[i + 1].

    `labels` int64, `ids` and `groups` uint64, `texts` 16 bytes, `sources` and `languages` str [documents]: numbers of
    labels, hashes of ids, of what is on one side of the evaluation, and of texts.
    """

    found: np.ndarray
    bounds: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    groups: np.ndarray
    texts: np.ndarray
    sources: np.ndarray
    languages: np.ndarray

    def sides(self, held_out: float) -> np.ndarray:
        """What each document is for, int64 [documents]: a held-out copy of a text that is trained on is left out."""
        sides = np.full(len(self.labels), TRAINED)
        held = chosen(self.groups, HELD_OUT_SALT, held_out)
        sides[held] = np.where(chosen(self.groups[held], EVALUATION_SALT, 0.5), EVALUATING, CALIBRATING)
        sides[held & np.isin(self.texts, self.texts[~held])] = COPIES
        return sides

    def orders(self, documents: np.ndarray, epochs: int, seed: int) -> np.ndarray:
        """The order of documents in each epoch, int64 [epochs, documents]: by hashes of their ids."""
        salts = (ORDER_SALT + (seed << 32) + epoch for epoch in range(epochs))
        return np.stack([documents[np.argsort(mix(self.ids[documents], salt), kind="stable")] for salt in salts])

    def features_of(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and bounds of some documents, as `features.buckets` has them."""
        starts, stops = self.bounds[documents], self.bounds[documents + 1]
        found = [self.found[start:stop] for start, stop in zip(starts, stops, strict=True)]
        return np.concatenate(found), np.append(0, np.cumsum(stops - starts))


def find(this: Run, parts: Sequence[Part], config: ClassifierTraining) -> tuple[list[Part], list[Record]]:
    """The parts of labelled sources, and a record of the features of each."""
    labelled: dict[str, list[Part]] = {}
    for label, sources in config.labels.items():
        labelled[label] = [part for part in parts if part.source in sources and part.documents]
        if not labelled[label]:
            raise DataError(f"label '{label}': no document of {', '.join(sources)} is left; see what stages dropped")
    over = [name for name, group in labelled.items() if sum(part.bytes for part in group) > config.max_bytes]
    choice = [
        Task(make_key(CHOICE, VERSION, keys, config.max_bytes), find_limit, (labelled[name], config.max_bytes), 0)
        for name in over
        for keys in [[part.key for part in labelled[name]]]
    ]
    limits = this.tasks(CHOICE, choice, "labels") if choice else []
    first = {name: record.values["first"] for name, record in zip(over, limits, strict=True)}
    settings = (config.ngram, config.buckets, config.group)
    tasks = [
        Task(
            make_key(STAGE, VERSION, part.key, first.get(label), settings, features.version()),
            extract,
            (part, first.get(label), *settings),
            part.bytes,
        )
        for label, group in labelled.items()
        for part in group
    ]
    return [part for group in labelled.values() for part in group], this.tasks(STAGE, tasks, "shards")


def extract(
    folder: Folder, key: str, part: Part, first: int | None, ngram: int, buckets: int, group: str | None
) -> Record:
    """Write the features of the documents of a part and what is needed to choose among them.

    `first` is the hash of the first document that is too many. Memory: a piece of a shard, and its features.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    expression = None if group is None else re.compile(group)
    with (
        writing(folder.file(key, DOCUMENTS)) as documents,
        writing(folder.file(key, FEATURES)) as numbers,
        pq.ParquetWriter(documents, _schema(), compression="zstd") as writer,
        open(numbers, "wb") as file,
    ):
        for table in iterate(part, list(dict.fromkeys((*COLUMNS, part.split_by)))):
            advance(int(table["bytes"].to_numpy().sum()))
            if first is not None:
                table = table.filter(pa.array(mix(table["id_hash"].to_numpy(), LIMIT_SALT) < np.uint64(first)))
            counts = [np.zeros(0, np.int64)]
            for _, texts in Texts.of(table["text"]).batches():
                found, bounds = features.buckets(features.hashed(texts), ngram, buckets)
                found.astype("<i4").tofile(file)
                counts.append(np.diff(bounds))
            groups = table[part.split_by] if expression is None else _groups(table["id"].to_pylist(), expression)
            columns = [table["id_hash"], groups, table["hash"], table["language"], np.concatenate(counts)]
            writer.write_table(pa.table(columns, schema=_schema()))
    return folder.commit(key, [DOCUMENTS, FEATURES])


def _schema() -> "pa.Schema":  # noqa: F821
    import pyarrow as pa

    numbers = [("id", pa.uint64()), ("group", pa.uint64())]
    return pa.schema([*numbers, ("text", pa.binary(16)), ("language", pa.string()), ("features", pa.int64())])


def _groups(ids: Sequence[str], expression: re.Pattern) -> "pa.Array":  # noqa: F821
    """Hashes of what the expression finds in ids without their source, of the whole id where it finds nothing."""
    import pyarrow as pa

    found = [expression.search(name.partition("/")[2]) for name in ids]
    hashes = [document_hash(match[0] if match else name) for match, name in zip(found, ids, strict=True)]
    return pa.array(hashes, pa.uint64())


def load(paths: Sequence[Path], sources: Sequence[str], labels: Mapping[str, Sequence[str]]) -> Examples:
    """The documents of results of `extract`; `sources` are those of the paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(path / DOCUMENTS) for path in paths]
    table = pa.concat_tables(tables)
    names = np.repeat(np.array(sources), [one.num_rows for one in tables])
    numbers = {source: number for number, group in enumerate(labels.values()) for source in group}
    return Examples(
        np.concatenate([np.fromfile(path / FEATURES, "<i4") for path in paths]),
        np.append(0, np.cumsum(table["features"].to_numpy())),
        np.array([numbers[source] for source in names.tolist()], np.int64),
        table["id"].to_numpy(),
        table["group"].to_numpy(),
        np.array(table["text"].to_pylist(), "V16"),
        names,
        np.array(table["language"].fill_null("unknown").to_pylist(), str),
    )
