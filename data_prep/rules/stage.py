"""Quality by rules: statistics once, then thresholds on them.

Two steps, so that a threshold changes without reading text again: `annotate` measures documents and lists the lines
that are removed (results in WORK/annotate), `rules` drops documents by what was measured.
"""

from collections import Counter
from collections.abc import Sequence

from data_prep.config.rules import RulesConfig
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.funnel import Amount, FunnelRow
from data_prep.manifest import Record, make_key
from data_prep.rules import annotate, filter
from data_prep.stages import Run
from maxlm.errors import DataError


def run(this: Run, parts: list[Part]) -> list[Part]:
    config = this.config.rules
    if config is None:
        return parts
    annotated, left = _annotate(this, config, parts)
    limits = {name: profile and filter.limits_of(profile) for name, profile in config.profiles.items()}
    tasks = []
    for part, record in zip(left, annotated, strict=True):
        key = make_key("rules", filter.VERSION, part.key, record.key, limits)
        path = this.folder("annotate").file(record.key, annotate.FILE)
        tasks.append(Task(key, filter.drop, (part, path, config.profiles), 0))
    after = this.apply("rules", left, this.tasks("rules", tasks, "shards"))
    if Amount.of(after) == Amount.of(parts):
        message = f"rules: no rule concerns any of {sum(part.documents for part in parts):,} documents"
        if config.expect_matches:
            raise DataError(f"{message}, and rules.expect_matches is set")
        this.warn(message)
    return after


def _annotate(this: Run, config: RulesConfig, parts: list[Part]) -> tuple[list[Record], list[Part]]:
    """The statistics of each part, and the parts without the lines that are removed."""
    settings = {name: profile and annotate.settings_of(profile) for name, profile in config.profiles.items()}
    records = this.map_parts("annotate", parts, annotate.annotate, annotate.VERSION, settings)
    left = this.listed("annotate", parts, records)
    if removed := _removed(records):
        this.funnel.append(FunnelRow("rules: lines", Amount.of(parts), Amount.of(left), {}, removed))
    return records, left


def _removed(records: Sequence[Record]) -> dict[str, Amount]:
    documents, size = Counter(), Counter()
    for record in records:
        for name, (count, removed) in record.values["removed"].items():
            documents[name] += count
            size[name] += removed
    return {name: Amount(documents[name], size[name]) for name in sorted(documents)}
