"""What `maxlm eval` does with a path."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from maxlm.config import CacheConfig, LossConfig
from maxlm.data.shards import Shards
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.evaluate import knowledge, results
from maxlm.evaluate.load import Loaded, find_source, load_all, load_source
from maxlm.evaluate.perplexity import Result, evaluate
from maxlm.evaluate.placing import named_mesh
from maxlm.evaluate.questions import Questions, read_questions
from maxlm.evaluate.task_command import evaluate_tasks
from maxlm.evaluate.tasks import Tasks, Wanted, open_tasks
from maxlm.parallel import runtime
from maxlm.parallel.sharding import RULES
from maxlm.report.progress import track
from maxlm.saved import PARAMS

# Examples per device and batch: evaluation keeps no activations.
BATCH_PER_DEVICE = 8
# Tokens of a sequence, where no run says how long they were in training: long contexts are slow, and rarely filled.
LONGEST = 4096


class Asked(NamedTuple):
    """What is asked of every path alike."""

    data: Mapping[str, str] = MappingProxyType({})  # held-out directories or URLs by name
    sequences: int | None = None  # most of a held-out source
    knowledge: Mapping[str, str] = MappingProxyType({})  # files of questions by name
    mesh: str | None = None  # as in data=2,tensor=4, for questions; None for all devices along `fsdp`
    batch: int | None = None  # texts of full length at a time; None for BATCH_PER_DEVICE on every device
    file: Path | None = None  # where answers' figures go in place of the run's own eval.jsonl
    again: bool = False  # ask also what is finished
    weights: str = PARAMS  # or "ema" for the average of them that a run kept
    tasks: Wanted | None = None  # of lm-eval


def measure(
    paths: Sequence[Path], asked: Asked, report: Callable[[str], None]
) -> dict[str, dict[str, Result | dict[str, Any]]]:
    """Figures of every path, by the names of held-out sources and of files of questions.

    A run's own held-out sources are read where nothing else is asked for. Raises `ConfigError` where names or places
    are of two things.
    """
    paths = list(dict.fromkeys(paths))
    if asked.file and len(paths) > 1:
        raise ConfigError(f"--results {asked.file}: holds figures of one PATH, found {len(paths)}; leave it out")
    if twice := asked.data.keys() & asked.knowledge.keys():
        raise ConfigError(f"--knowledge {min(twice)}=...: --data has this name too; expected another")
    tasks = open_tasks(asked.tasks, track) if asked.tasks else None
    if tasks and (twice := (asked.data.keys() | asked.knowledge.keys()) & (tasks.tasks.keys() | tasks.groups.keys())):
        raise ConfigError(f"--tasks: {min(twice)} is the name of a source or a file of questions too; expected another")
    return {str(path): _measure(path, asked, tasks, report) for path in paths}


def _measure(
    path: Path, asked: Asked, tasks: Tasks | None, report: Callable[[str], None]
) -> dict[str, Result | dict[str, Any]]:
    answers = ask_path(path, asked, report) if asked.knowledge else {}
    if tasks:
        options = {"mesh": asked.mesh, "batch": asked.batch, "file": asked.file, "again": asked.again}
        answers |= evaluate_tasks(path, tasks, report=report, weights=asked.weights, **options)
    held_out = evaluate_path(path, asked) if asked.data or not answers else {}
    return held_out | answers


def named(texts: Sequence[str], option: str, kind: str) -> dict[str, str]:
    """What an option that may be given often names, each as NAME=`kind`; `ConfigError` where one is not so."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise ConfigError(f"{option} {text}: expected NAME={kind}")
        if name in found:
            raise ConfigError(f"{option} {text}: the name {name} is taken by {found[name]}; expected another")
        found[name] = place
    return found


def refuse_idle(options: Mapping[str, Any], needed: str) -> None:
    """Raise `ConfigError` where one of the options was given, and what it would change is not asked for."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ConfigError(f"{', '.join(given)}: nothing to change without {needed}; add it, or leave this out")


def evaluate_path(path: Path, asked: Asked) -> dict[str, Result]:
    """Held-out quality of a model on directories (or URLs) given by name, else on its run's own validation sources."""
    runtime.setup()
    loaded = load_all(path, weights=asked.weights)
    reading = _reading(loaded)
    if not (sources := asked.data or reading.validation):
        raise ConfigError(f"{path} has no data.validation; name held-out shards with --data NAME=DIRECTORY")
    found = {}
    for name, directory in sources.items():
        shards = Shards(directory, reading.cache)
        shards.verify(reading.verify)
        if not loaded.tokenizer.equals(Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)):
            raise ConfigError(
                f"{shards.directory}: was prepared with another tokenizer than {path}; prepare it with the model's"
            )
        found[name] = evaluate(
            loaded.graphdef,
            loaded.params,
            shards,
            mesh=loaded.mesh,
            seq_len=reading.seq_len,
            batch_size=BATCH_PER_DEVICE * loaded.mesh.size,
            sequences=asked.sequences,
            chunk=reading.chunk,
            mask_documents=reading.mask_documents,
            progress=lambda batches, total, name=name: track(batches, f"evaluating {name}", total),
        )
    return found


def ask_path(path: Path, asked: Asked, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """A model's answers to files of questions by name, as the lines of eval.jsonl that were written.

    Those that stand there with the same step and settings are not asked again, unless `again`; `report` is told so, and
    of questions that are left out.
    """
    files = {name: read_questions(place) for name, place in asked.knowledge.items()}
    runtime.setup()
    source = find_source(path, asked.weights)
    place = results.place_of(source, asked.file)
    loaded = load_source(source, mesh=named_mesh(asked.mesh, jax.devices()) if asked.mesh else None)
    return {name: _answers(loaded, place, name, questions, asked, report) for name, questions in files.items()}


def _answers(
    loaded: Loaded,
    place: results.Place,
    name: str,
    questions: Questions,
    asked: Asked,
    report: Callable[[str], None],
) -> dict[str, Any]:
    exam = knowledge.encode(name, questions, loaded.tokenizer, loaded.made_for or LONGEST)
    for note in exam.notes:
        report(note)
    dtype = loaded.decoder.options.dtype.name
    if not asked.again and (line := place.finished(name, knowledge.settings(exam, dtype))):
        report(f"{name} is finished for step {place.step:,}: taken from {place.where}; --again measures it again")
        return line
    began = time.monotonic()
    shards = math.prod(loaded.mesh.shape[axis] for axis in RULES["batch"])
    rows = math.ceil((asked.batch or BATCH_PER_DEVICE * loaded.mesh.size) / shards) * shards
    result = knowledge.evaluate(
        loaded.graphdef,
        loaded.params,
        exam,
        mesh=loaded.mesh,
        rows=rows,
        chunk=(loaded.config.loss if loaded.config else LossConfig()).chunk,
        progress=lambda scored, total: track(scored, f"asking {name}", total, "answers"),
    )
    line = place.head | knowledge.describe(exam, result, dtype)
    line["seconds"] = time.monotonic() - began
    place.append(line)
    return line


class _Reading(NamedTuple):
    """How held-out data are read."""

    validation: dict[str, str]  # directories by name
    seq_len: int
    mask_documents: bool
    chunk: int
    cache: CacheConfig
    verify: str


def _reading(loaded: Loaded) -> _Reading:
    """As the run read its data; a model that was not trained here reads documents by themselves."""
    config = loaded.config
    if config is None:
        seq_len = min(loaded.made_for or LONGEST, LONGEST)
        return _Reading({}, seq_len, True, LossConfig().chunk, CacheConfig(), "sizes")
    data, validation = config.data, {name: source.path for name, source in config.data.validation.items()}
    return _Reading(validation, data.seq_len, data.mask_documents, config.loss.chunk, data.cache, data.verify)
