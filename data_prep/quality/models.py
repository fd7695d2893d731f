"""Directories of models: `model.json` says what a model is, beside it lie its numbers. Nothing in them is run.

`files` in model.json has the SHA-256 of each of the other files, so that its own hash stands for the whole model.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.manifest import Folder, Record, save_error
from data_prep.quality import classifier, features
from data_prep.quality.classifier import Classifier
from data_prep.text import words
from maxlm.errors import ConfigError, DataError

DESCRIPTION, WEIGHTS, PLOT = "model.json", "weights.npy", "calibration.svg"
KINDS = ("classifier", "perplexity")


@dataclass(frozen=True)
class Model:
    """A directory of a model; `key` stands for its content."""

    directory: Path
    key: str
    kind: str
    labels: tuple[str, ...] = ()

    @property
    def is_topic(self) -> bool:
        return len(self.labels) > 2


def publish(folder: Folder, record: Record, directory: Path, name: str) -> dict[str, Any]:
    """Put the files of a result into a model's directory, which becomes the new model in one rename."""
    source = folder.path / record.key
    values = json.loads((source / DESCRIPTION).read_bytes())
    others = sorted(one for one in record.files if one != DESCRIPTION)
    values |= {"name": name, "files": {one: _digest(source / one) for one in others}}
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    staging, former = (directory.with_name(f".{directory.name}.{kind}") for kind in ("partial", "former"))
    try:
        if (directory / DESCRIPTION).is_file() and (directory / DESCRIPTION).read_text() == text:
            return values
        if directory.exists() and not (directory / DESCRIPTION).is_file():
            raise ConfigError(f"{directory}: exists and is no model; move it away, or set output or name")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for one in others:
            shutil.copyfile(source / one, staging / one)
        (staging / DESCRIPTION).write_text(text)
        shutil.rmtree(former, ignore_errors=True)
        if directory.exists():
            os.rename(directory, former)
        os.rename(staging, directory)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise save_error(directory, error) from error
    return values


def find(directory: Path) -> Model:
    """What a directory says of its model; raises `ConfigError` or `DataError` where it cannot be used here."""
    values, key = _describe(directory)
    try:
        for found, expected in _versions(values):
            if found != expected:
                raise DataError(
                    f"{directory}: made by version {json.dumps(found)}, this program has {json.dumps(expected)}; train "
                    "the model again"
                )
        return Model(directory, key, values["kind"], tuple(values.get("labels", ())))
    except (LookupError, TypeError) as error:
        raise DataError(f"{directory / DESCRIPTION}: has no {error}; train the model again") from None


def _versions(values: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The versions of everything that a model's scores depend on: those that made it, and those of this program."""
    if values["kind"] == "classifier":
        return [(values["version"], classifier.VERSION), (values["features"], features.version())]
    from data_prep.quality import perplexity

    splitter = values["splitter"]
    return [(values["version"], perplexity.VERSION), (splitter, words.version(splitter[0]))]


def _describe(directory: Path) -> tuple[dict[str, Any], str]:
    path = directory / DESCRIPTION
    try:
        data = path.read_bytes()
        values = json.loads(data)
        kind, files = values["kind"], values["files"]
        sizes = {name: (directory / name).stat().st_size for name in files}
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.filename}: not found; a model's directory is what `maxlm-prep train-model` prints"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error}); train the model again") from None
    if kind not in KINDS:
        raise DataError(f"{path}: the kind of the model is '{kind}', expected {' or '.join(KINDS)}")
    for name, size in sizes.items():
        if size != files[name]["bytes"]:
            raise DataError(f"{directory / name}: {size} bytes, expected {files[name]['bytes']}; train the model again")
    return values, hashlib.sha256(data).hexdigest()[:32]


@cache
def load(directory: Path, key: str) -> Any:
    """The classifier or language model in a directory, opened once a process; raises `DataError` where it changed."""
    values, found = _describe(directory)
    if found != key:
        raise DataError(f"{directory}: the model has changed since the run began; run it again")
    for name, entry in values["files"].items():
        if _digest(directory / name) != entry:
            raise DataError(f"{directory / name}: not the file that was written; train the model again")
    if values["kind"] == "classifier":
        weights = np.load(directory / WEIGHTS, allow_pickle=False)
        if weights.shape != (values["buckets"], len(values["labels"]) - 1) or weights.dtype != np.float32:
            raise DataError(f"{directory / WEIGHTS}: {weights.dtype} {list(weights.shape)} is not of this model")
        scale, biases = values["calibration"]["scale"], np.array(values["calibration"]["biases"])
        return Classifier(tuple(values["labels"]), values["ngram"], weights, scale, biases)
    from data_prep.quality import perplexity

    return perplexity.open_model(directory)


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
