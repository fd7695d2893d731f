"""First stage: raw files -> text shards."""

from collections import Counter
from collections.abc import Sequence

from data_prep.documents import Part
from data_prep.funnel import Amount, FunnelRow
from data_prep.ingest.files import find_files
from data_prep.ingest.shards import make_tasks
from data_prep.ingest.split import number_lines, split
from data_prep.manifest import Record, make_key
from data_prep.stages import Run
from maxlm.errors import DataError


def run(this: Run) -> list[Part]:
    config = this.config.ingest
    tasks = {}
    for name, source in config.sources.items():
        ranges = split(find_files(name, source), source.kind, config.shard_bytes)
        files = number_lines(ranges, source.kind, lambda counts: this.tasks("lines of files", counts, "ranges"))
        tasks[name] = make_tasks(name, source, config, files)
    records = this.tasks("ingest", [task for group in tasks.values() for task in group], "shards")
    owners = [name for name, group in tasks.items() for _ in group]
    parts = []
    for source, record in zip(owners, records, strict=True):
        for number, (name, counts) in enumerate(zip(sorted(record.files), record.values["shards"], strict=True)):
            path = this.folder("ingest").file(record.key, name)
            parts.append(Part(path, make_key("part", 1, record.key, number), source, counts["documents"], **counts))
    this.funnel.append(_funnel_row(records, parts))
    for name in config.sources:
        if not any(part.source == name for part in parts):
            raise DataError(f"source '{name}': empty corpus: its {len(tasks[name])} groups of files have no text")
    return parts


def _funnel_row(records: Sequence[Record], parts: Sequence[Part]) -> FunnelRow:
    """The size of what was no document is not known: the text is counted from here on."""
    dropped, noted = (
        sum((Counter(record.values[kind]) for record in records), Counter()) for kind in ("dropped", "noted")
    )
    after = Amount.of(parts)
    before = Amount(sum(record.values["documents"] for record in records), after.bytes)
    amounts = ({name: Amount(count, 0) for name, count in counts.items()} for counts in (dropped, noted))
    return FunnelRow("ingest", before, after, *amounts)
