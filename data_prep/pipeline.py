"""A pipeline from top to bottom: each stage finds what is done, makes what is missing and says what happened."""

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from data_prep import ingest, output, selection, shards
from data_prep.config import VALIDATION_SUFFIX, Pipeline
from data_prep.console import FunnelRow, print_funnel, print_outputs, progress, size
from data_prep.documents import Part
from data_prep.encode import lossy
from data_prep.engine import Task, Workers
from data_prep.manifest import Folder, Record, make_key, save_error
from data_prep.tokenizer import fingerprint, make_tokenizer
from maxlm.data.shards import Manifest, TokenizerEntry, read_manifest
from maxlm.data.tokenizer import FILE_NAMES
from maxlm.errors import DataError, MaxlmError, SaveError


class Run:
    """One run of a pipeline; every stage adds a row to the funnel and marks the results it used."""

    def __init__(self, config: Pipeline, console: Console, workers: Workers):
        self.config, self.console, self.workers = config, console, workers
        self.funnel: list[FunnelRow] = []
        self.used: dict[str, set[str]] = {}

    def folder(self, stage: str) -> Folder:
        return Folder(self.config.work / stage)

    def tasks(self, stage: str, tasks: Sequence[Task], unit: str) -> list[Record]:
        """Run the tasks of a stage that are missing, and say how many there were."""
        with progress(self.console, stage, sum(task.size for task in tasks)) as report:
            records, made = self.workers.run(self.folder(stage), tasks, report)
        self.used.setdefault(stage, set()).update(task.key for task in tasks)
        self.say(stage, f"{len(tasks) - made} of {len(tasks)} {unit} up to date" + (f", {made} made" if made else ""))
        return records

    def say(self, stage: str, text: str) -> None:
        self.console.print(f"{stage}: {text}", highlight=False, markup=False, soft_wrap=True)

    def add_row(self, stage: str, before: Sequence[Part], after: Sequence[Part], reason: str) -> None:
        documents, left = (sum(part.documents for part in parts) for parts in (before, after))
        kept_bytes = sum(part.bytes for part in after)
        self.funnel.append(FunnelRow(stage, documents, left, kept_bytes, {reason: documents - left}))

    def prune(self) -> None:
        """Delete intermediate results of former configurations."""
        for stage, keys in self.used.items():
            self.folder(stage).prune(keys)


def run(config: Pipeline, console: Console) -> dict[str, Manifest]:
    """Prepare the shards of every source and split; returns the manifests by directory."""
    _check_outputs(config)
    with _lock(config.work), Workers(config.workers or _processors()) as workers:
        this = Run(config, console, workers)
        parts = run_ingest(this)
        parts = run_dedup(this, parts)
        parts = run_limits(this, parts)
        encoding = run_tokenizer(this, parts)
        outputs = run_shards(this, parts, encoding)
        this.prune()
    print_funnel(console, this.funnel)
    print_outputs(console, outputs)
    return outputs


def run_ingest(this: Run) -> list[Part]:
    config = this.config.ingest
    tasks = {name: ingest.make_tasks(name, source, config) for name, source in config.sources.items()}
    records = this.tasks("ingest", [task for group in tasks.values() for task in group], "shards")
    owners = [name for name, group in tasks.items() for _ in group]
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    parts = []
    for source, record in zip(owners, records, strict=True):
        dropped.update(record.values["dropped"])
        noted.update(record.values["noted"])
        for number, (name, counts) in enumerate(zip(sorted(record.files), record.values["shards"], strict=True)):
            path = this.folder("ingest").file(record.key, name)
            parts.append(Part(path, make_key("part", 1, record.key, number), source, **counts))
    kept = sum(part.documents for part in parts)
    seen = sum(record.values["documents"] for record in records)
    this.funnel.append(FunnelRow("ingest", seen, kept, sum(part.bytes for part in parts), dropped, noted))
    for name in config.sources:
        if not any(part.source == name for part in parts):
            raise DataError(f"source '{name}': empty corpus: its {len(tasks[name])} groups of files have no text")
    return parts


def run_dedup(this: Run, parts: list[Part]) -> list[Part]:
    exact = this.config.dedup is not None
    sources = list(this.config.ingest.sources)
    key = make_key("dedup", selection.DEDUP_VERSION, exact, sources, [part.key for part in parts])
    task = Task(key, selection.find_duplicates, (parts, sources, exact), 0)
    (record,) = this.tasks("dedup", [task], "queries")
    after = selection.apply("dedup", this.folder("dedup"), record, parts)
    this.add_row("dedup", parts, after, "duplicate")
    if exact and not any(found["documents"] for found in record.values.values()):
        message = f"dedup: no duplicate among {this.funnel[-1].documents_in:,} documents"
        if this.config.dedup.expect_matches:
            raise DataError(f"{message}, and dedup.expect_matches is set")
        this.say("warning", message)
    return after


def run_limits(this: Run, parts: list[Part]) -> list[Part]:
    limits = {name: source.max_bytes for name, source in this.config.ingest.sources.items() if source.max_bytes}
    if not limits:
        return parts
    tasks, groups = [], []
    for name, max_bytes in limits.items():
        group = [part for part in parts if part.source == name]
        key = make_key("limit", selection.LIMIT_VERSION, max_bytes, [part.key for part in group])
        tasks.append(Task(key, selection.find_excess, (group, max_bytes), 0))
        groups.append(group)
    records = this.tasks("limit", tasks, "sources")
    limited = {}
    for group, record in zip(groups, records, strict=True):
        after = selection.apply("limit", this.folder("limit"), record, group)
        limited |= {part.name: part for part in after}
    after = [limited.get(part.name, part) for part in parts]
    this.add_row("limit", parts, after, "over max_bytes")
    return after


def run_tokenizer(this: Run, parts: list[Part]) -> shards.Encoding:
    config, fraction = this.config.tokenizer, this.config.validation_fraction
    key = fingerprint(config, parts, fraction)
    total = min(config.max_bytes, int((1 - fraction) * sum(part.bytes for part in parts)))
    with progress(this.console, "tokenizer", total) as report:
        task = Task(key, make_tokenizer, (config, parts, fraction), total)
        (record,), made = this.workers.run(this.folder("tokenizer"), [task], report)
    this.used["tokenizer"] = {key}
    entry = TokenizerEntry(**record.values["entry"])
    origin = f"taken from {config.path}" if config.path else f"trained on {size(record.values['bytes'])}"
    this.say("tokenizer", f"{'' if made else 'up to date, '}{entry.kind}, {entry.vocab_size:,} tokens, {origin}")
    if (found := record.values["difference"]) is not None:
        if not config.allow_lossy:
            raise lossy(found)
        this.say("warning", f"the tokenizer does not give every text back: {found}")
    fast = config.fast and record.values["fast"]
    directory = this.folder("tokenizer").file(key, FILE_NAMES[entry.kind]).parent
    return shards.Encoding(directory, entry, fast, not config.allow_lossy, this.config.seed, fraction)


def run_shards(this: Run, parts: list[Part], encoding: shards.Encoding) -> dict[str, Manifest]:
    tasks = [Task(encoding.key(part), shards.write_runs, (part, encoding), part.bytes) for part in parts]
    records = this.tasks("tokenize", tasks, "shards")
    empty = sum(counts["empty"] for record in records for counts in record.values.values())
    documents = sum(counts["documents"] for record in records for counts in record.values.values())
    kept_bytes = sum(counts["bytes"] for record in records for counts in record.values.values())
    this.funnel.append(FunnelRow("tokenize", documents + empty, documents, kept_bytes, {"no tokens": empty}))
    plans = {}
    for source in this.config.ingest.sources:
        for split in shards.SPLITS[: 2 if this.config.validation else 1]:
            directory = _directory(this.config, source, split)
            chosen = [r for part, r in zip(parts, records, strict=True) if part.source == source and split in r.values]
            if not any(record.values[split]["documents"] for record in chosen):
                _report_empty(this, source, split)
                continue
            plans[directory] = _plan(this, directory, split, chosen, encoding)
    return _write_outputs(this, plans, encoding)


def _plan(
    this: Run, directory: Path, split: str, records: Sequence[Record], encoding: shards.Encoding
) -> tuple[output.Output, list[Task]]:
    """An output directory and the tasks that make its shards."""
    total = sum(record.values[split]["tokens"] for record in records)
    count = -(-total // this.config.shards.shard_tokens)
    runs = [shards.Run(this.folder("tokenize").file(record.key, split).parent, split) for record in records]
    inputs = [record.key for record in records]
    tasks = []
    for number in range(count):
        key = make_key("shard", shards.SHARD_VERSION, inputs, split, number, count, encoding.dtype)
        arguments = (runs, number, count, encoding.dtype)
        tasks.append(Task(key, shards.write_shard, arguments, total // count * np.dtype(encoding.dtype).itemsize))
    return output.Output(directory, tuple(task.key for task in tasks), encoding.dtype, encoding.entry), tasks


def _write_outputs(
    this: Run, plans: dict[Path, tuple[output.Output, list[Task]]], encoding: shards.Encoding
) -> dict[str, Manifest]:
    folder = this.folder("output")
    manifests = {directory: output.find(folder, plan) for directory, (plan, _) in plans.items()}
    missing = [directory for directory, manifest in manifests.items() if manifest is None]
    if missing:
        records = iter(this.tasks("shuffle", [task for directory in missing for task in plans[directory][1]], "shards"))
        pipeline = this.config.model_dump(mode="json", exclude={"output", "workers", "work_dir"})
        for directory in missing:
            plan, tasks = plans[directory]
            own = [next(records) for _ in tasks]
            manifests[directory] = output.assemble(
                folder, plan, this.folder("shuffle"), own, encoding.directory, pipeline
            )
    this.say("output", f"{len(plans) - len(missing)} of {len(plans)} directories up to date")
    # The files of finished shards were moved away.
    this.used["shuffle"] = set()
    this.used["output"] = {plan.key for plan, _ in plans.values()}
    return {str(directory): manifest for directory, manifest in manifests.items() if manifest is not None}


def _processors() -> int:
    """Processors that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _directory(config: Pipeline, source: str, split: str) -> Path:
    return Path(config.output) / (source + (VALIDATION_SUFFIX if split == "validation" else ""))


def _report_empty(this: Run, source: str, split: str) -> None:
    if split == "train":
        raise DataError(f"source '{source}': no document is left for training")
    this.say(
        "warning",
        f"source '{source}' has too few documents for a validation split of {this.config.validation_fraction}",
    )


def _check_outputs(config: Pipeline) -> None:
    """An output replaces a directory of shards, and nothing else."""
    for source in config.ingest.sources:
        for split in shards.SPLITS[: 2 if config.validation else 1]:
            directory = _directory(config, source, split)
            if not directory.exists():
                continue
            try:
                read_manifest(directory)
            except DataError as error:
                raise SaveError(f"{error}. It would be replaced: move it, or set another output") from None


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
