"""Scores of every document by models, as columns beside its text.

One pass over a shard makes all columns that are missing; each is a result of its own, so that a model that changed
makes its own column again and no other. Memory: a piece of a shard, the words of 4 MB of its text, the models' numbers
and the columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.config.languages import base
from data_prep.config.quality import LABEL_SCORE
from data_prep.documents import Part, iterate, write_columns
from data_prep.engine import Task, advance
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.quality import features, models
from data_prep.quality.classifier import softmax
from data_prep.quality.models import Model
from data_prep.text.texts import Texts

VERSION = 1
STAGE, FILE = "quality-scores", "columns.parquet"


@dataclass(frozen=True)
class Scorer:
    """A model at work; documents of other languages than `languages`, if there are any, get no score."""

    name: str
    model: Model
    languages: tuple[str, ...] | None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name, self.name + LABEL_SCORE) if self.model.is_topic else (self.name,)

    @property
    def order(self) -> str:
        """The column that ranks go by: a probability near 1 is 1 in float32 (measured: for 85 % of a source's
        documents), where its logit still tells documents apart. It does not go into the output."""
        is_probability = self.model.kind == "classifier" and not self.model.is_topic
        return f"{self.name}_logit" if is_probability else self.name

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of a result."""
        return tuple(dict.fromkeys((*self.columns, self.order)))

    def key(self, part: Part) -> str:
        return make_key(STAGE, VERSION, part.key, self.name, self.model.key, self.languages)


def task(part: Part, scorers: Sequence[Scorer]) -> Task:
    """The pass over a part; its results lie below the keys of the scorers."""
    keys = [scorer.key(part) for scorer in scorers]
    return Task(make_key("quality-pass", VERSION, keys), score, (part, scorers), part.bytes)


def score(folder: Folder, key: str, part: Part, scorers: Sequence[Scorer]) -> Record:
    """Write the columns of the scorers whose results are missing."""
    missing = [scorer for scorer in scorers if folder.find(scorer.key(part)) is None]
    rows = [np.zeros(0, np.int64)]
    pieces: dict[str, list] = {scorer.name: [] for scorer in missing}
    for table in iterate(part, ("row", "language", "bytes", "text")):
        rows.append(table["row"].to_numpy().astype(np.int64))
        for languages in dict.fromkeys(scorer.languages for scorer in missing):
            mine = [scorer for scorer in missing if scorer.languages == languages]
            scored = _spoken(table["language"].to_pylist(), languages)
            for scorer, columns in zip(mine, _columns(table, scored, mine), strict=True):
                pieces[scorer.name].append(columns)
        advance(int(table["bytes"].to_numpy().sum()))
    for scorer in missing:
        _write(folder, scorer.key(part), part, np.concatenate(rows), scorer, pieces[scorer.name])
    return folder.commit(key)


def _spoken(found: Sequence[str | None], languages: Sequence[str] | None) -> np.ndarray:
    """Which documents are in one of the languages, bool [documents]."""
    if languages is None:
        return np.ones(len(found), bool)
    wanted = {base(name) for name in languages}
    return np.array([name is not None and base(name) in wanted for name in found], bool)


def _columns(table: "pa.Table", scored: np.ndarray, scorers: Sequence[Scorer]) -> "Iterator[list[pa.Array]]":  # noqa: F821
    """The columns of each scorer for a piece of a shard, of which the documents `scored` are looked at."""
    import pyarrow as pa

    opened = [models.load(scorer.model.directory, scorer.model.key) for scorer in scorers]
    found: list[list[np.ndarray]] = [[np.zeros((0, len(scorer.written)))] for scorer in scorers]
    for _, texts in Texts.of(table["text"].filter(pa.array(scored))).batches():
        words = features.hashed(texts) if any(scorer.model.kind == "classifier" for scorer in scorers) else None
        for scorer, model, values in zip(scorers, opened, found, strict=True):
            if scorer.model.kind == "perplexity":
                values.append(model.score(texts)[:, None])
                continue
            logits = model.logits(words)
            sure = softmax(logits)
            topics = np.stack([sure.argmax(1), sure.max(1)], 1)
            values.append(topics if scorer.model.is_topic else np.stack([sure[:, 0], logits[:, 0] - logits[:, 1]], 1))
    for scorer, values in zip(scorers, found, strict=True):
        whole = np.full((len(scored), len(scorer.written)), np.nan)
        whole[scored] = np.concatenate(values)
        empty = np.isnan(whole)
        pairs = zip(whole.astype(np.float32).T, empty.T, strict=True)
        arrays = [pa.array(column, mask=missing) for column, missing in pairs]
        if scorer.model.is_topic:
            arrays[0] = pa.array(scorer.model.labels).take(arrays[0].cast(pa.int32()))
        yield arrays


def _write(
    folder: Folder,
    key: str,
    part: Part,
    rows: np.ndarray,
    scorer: Scorer,
    pieces: "Sequence[Sequence[pa.Array]]",  # noqa: F821
) -> None:
    import pyarrow as pa

    types = [pa.string(), pa.float32()] if scorer.model.is_topic else [pa.float32()] * len(scorer.written)
    columns = {
        name: pa.chunked_array([columns[number] for columns in pieces], kind)
        for number, (name, kind) in enumerate(zip(scorer.written, types, strict=True))
    }
    with writing(folder.file(key, FILE)) as temporary:
        write_columns(temporary, part, rows, columns)
    folder.commit(key, [FILE])
