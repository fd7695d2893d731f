"""Language and script of every document: found once, as columns; then a choice by them, and one script for Chinese."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from data_prep.config import LanguageConfig
from data_prep.config.languages import base
from data_prep.documents import Part
from data_prep.funnel import Amount
from data_prep.language import identify, select
from data_prep.manifest import Record
from data_prep.stages import Run
from maxlm.errors import DataError

STAGE, COLUMNS = "language", "language-columns"
# Languages that the funnel and the summary name.
NAMED = 20


def run(this: Run, parts: list[Part]) -> list[Part]:
    config = this.config.language
    if config is None:
        return parts
    code = sorted(config.code)
    settings = (config.characters, config.keep_declared, code, identify.version())
    records = this.map_parts(COLUMNS, parts, identify.identify, identify.VERSION, *settings)
    languages = _languages(records)
    total = sum(languages.values())
    this.say(COLUMNS, ", ".join(f"{name} {count / total:.1%}" for name, count in languages.most_common(NAMED)))
    parts = [
        part.with_columns(this.folder(COLUMNS).file(record.key, identify.FILE), identify.COLUMNS, record.key)
        for part, record in zip(parts, records, strict=True)
    ]
    if config.keep is None and config.scripts is None and config.fold_han is None:
        return parts
    _check_keep(this, config, languages)
    settings = (config.keep, config.scripts, code, config.fold_han, identify.opencc_version())
    records = this.map_parts(STAGE, parts, select.select, select.VERSION, *settings)
    after = this.apply(STAGE, parts, records)
    _check_matches(this, config)
    this.funnel[-1] = replace(this.funnel[-1], dropped=most_frequent(this.funnel[-1].dropped, NAMED))
    return after


def _languages(records: Sequence[Record]) -> Counter:
    languages: Counter = Counter()
    for record in records:
        languages.update(record.values["languages"])
    return languages


def most_frequent(dropped: Mapping[str, Amount], count: int) -> dict[str, Amount]:
    """Reasons with all but the `count` most frequent languages put together; lists keep every language's name."""
    names = sorted(
        (name for name in dropped if name.startswith("language ") and name != "language score"),
        key=lambda name: (-dropped[name].documents, name),
    )
    rest = names[count:]
    limited = {name: amount for name, amount in dropped.items() if name not in rest}
    if rest:
        documents, size = (sum(getattr(dropped[name], field) for name in rest) for field in ("documents", "bytes"))
        limited["language other"] = Amount(documents, size)
    return limited


def _check_keep(this: Run, config: LanguageConfig, languages: Mapping[str, int]) -> None:
    found = {base(name) for name in languages}
    for name in config.keep or ():
        if base(name) not in found:
            this.warn(f"language: keep names '{name}', and no document is in it")


def _check_matches(this: Run, config: LanguageConfig) -> None:
    row = this.funnel[-1]
    unmatched = []
    if (config.keep is not None or config.scripts is not None) and not row.dropped:
        unmatched.append("keep and scripts dropped")
    if config.fold_han is not None and not row.changed:
        unmatched.append("fold_han changed")
    for what in unmatched:
        message = f"language: {what} none of {row.before.documents:,} documents"
        if config.expect_matches:
            raise DataError(f"{message}, and language.expect_matches is set")
        this.warn(message)
