"""Train a model of quality on the documents of a selection."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Column, Table

from data_prep.config import ClassifierTraining
from data_prep.console import right
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.quality import classifier, evaluate, examples, features, models
from data_prep.quality.examples import CALIBRATING, COPIES, EVALUATING, TRAINED, Examples
from data_prep.quality.plot import calibration_plot
from data_prep.stages import Run
from maxlm.errors import DataError

VERSION = 1
STAGE = "model"
# A source and a label have one kind of document: of those, accuracy is recall.
HEADINGS = ("documents", "accuracy,\nrecall", "precision", "AUC", "Brier", "ECE")
# Fewer cannot calibrate a label, nor say anything of it.
LEAST_DOCUMENTS = 10


def run(this: Run, parts: list[Part]) -> Path:
    """Write the model to its directory, which is returned, and say how well it does on held-out documents."""
    config = this.config
    directory = Path(config.output) / config.name
    if config.perplexity is not None:
        from data_prep.quality import perplexity

        record = perplexity.train(this, parts, config.perplexity)
        models.publish(this.folder(perplexity.STAGE), record, directory, config.name)
        return directory
    record = _train(this, parts, config.classifier)
    values = models.publish(this.folder(STAGE), record, directory, config.name)
    _print(this, values)
    return directory


def _train(this: Run, parts: Sequence[Part], config: ClassifierTraining) -> Record:
    labelled, records = examples.find(this, parts, config)
    paths = [this.folder(examples.STAGE).path / record.key for record in records]
    sources = [part.source for part in labelled]
    settings = config.model_dump(mode="json")
    versions = (VERSION, classifier.VERSION, evaluate.VERSION)
    key = make_key(STAGE, *versions, [record.key for record in records], sources, settings, this.config.seed)
    # In one process: each document changes the weights that the next one meets.
    return this.tasks(STAGE, [Task(key, fit, (paths, sources, config, this.config.seed), 0)], "models")[0]


def fit(
    folder: Folder, key: str, paths: Sequence[Path], sources: Sequence[str], config: ClassifierTraining, seed: int
) -> Record:
    """Train, calibrate and evaluate; write weights, description and plot.

    Memory: the features of all documents, about 2 bytes for each byte of text of their n-grams of two words (Han
    characters 3), once more for those that are held out, and 8 bytes for each bucket and label.
    """
    known = examples.load(paths, sources, config.labels)
    sides = known.sides(config.held_out)
    _check_sides(known, sides, list(config.labels))
    trained = np.flatnonzero(sides == TRAINED)
    orders = known.orders(trained, config.epochs, seed)
    shape = (config.buckets, len(config.labels) - 1)
    weights = classifier.train(known.found, known.bounds, known.labels, orders, shape, config.learning_rate)
    scale, biases, evaluation = _evaluate(known, sides, list(config.labels), weights)
    values = {
        "kind": "classifier",
        "version": classifier.VERSION,
        "labels": list(config.labels),
        "ngram": config.ngram,
        "buckets": config.buckets,
        "features": features.version(),
        "calibration": {"scale": scale, "biases": biases.tolist()},
        "training": config.model_dump(mode="json") | {"seed": seed, "documents": _counts(known, sides, config.labels)},
        "evaluation": evaluation,
        "made_by": key,
    }
    with writing(folder.file(key, models.WEIGHTS)) as temporary, open(temporary, "wb") as file:
        np.save(file, weights, allow_pickle=False)
    with writing(folder.file(key, models.DESCRIPTION)) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False))
    subject = f"'{next(iter(config.labels))}'" if shape[1] == 1 else "the likeliest label"
    with writing(folder.file(key, models.PLOT)) as temporary:
        temporary.write_text(calibration_plot("Calibration", subject, evaluation["all"]["reliability"]))
    return folder.commit(key, [models.WEIGHTS, models.DESCRIPTION, models.PLOT])


def _check_sides(known: Examples, sides: np.ndarray, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        counts = np.bincount(sides[known.labels == number], minlength=COPIES + 1)
        for side, purpose in ((TRAINED, "train on"), (CALIBRATING, "calibrate with"), (EVALUATING, "evaluate with")):
            if counts[side] < LEAST_DOCUMENTS:
                raise DataError(
                    f"label '{name}': {counts[side]} documents to {purpose} of {counts.sum()}, expected "
                    f"{LEAST_DOCUMENTS} or more; give it more documents, or change held_out or group"
                )


def _counts(known: Examples, sides: np.ndarray, labels: Mapping[str, object]) -> dict[str, dict[str, int]]:
    """Documents by label and by what they are for."""
    kinds = ("trained", "calibrating", "evaluating", "left out as copies")
    return {
        label: {kind: int(((sides == side) & (known.labels == number)).sum()) for side, kind in enumerate(kinds)}
        for number, label in enumerate(labels)
    }


def _evaluate(
    known: Examples, sides: np.ndarray, names: Sequence[str], weights: np.ndarray
) -> tuple[float, np.ndarray, dict]:
    """Scale and biases from one half of the held-out documents, and what the other half says."""
    halves = [np.flatnonzero(sides == side) for side in (CALIBRATING, EVALUATING)]
    logits = [classifier.sums(*known.features_of(half), weights) for half in halves]
    scale, biases = evaluate.calibrate(logits[0], known.labels[halves[0]])
    labels = known.labels[halves[1]]
    probabilities = classifier.softmax(scale * logits[1] + biases)
    groups = {"sources": known.sources[halves[1]], "languages": known.languages[halves[1]]}
    before = evaluate.measure(classifier.softmax(logits[1]), labels, names)
    evaluation = {
        "all": evaluate.measure(probabilities, labels, names),
        "before_calibration": before,
    }
    for kind, of in groups.items():
        evaluation[kind] = {
            name: evaluate.of_group(probabilities, labels, of == name) for name in np.unique(of).tolist()
        }
    return scale, biases, evaluation


def _print(this: Run, values: dict) -> None:
    evaluation, names = values["evaluation"], values["labels"]
    whole = evaluation["all"]
    copies = sum(one["left out as copies"] for one in values["training"]["documents"].values())
    if copies:
        this.warn(f"{copies:,} held-out documents are copies of trained ones and were left out; `dedup` removes copies")
    table = Table(
        Column("held out", no_wrap=True),
        *map(right, HEADINGS),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_row("all", *_cells(whole), style="bold")
    before = {name: evaluation["before_calibration"][name] for name in ("accuracy", "brier", "calibration_error")}
    table.add_row("  uncalibrated", *_cells(before), style="dim")
    groups = {"label": whole["labels"], "source": evaluation["sources"], "language": evaluation["languages"]}
    for kind, found in groups.items():
        for name, one in found.items():
            table.add_row(f"{kind} {name}", *_cells(one))
    this.console.print(table)
    subject = f"probability of {names[0]}" if len(names) == 2 else "probability of the likeliest label"
    table = Table(
        subject, *map(right, ("came true", "documents")), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for one in whole["reliability"]:
        table.add_row(f"{one['probability']:.3f}", f"{one['frequency']:.3f}", f"{one['documents']:,}")
    this.console.print(table)


def _cells(found: Mapping[str, float | None]) -> list[str]:
    """The cells of a row; what is not said of a group stays empty."""
    documents = f"{found['documents']:,}" if "documents" in found else ""
    names = ("recall" if "recall" in found else "accuracy", "precision", "auc", "brier", "calibration_error")
    values = [found.get(name) for name in names]
    return [documents, *("" if value is None else f"{value:.4f}" for value in values)]
