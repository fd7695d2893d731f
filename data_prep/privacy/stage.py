"""Personal data and secrets: masked where they stand, or their document dropped.

Two steps, so that what becomes of a type changes without reading text again: `privacy-spans` finds all types in all
text, `privacy` decides by what was found.

Fingerprints are hashes of the text before it is masked: a later preparation finds copies by them, and whoever has the
whole text can confirm it. The work directory keeps the text as it was read.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from data_prep.config import Selection
from data_prep.config.privacy import TYPES
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.funnel import Amount
from data_prep.manifest import Record, make_key
from data_prep.privacy import find, mask
from data_prep.privacy.rules import version
from data_prep.stages import Run
from maxlm.errors import ConfigError, DataError, MaxlmError

STAGE, SPANS = "privacy", "privacy-spans"


def check(config: Selection) -> None:
    """The libraries are there, and the settings name what exists."""
    privacy = config.privacy
    if privacy is None:
        return
    for module in ("re2", "phonenumbers"):
        if importlib.util.find_spec(module) is None:
            raise MaxlmError(
                f"the module '{module}' is not installed; the section privacy needs it: pip install 'maxlm[prep]'"
            )
    import phonenumbers

    for region in privacy.phone_regions:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            raise ConfigError(f"privacy.phone_regions: '{region}' has no numbering plan; expected a code such as GB")
    for name in privacy.sources or ():
        if name not in config.ingest.sources:
            raise ConfigError(
                f"privacy.sources: no source is called '{name}'; there are {', '.join(config.ingest.sources)}"
            )


def run(this: Run, parts: list[Part]) -> list[Part]:
    config = this.config.privacy
    if config is None:
        return parts
    chosen = [part for part in parts if config.sources is None or part.source in config.sources]
    regions = sorted(config.phone_regions)
    found = this.map_parts(SPANS, chosen, find.find, find.VERSION, regions, version())
    settings = config.model_dump(mode="json", exclude={"expect_matches", "sources", "phone_regions"})
    tasks = []
    for part, spans in zip(chosen, found, strict=True):
        key = make_key(STAGE, mask.VERSION, part.key, spans.key, settings)
        path = this.folder(SPANS).file(spans.key, find.FILE)
        tasks.append(Task(key, mask.mask, (part, path, config), 0))
    records = this.tasks(STAGE, tasks, "shards")
    after = this.apply(STAGE, parts, records)
    _count(this, records)
    masked = {part.name: record for part, record in zip(chosen, records, strict=True)}
    _expect(this, config.expect_matches)
    return [_with_columns(this, part, masked[part.name]) if part.name in masked else part for part in after]


def _with_columns(this: Run, part: Part, record: Record) -> Part:
    # By their content, as lists are.
    key = make_key(STAGE, mask.VERSION, part.key, record.values["content"])
    return part.with_columns(this.folder(STAGE).file(record.key, mask.FILE), record.values["columns"], key)


def _count(this: Run, records: Sequence[Record]) -> None:
    """The funnel's row by type: a document that has several is counted for each."""
    sums = {name: [sum(record.values["masked"][name][i] for record in records) for i in range(3)] for name in TYPES}
    row = this.funnel[-1]
    changed = {f"{name} masked": Amount(documents, size) for name, (documents, _, size) in sums.items() if documents}
    names = row.changed.get(mask.IN_NAMES)
    this.funnel[-1] = replace(row, changed=changed | ({mask.IN_NAMES: Amount(names.documents, 0)} if names else {}))
    counts = ", ".join(f"{values:,} {name}" for name, (_, values, _) in sums.items() if values)
    this.say(STAGE, f"masked {counts or 'nothing'} in text")


def _expect(this: Run, expected: bool) -> None:
    """A stage that matched nothing says so, or stops."""
    row = this.funnel[-1]
    if not row.dropped and not row.changed:
        message = f"privacy: nothing to mask or drop in {row.before.documents:,} documents"
        if expected:
            raise DataError(f"{message}, and privacy.expect_matches is set")
        this.warn(message)
