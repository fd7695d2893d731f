"""A pipeline from top to bottom: each stage finds what is done, makes what is missing and says what happened."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

from data_prep import limit
from data_prep.config import Pipeline
from data_prep.console import bytes_per_token, print_outputs
from data_prep.decontaminate import stage as decontaminate
from data_prep.dedup import stage as dedup
from data_prep.documents import Part
from data_prep.engine import Workers, open_workers
from data_prep.funnel import print_funnel, write_funnel
from data_prep.ingest import stage as ingest
from data_prep.language import stage as language
from data_prep.manifest import save_error
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
    "limit": limit.run,
}
FUNNEL = "funnel.json"


def run(
    config: Pipeline, console: Console, workers: Workers | None = None, until: str = "shards"
) -> dict[str, Manifest]:
    """Prepare the shards of every source and split; returns the manifests by directory.

    `until` names the last stage that runs; the results of later ones stay as they are.
    """
    tokenize.check_outputs(config)
    workers = workers or open_workers("native", config.workers)
    with _lock(config.work), workers:
        this = Run(config, console, workers)
        outputs = _stages(this, until)
        if until == "shards":
            this.prune()
        write_funnel(config.work / FUNNEL, this.funnel)
    print_funnel(console, this.funnel, _bytes_per_token(outputs))
    if outputs:
        print_outputs(console, outputs)
    return outputs


def _stages(this: Run, until: str) -> dict[str, Manifest]:
    parts = ingest.run(this)
    if until == "ingest":
        return {}
    for name in this.config.order:
        parts = SELECTING[name](this, parts)
        if name == until:
            return {}
    encoding = tokenize.run_tokenizer(this, parts)
    if until == "tokenizer":
        return {}
    return tokenize.run_shards(this, parts, encoding)


def _bytes_per_token(outputs: Mapping[str, Manifest]) -> float | None:
    total = sum(manifest.bytes for manifest in outputs.values())
    return total / sum(manifest.bytes / bytes_per_token(manifest) for manifest in outputs.values()) if total else None


@contextlib.contextmanager
def _lock(work: Path) -> Iterator[None]:
    """One run at a time; the lock goes with the process, however it ends."""
    path = work / "lock"
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise save_error(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MaxlmError(f"{work}: another run of this pipeline is at work; wait for it, or set work_dir") from None
        yield
    finally:
        os.close(descriptor)
