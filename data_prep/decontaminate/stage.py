"""What occurs in benchmarks goes: an index of their word sequences, a scan of all text for them, cuts, and a report.

The scan depends on the benchmarks alone; what is done with its hits, and which of them are too common to count, is
decided without reading text again.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep import lists
from data_prep.config import DecontaminateConfig, Selection
from data_prep.decontaminate import benchmarks, cut, index, report, scan, tokens
from data_prep.decontaminate.cut import Policy
from data_prep.decontaminate.index import Index
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.manifest import Record, make_key
from data_prep.stages import Run
from maxlm.errors import DataError

STAGE, INDEX, SCAN, REPORT = "decontaminate", "benchmarks", "benchmarks-found", "benchmarks-report"


def check(config: Selection) -> None:
    """The benchmarks are there."""
    if config.decontaminate is not None:
        benchmarks.find(config.decontaminate)


def run(this: Run, parts: list[Part]) -> list[Part]:
    config = this.config.decontaminate
    if config is None:
        return parts
    known = _index(this, config)
    margin = config.margin if config.action == "cut" else 0
    scans = this.map_parts(SCAN, parts, scan.scan, scan.VERSION, known, margin)
    hits = [this.folder(SCAN).file(record.key, scan.HITS) for record in scans]
    keys = [record.key for record in scans]
    key = make_key("count", report.VERSION, keys, config.max_documents)
    counts = this.query(REPORT, Task(key, report.count, (hits, known, config.max_documents), 0))
    common = this.folder(REPORT).file(counts.key, report.COMMON) if counts.values["common"] else None
    records = _decide(this, config, parts, hits, keys, known, common)
    after = this.apply(STAGE, parts, records)
    _report(this, config, known, counts, records)
    if not this.funnel[-1].dropped and not this.funnel[-1].changed:
        message = f"decontaminate: nothing of the benchmarks in {this.funnel[-1].before.documents:,} documents"
        if config.expect_matches:
            raise DataError(f"{message}, and decontaminate.expect_matches is set")
        this.warn(message)
    return after


def _index(this: Run, config: DecontaminateConfig) -> Index:
    """Built in this process: the benchmarks lie where it runs."""
    found = benchmarks.find(config)
    lengths = (config.ngram, config.min_tokens)
    fingerprint = [benchmark.fingerprint() for benchmark in found]
    key = make_key(INDEX, index.VERSION, fingerprint, lengths, tokens.version())
    record = this.query(INDEX, Task(key, index.build, (found, *lengths), 0))
    for problem in record.values["problems"]:
        this.warn(problem)
    this.say(INDEX, f"{record.values['items']:,} items, {record.values['sequences']:,} sequences of words")
    return Index(this.folder(INDEX).path / key, key, *lengths, record.values["short"])


def _decide(
    this: Run,
    config: DecontaminateConfig,
    parts: Sequence[Part],
    hits: Sequence[Path],
    keys: Sequence[str],
    known: Index,
    common: Path | None,
) -> list[Record]:
    policy = Policy(config.action == "drop", config.min_piece, config.max_pieces)
    ignored = common.parent.name if common else None
    settings = [cut.VERSION, ignored, policy.drop, policy.least_piece, policy.most_pieces]
    tasks = [
        Task(make_key(STAGE, 1, part.key, scanned, settings), cut.decide, (part, path, known, common, policy), 0)
        for part, path, scanned in zip(parts, hits, keys, strict=True)
    ]
    return this.tasks(STAGE, tasks, "shards")


def _report(this: Run, config: DecontaminateConfig, known: Index, counts: Record, records: Sequence[Record]) -> None:
    files = this.folder(REPORT)
    heading = {"pipeline": this.config.name} | config.model_dump(
        mode="json", include={"ngram", "min_tokens", "action", "margin", "min_piece", "max_pieces", "max_documents"}
    )
    dropped, changed = lists.total(records, "dropped"), lists.total(records, "changed")
    heading |= {"documents dropped": dropped, "documents cut": changed}
    key = make_key("report", report.VERSION, heading, known.key, counts.key, [record.key for record in records])
    found = [this.folder(STAGE).file(record.key, cut.FOUND) for record in records]
    sums = (files.file(counts.key, report.COUNTS), files.file(counts.key, report.COMMON))
    record = this.query(REPORT, Task(key, report.merge, (found, *sums, known, heading), 0))
    path = Path(this.config.output) / f"contamination-{this.config.name}.json"
    this.publish(files.file(record.key, report.REPORT), path)
    report.print_table(this.console, record.values["benchmarks"], dropped, changed)
    this.say(STAGE, f"items and documents in {path}")
