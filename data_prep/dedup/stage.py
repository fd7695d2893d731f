"""The stages that remove copies: of documents, of lines and paragraphs, of longer substrings."""

from collections.abc import Callable, Sequence

from data_prep.config import LinesConfig, Selection
from data_prep.dedup import against, exact, fuzzy, lines, spans, substrings
from data_prep.dedup.copies import Ranks, find_copies, gather_keys, located
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.funnel import Amount
from data_prep.manifest import Record, make_key
from data_prep.stages import Run
from maxlm.errors import DataError


def check(config: Selection) -> None:
    """The earlier data sets are there, and can be compared with."""
    if config.dedup is not None:
        against.find_shards(config)


def run_exact(this: Run, parts: list[Part]) -> list[Part]:
    """Drop what `dedup.exact` and `dedup.against` say; that ids are unique is checked in any case."""
    config, folder = this.config.dedup, this.folder("exact")
    wanted = config is not None and config.exact
    keys = this.map_parts("exact", parts, exact.write_part_keys, exact.VERSION)
    parts = [
        part.with_columns(folder.file(record.key, exact.COLUMNS), ["hash"], record.key)
        if record.values["changed"]
        else part
        for part, record in zip(parts, keys, strict=True)
    ]
    records, found = [], []
    if wanted:
        shards = against.find_shards(this.config)
        earlier = this.map_parts("exact", shards, exact.write_shard_keys, exact.VERSION) if shards else []
        files = [folder.file(record.key, exact.TEXTS) for record in (*keys, *earlier)]
        record = find_copies(this, "exact", [*parts, *shards], files, _ranks(this))
        found = [folder.file(record.key, name) for name in record.values["found"]]
        records = _mark(this, "exact", parts, record, exact.mark, exact.MARK_VERSION)
    ids = gather_keys(this, "exact", parts, [folder.file(record.key, exact.IDS) for record in keys])
    key = make_key("ids", exact.VERSION, [record.key for record in ids], [path.parent.name for path in found])
    this.query("exact", Task(key, exact.check_ids, (*located(folder, ids), parts, found), 0))
    after = this.apply("exact", parts, records)
    if wanted:
        _expect(this, "exact", parts, after, "no duplicate", "dedup.expect_matches", config.expect_matches)
    return after


def run_fuzzy(this: Run, parts: list[Part]) -> list[Part]:
    """Drop what `dedup.normalised`, `dedup.fuzzy` and `dedup.against` say; signatures and clusters become columns."""
    config, folder = this.config.dedup, this.folder("fuzzy")
    if config is None or not config.signed:
        return parts
    signing, shards = fuzzy.Signing(config), against.find_shards(this.config)
    keys = this.map_parts("fuzzy", parts, fuzzy.write_part_keys, fuzzy.VERSION, signing)
    earlier = this.map_parts("fuzzy", shards, fuzzy.write_shard_keys, fuzzy.VERSION, signing) if shards else []
    files = [folder.file(record.key, fuzzy.KEYS) for record in (*keys, *earlier)]
    signed = [
        part.with_columns(folder.file(record.key, fuzzy.COLUMNS), signing.columns, record.key)
        for part, record in zip(parts, keys, strict=True)
    ]
    record = find_copies(this, "fuzzy", [*signed, *shards], files, _ranks(this), config.normalised)
    drop = config.fuzzy is None or config.fuzzy.drop
    marks = _mark(this, "fuzzy", signed, record, fuzzy.mark, fuzzy.MARK_VERSION, drop)
    names = ["cluster_size", *([] if drop else ["cluster"])]
    after = [
        part.with_columns(folder.file(mark.key, fuzzy.COLUMNS), names, part.key)
        for part, mark in zip(this.apply("fuzzy", signed, marks), marks, strict=True)
    ]
    section, expected = (
        ("dedup.fuzzy", config.fuzzy.expect_matches) if config.fuzzy else ("dedup", config.expect_matches)
    )
    if drop or not record.values["documents"]:
        _expect(this, "fuzzy", parts, after, "no near duplicate", f"{section}.expect_matches", expected)
    return after


def run_lines(this: Run, parts: list[Part]) -> list[Part]:
    """Lines, then paragraphs of what is left: two rows of the funnel."""
    for stage in ("lines", "paragraphs"):
        config: LinesConfig | None = this.config.dedup and getattr(this.config.dedup, stage)
        if config is not None:
            splitting = lines.Splitting(stage == "paragraphs", config.min_characters, config.normalise)
            units = this.map_parts(stage, parts, lines.write_part_units, lines.VERSION, splitting)
            rule = spans.Rule(config.max_documents, config.keep == "first", by_document=True)
            records = spans.find_lists(this, stage, parts, units, rule, lines.write_list)
            count = sum(record.values["units"] for record in units)
            nothing = f"none of {count:,} {stage} occurs more than {config.max_documents} times"
            after = this.apply(stage, parts, records)
            _expect(this, stage, parts, after, nothing, f"dedup.{stage}.expect_matches", config.expect_matches)
            parts = after
    return parts


def run_substrings(this: Run, parts: list[Part]) -> list[Part]:
    config = this.config.dedup and this.config.dedup.substrings
    if config is None:
        return parts
    winnowing = substrings.Winnowing(config.min_bytes)
    units = this.map_parts("substrings", parts, substrings.write_part_units, substrings.VERSION, winnowing)
    records = spans.find_lists(
        this, "substrings", parts, units, winnowing.rule, substrings.write_list, config.min_bytes
    )
    nothing = f"no repeat of {config.min_bytes} bytes"
    after = this.apply("substrings", parts, records)
    _expect(this, "substrings", parts, after, nothing, "dedup.substrings.expect_matches", config.expect_matches)
    return after


def _ranks(this: Run) -> Ranks:
    return Ranks(tuple(this.config.dedup.against), tuple(this.config.ingest.sources))


def _mark(
    this: Run,
    stage: str,
    parts: Sequence[Part],
    found: Record,
    function: Callable[..., Record],
    version: int,
    *settings: object,
) -> list[Record]:
    """The list of every part, from what `find_copies` found."""
    files, tasks = [this.folder(stage).file(found.key, name) for name in found.values["found"]], []
    for number, part in enumerate(parts):
        key = make_key(stage, version, part.key, number, found.key, *settings)
        tasks.append(Task(key, function, (part, number, files, _ranks(this), *settings), 0))
    return this.tasks(stage, tasks, "lists")


def _expect(
    this: Run, stage: str, before: Sequence[Part], after: Sequence[Part], nothing: str, key: str, expected: bool
) -> None:
    """A stage that matched nothing says so, or stops."""
    amount = Amount.of(before)
    if amount == Amount.of(after):
        message = f"{stage}: {nothing} among {amount.documents:,} documents"
        if expected:
            raise DataError(f"{message}, and {key} is set")
        this.warn(message)
