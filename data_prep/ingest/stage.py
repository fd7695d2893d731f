"""First stage: raw files -> text shards."""

from collections import Counter
from collections.abc import Sequence

from data_prep.documents import Part
from data_prep.funnel import Amount, FunnelRow
from data_prep.ingest.index import Listing, read_index
from data_prep.ingest.readers import find_files
from data_prep.ingest.shards import make_tasks
from data_prep.ingest.split import number_lines, split
from data_prep.manifest import Record, make_key
from data_prep.stages import Run
from maxlm.errors import DataError


def run(this: Run) -> list[Part]:
    config = this.config.ingest
    tasks, listings = {}, []
    for name, source in config.sources.items():
        if source.select is not None and source.select.index is not None:
            listings.append(read_index(this, name, source))
            files = listings[-1].files
        else:
            ranges = split(find_files(name, source), source.kind, config.shard_bytes)
            files = number_lines(ranges, source.kind, lambda counts: this.tasks("line-counts", counts, "ranges"))
        tasks[name] = make_tasks(name, source, config, files, this.config.extract)
    records = this.tasks("ingest", [task for group in tasks.values() for task in group], "shards")
    owners = [name for name, group in tasks.items() for _ in group]
    parts = []
    for source, record in zip(owners, records, strict=True):
        for number, (name, counts) in enumerate(zip(sorted(record.files), record.values["shards"], strict=True)):
            path = this.folder("ingest").file(record.key, name)
            parts.append(Part(path, make_key("part", 1, record.key, number), source, counts["documents"], **counts))
    this.funnel += _funnel_rows(records, parts, listings)
    for name in config.sources:
        if not any(part.source == name for part in parts):
            raise DataError(f"source '{name}': empty corpus: its {len(tasks[name])} groups of files have no text")
    return parts


def _funnel_rows(records: Sequence[Record], parts: Sequence[Part], listings: Sequence[Listing]) -> list[FunnelRow]:
    """What was read, and with pages what was extracted from them: a page counts as HTML before, as text after it.

    The size of what was no document is not known: the text or HTML is counted from here on.
    """
    dropped, noted = (
        sum((Counter(record.values[kind]) for record in records), Counter()) for kind in ("dropped", "noted")
    )
    found = texts = Amount.of(parts)
    rows = []
    if extracted := [record for record in records if "extract" in record.values]:
        row = _extracted(extracted)
        rows.append(row)
        found = Amount(
            texts.documents - row.after.documents + row.before.documents,
            texts.bytes - row.after.bytes + row.before.bytes,
        )
    for listing in listings:
        dropped += Counter(listing.dropped)
    before = Amount(found.documents + dropped.total(), found.bytes)
    amounts = ({name: Amount(count, 0) for name, count in counts.items()} for counts in (dropped, noted))
    return [FunnelRow("ingest", before, found, *amounts), *rows]


def _extracted(records: Sequence[Record]) -> FunnelRow:
    """The row of extraction, of the records of sources that have pages."""
    counts = [record.values["extract"] for record in records]
    shards = [shard for record in records for shard in record.values["shards"]]
    before, after = (
        Amount(sum(entry[documents] for entry in entries), sum(entry["bytes"] for entry in entries))
        for entries, documents in ((counts, "pages"), (shards, "documents"))
    )
    dropped: dict[str, Amount] = {}
    for reason, (documents, size) in (item for entry in counts for item in entry["dropped"].items()):
        former = dropped.get(reason, Amount(0, 0))
        dropped[reason] = Amount(former.documents + documents, former.bytes + size)
    return FunnelRow("extract", before, after, dropped)
