"""The last stages: the tokenizer, then the shards that training reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.config import VALIDATION_SUFFIX, Pipeline
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.funnel import Amount, FunnelRow
from data_prep.manifest import make_key
from data_prep.stages import Run
from data_prep.tokenize import compare, output, runs, shards
from data_prep.tokenize.lossless import lossy
from data_prep.tokenize.tokenizer import check_tokenizer, describe_origin, fingerprint, make_tokenizer, sources
from maxlm.data.shards import Manifest, TokenizerEntry, read_manifest
from maxlm.data.tokenizer import FILE_NAMES
from maxlm.errors import DataError, SaveError


def run_tokenizer(this: Run, parts: list[Part]) -> runs.Encoding:
    config, fraction = this.config.tokenizer, this.config.validation_fraction
    key, learnt = fingerprint(config, parts, fraction), sources(config, parts)
    most = config.extend.max_bytes if config.extend else config.max_bytes
    total = min(most, int((1 - fraction) * sum(part.bytes for part in learnt)))
    (record,) = this.tasks("tokenizer", [Task(key, make_tokenizer, (config, learnt, fraction), total)], "tokenizers")
    entry = TokenizerEntry(**record.values["entry"])
    directory = this.folder("tokenizer").file(key, FILE_NAMES[entry.kind]).parent
    this.say("tokenizer", describe_origin(config, entry, record))
    if (found := record.values["difference"]) is not None and not config.allow_lossy:
        raise lossy(found)
    measured = compare.run(this, directory, entry, parts)
    found = found or measured.values["difference"]
    if found is not None and not config.allow_lossy:
        raise lossy(found)
    if found is not None:
        this.warn(f"the tokenizer does not give every text back: {found}")
    fast = config.fast and measured.values["fast"]
    return runs.Encoding(directory, entry, fast, not config.allow_lossy, this.config.seed, fraction)


def run_runs(this: Run, parts: list[Part], encoding: runs.Encoding) -> list[runs.Run]:
    """The tokens of every part and split, by part."""
    tasks = [Task(encoding.key(part), runs.write_runs, (part, encoding), part.bytes) for part in parts]
    records = this.tasks("tokenize", tasks, "shards")
    folder, made = this.folder("tokenize"), []
    for part, record in zip(parts, records, strict=True):
        for split, counts in record.values.items():
            amounts = (counts["documents"], counts["bytes"], counts["tokens"])
            made.append(runs.Run(folder.path / record.key, split, part.source, *amounts))
    before, after = Amount.of(parts), Amount.of(made)
    empty = Amount(before.documents - after.documents, before.bytes - after.bytes)
    this.funnel.append(FunnelRow("tokenize", before, after, {"no tokens": empty}))
    for source in this.config.ingest.sources:
        for split in _splits(this.config):
            if not any(run.documents for run in made if (run.source, run.split) == (source, split)):
                _report_empty(this, source, split)
    return made


def run_shards(this: Run, made: list[runs.Run], encoding: runs.Encoding) -> dict[str, Manifest]:
    """Shuffle the runs of every source and split into the shards of a directory."""
    plans = {}
    for source in this.config.ingest.sources:
        for split in _splits(this.config):
            chosen = [run for run in made if (run.source, run.split) == (source, split)]
            if any(run.documents for run in chosen):
                directory = output_directory(this.config, source, split)
                plans[directory] = _plan(this, directory, split, chosen, encoding)
    return _write_outputs(this, plans, encoding)


def _plan(
    this: Run, directory: Path, split: str, chosen: Sequence[runs.Run], encoding: runs.Encoding
) -> tuple[output.Output, list[Task]]:
    """An output directory and the tasks that make its shards."""
    total = sum(run.tokens for run in chosen)
    count = -(-total // this.config.shards.shard_tokens)
    inputs = [run.key for run in chosen]
    tasks = []
    for number in range(count):
        key = make_key("shard", shards.VERSION, inputs, split, number, count, encoding.dtype)
        arguments = (chosen, number, count, encoding.dtype)
        tasks.append(Task(key, shards.write_shard, arguments, total // count * np.dtype(encoding.dtype).itemsize))
    return output.Output(directory, tuple(task.key for task in tasks), encoding.dtype, encoding.entry), tasks


def _write_outputs(
    this: Run, plans: dict[Path, tuple[output.Output, list[Task]]], encoding: runs.Encoding
) -> dict[str, Manifest]:
    folder = this.folder("output")
    manifests = {directory: output.find(folder, plan) for directory, (plan, _) in plans.items()}
    this.found_outputs(manifests)
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
    # The files of finished shards were moved away.
    this.used["shuffle"] = set()
    this.used["output"] = {plan.key for plan, _ in plans.values()}
    return {str(directory): manifest for directory, manifest in manifests.items() if manifest is not None}


def output_directory(config: Pipeline, source: str, split: str) -> Path:
    return Path(config.output) / (source + (VALIDATION_SUFFIX if split == "validation" else ""))


def _splits(config: Pipeline) -> Sequence[str]:
    return runs.SPLITS[: 2 if config.validation else 1]


def _report_empty(this: Run, source: str, split: str) -> None:
    if split == "train":
        raise DataError(f"source '{source}': no document is left for training")
    this.warn(
        f"source '{source}' has too few documents for a validation split of {this.config.validation_fraction}",
    )


def check(config: Pipeline) -> None:
    """Tokenizers that are taken are there, and an output replaces a directory of shards, and nothing else."""
    check_tokenizer(config.tokenizer, config.ingest.sources)
    for source in config.ingest.sources:
        for split in _splits(config):
            directory = output_directory(config, source, split)
            if not directory.exists():
                continue
            try:
                read_manifest(directory)
            except DataError as error:
                raise SaveError(f"{error}. It would be replaced: move it, or set another output") from None
