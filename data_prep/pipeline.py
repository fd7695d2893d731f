"""A pipeline from top to bottom: each stage finds what is done, makes what is missing and says what happened."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

from data_prep import limit
from data_prep.config import VALIDATION_SUFFIX, Pipeline, QualityModel, Selection
from data_prep.console import bytes_per_token, print_outputs
from data_prep.decontaminate import stage as decontaminate
from data_prep.dedup import stage as dedup
from data_prep.documents import Part
from data_prep.engine import Workers, open_workers
from data_prep.funnel import print_funnel, write_funnel
from data_prep.ingest import stage as ingest
from data_prep.language import stage as language
from data_prep.manifest import save_error
from data_prep.mix import stage as mix
from data_prep.privacy import stage as privacy
from data_prep.privacy.hide import Hiding
from data_prep.quality import stage as quality
from data_prep.quality import training
from data_prep.rules import stage as rules
from data_prep.stages import Run
from data_prep.tokenize import stage as tokenize
from maxlm.data.shards import Manifest
from maxlm.errors import MaxlmError

# The stages between reading and tokens: each takes the parts and returns what is left of them. `order` permutes them.
SELECTING: Mapping[str, Callable[[Run, list[Part]], list[Part]]] = {
    "language": language.run,
    "exact": dedup.run_exact,
    "rules": rules.run,
    "fuzzy": dedup.run_fuzzy,
    "lines": dedup.run_lines,
    "substrings": dedup.run_substrings,
    "decontaminate": decontaminate.run,
    "quality": quality.run,
    "privacy": privacy.run,
    "limit": limit.run,
}
# Stages whose sections are not called as they are.
SECTIONS = {"exact": ("exact", "normalised"), "lines": ("lines", "paragraphs")}
FUNNEL = "funnel.json"


# One run at a time holds it; it says which.
LOCK, LOCK_SECONDS = "lock", 1.0


def run(
    config: Pipeline, console: Console, workers: Workers | None = None, until: str = "shards"
) -> dict[str, Manifest]:
    """Prepare the shards of every source and split; returns the manifests by directory.

    `until` names the last stage that runs; the results of later ones stay as they are.
    """
    check(config)
    workers = workers or open_workers("native", config.workers)
    with locked(config.work), workers:
        this = Run(config, console, workers, Hiding(config).json)
        outputs = walk(this, until)
        if until == "shards":
            this.prune()
        write_funnel(config.work / FUNNEL, this.funnel)
    print_funnel(console, this.funnel, _bytes_per_token(config, outputs))
    if outputs:
        print_outputs(console, outputs)
    else:
        _say_what_follows(this, until)
    return outputs


def train_model(config: QualityModel, console: Console, workers: Workers | None = None) -> Path:
    """Train a model of quality on what the stages select of its sources; returns its directory."""
    check(config)
    workers = workers or open_workers("native", config.workers)
    with locked(config.work), workers:
        this = Run(config, console, workers)
        parts = select(this)
        print_funnel(console, this.funnel, {})
        directory = training.run(this, parts)
        this.prune()
    return directory


def check(config: Selection) -> None:
    """Raise what would stop a late stage, such as an input that is missing: hours of work should not come before it."""
    if isinstance(config, Pipeline):
        tokenize.check(config)
    for room in (dedup, decontaminate, quality, privacy):
        room.check(config)


def walk(this: Run, until: str) -> dict[str, Manifest]:
    """The stages up to `until`, in order; returns the manifests by directory where the last of them ran."""
    parts = select(this, until)
    if until == "ingest" or until in SELECTING:
        return {}
    mix.check_columns(this.config, parts)
    encoding = tokenize.run_tokenizer(this, parts)
    if until == "tokenizer":
        return {}
    runs = mix.run(this, tokenize.run_runs(this, parts, encoding), encoding.dtype)
    if until == "mix":
        return {}
    return tokenize.run_shards(this, runs, encoding)


def select(this: Run, until: str | None = None) -> list[Part]:
    """What the stages between raw files and tokens, up to `until`, keep of the sources."""
    parts = ingest.run(this)
    this.count_sources(parts)
    if until == "ingest":
        return parts
    for name in this.config.order:
        parts = SELECTING[name](this, parts)
        this.count_sources(parts)
        if name == until:
            break
    return parts


def planned(config: Pipeline) -> list[str]:
    """The stages of a pipeline that have something to do, in order."""
    selecting = [name for name in config.order if _wanted(config, name)]
    return ["ingest", *selecting, "tokenizer", *(["mix"] if mix.wanted(config) else []), "shards"]


def _wanted(config: Pipeline, stage: str) -> bool:
    if stage == "limit":
        return any(source.max_bytes for source in config.ingest.sources.values())
    sections = (getattr(at, name, None) for at in (config, config.dedup) for name in SECTIONS.get(stage, (stage,)))
    return any(sections)


def _say_what_follows(this: Run, until: str) -> None:
    stages = planned(this.config)
    if until not in stages:
        this.warn(f"the pipeline has no section for {until}, which did nothing")
    every = ["ingest", *this.config.order, "tokenizer", "mix", "shards"]
    left = [stage for stage in every[every.index(until) + 1 :] if stage in stages]
    this.say("next", f"{', '.join(left)}; `maxlm-prep {left[0]}` runs one more, `maxlm-prep run` all of them")


def _bytes_per_token(config: Pipeline, outputs: Mapping[str, Manifest]) -> dict[str, float]:
    """By source, over its splits."""
    rates = {}
    for source in config.ingest.sources:
        names = (source, source + VALIDATION_SUFFIX)
        found = [manifest for directory, manifest in outputs.items() if Path(directory).name in names]
        if found:
            tokens = sum(manifest.bytes / bytes_per_token(manifest) for manifest in found)
            rates[source] = sum(manifest.bytes for manifest in found) / tokens
    return rates


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """One run at a time; the lock goes with the process, however it ends."""
    path = work / LOCK
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise save_error(path, error) from error
    try:
        _take(descriptor, work)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError as error:
            raise save_error(path, error) from error
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, work: Path) -> None:
    """Lock a file; `maxlm-prep status` shares the lock for a moment, so one that is held is tried again."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
                raise MaxlmError(
                    f"{work}: another run of this pipeline is at work ({holder}); wait for it, or set work_dir"
                ) from None
        time.sleep(0.05)
