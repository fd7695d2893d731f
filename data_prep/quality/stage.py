"""Quality by models: scores of every document, found once as columns; then ranks of them, and a choice by both.

Text is read for scores alone. Ranks depend on scores, the choice on scores, ranks and limits, so that what changes
later redoes no text.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from data_prep.config import QualityConfig, Selection
from data_prep.config.quality import RANK
from data_prep.documents import FINGERPRINTS, Part, text_schema
from data_prep.engine import Task
from data_prep.manifest import make_key
from data_prep.quality import join, models, ranks, scores, select
from data_prep.quality.scores import Scorer
from data_prep.stages import Run
from maxlm.errors import ConfigError, DataError

STAGE = "quality"


class Columned:
    """Parts while columns are added: as the stage was given them, and with the columns; keys of those by name."""

    def __init__(self, parts: Sequence[Part]):
        self.given, self.parts = list(parts), list(parts)
        self.keys: list[dict[str, str]] = [{} for _ in parts]

    def add(self, names: Sequence[str], paths: Sequence[Path]) -> None:
        """Columns in a file for each part; the name of its directory is its key."""
        for number, path in enumerate(paths):
            self.keys[number] |= dict.fromkeys(names, path.parent.name)
            key = make_key("quality-columns", 1, self.given[number].key, self.keys[number])
            self.parts[number] = self.parts[number].with_columns(path, names, key)


def run(this: Run, parts: list[Part]) -> list[Part]:
    config = this.config.quality
    if config is None:
        return parts
    found = Columned(parts)
    scorers = _scorers(config)
    _added(config, scorers, {name for part in parts for name, _ in part.columns})
    _score(this, found, scorers)
    for name in config.join:
        _join(this, found, name)
    orders = {scorer.name: scorer.order for scorer in scorers if not scorer.model.is_topic}
    for name, order in (orders | {name: name for name in config.join}).items():
        _rank(this, found, name, order)
    if not config.select:
        return found.parts
    limits = [limit.model_dump(mode="json") for limit in config.select]
    tasks = [
        Task(make_key(STAGE, select.VERSION, part.key, limits), select.select, (part, config.select), 0)
        for part in found.parts
    ]
    after = this.apply(STAGE, found.parts, this.tasks(STAGE, tasks, "shards"))
    if not this.funnel[-1].dropped:
        message = f"quality: no limit concerns any of {this.funnel[-1].before.documents:,} documents"
        if config.expect_matches:
            raise DataError(f"{message}, and quality.expect_matches is set")
        this.warn(message)
    return after


def check(config: Selection) -> None:
    """The models and tables are there and can be read, and limits are on columns that there will be."""
    if config.quality is None:
        return
    for name, one in config.quality.join.items():
        join.find(name, one)
        if one.source is not None and one.source not in config.ingest.sources:
            raise ConfigError(f"quality.join.{name}: {_unknown('source', one.source, config.ingest.sources)}")
    added = _added(config.quality, _scorers(config.quality), {*text_schema().names, *FINGERPRINTS})
    for limit in config.quality.select:
        if limit.score not in added:
            raise ConfigError(f"quality.select: {_unknown('score', limit.score, added)}")
        labels = added[limit.score]
        if bool(labels) != (limit.labels is not None):
            expected = "a label: set labels, not min or max" if labels else "a number: set min or max, not labels"
            raise ConfigError(f"quality.select: '{limit.score}' is {expected}")
        for label in limit.labels or ():
            if label not in labels:
                raise ConfigError(f"quality.select: {_unknown('label', label, labels)}")
        for source in limit.sources or ():
            if source not in config.ingest.sources:
                raise ConfigError(f"quality.select: {_unknown('source', source, config.ingest.sources)}")


def _added(config: QualityConfig, scorers: Sequence[Scorer], taken: set[str]) -> dict[str, tuple[str, ...]]:
    """The columns that there will be, those of topics with their labels; `ConfigError` for a name that is taken."""
    added: dict[str, tuple[str, ...]] = {}
    groups = [(one.columns, one.model.labels) for one in scorers if one.model.is_topic]
    groups += [((one.name, one.name + RANK), ()) for one in scorers if not one.model.is_topic]
    groups += [((name, name + RANK), ()) for name in config.join]
    for names, labels in groups:
        for name in names:
            if name in taken or name in added:
                owner = "documents have" if name in taken else "another score gives"
                raise ConfigError(f"quality: '{names[0]}' would give the column '{name}', which {owner}; rename it")
            added[name] = labels if name == names[0] else ()
    return added


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0)
    return f"no {kind} is called '{name}'; the nearest is '{close[0]}' of {', '.join(known)}"


def _scorers(config: QualityConfig) -> list[Scorer]:
    return [
        Scorer(name, models.find(Path(one.path).absolute()), one.languages and tuple(one.languages))
        for name, one in config.models.items()
    ]


def _score(this: Run, found: Columned, scorers: Sequence[Scorer]) -> None:
    if not scorers:
        return
    keys = {scorer: [scorer.key(part) for part in found.given] for scorer in scorers}
    this.used.setdefault(scores.STAGE, set()).update(key for group in keys.values() for key in group)
    this.tasks(scores.STAGE, [scores.task(part, scorers) for part in found.given], "shards")
    for scorer in scorers:
        found.add(scorer.columns, [this.folder(scores.STAGE).file(key, scores.FILE) for key in keys[scorer]])


def _join(this: Run, found: Columned, name: str) -> None:
    config = this.config.quality.join[name]
    files = join.find(name, config)
    settings = config.model_dump(mode="json", exclude={"path"})
    key = make_key(join.STAGE, join.VERSION, [file.fingerprint for file in files], settings)
    # In this process: the files lie where it runs.
    record = this.query(join.STAGE, Task(key, join.index, (files, config), 0))
    known = join.Index(this.folder(join.STAGE).path / key, key, record.values["kind"])
    if record.values["again"]:
        this.warn(f"quality.join.{name}: {record.values['again']:,} rows have an id that came before; the first counts")
    tasks = [
        Task(make_key(join.STAGE, join.VERSION, part.key, name, key), join.attach, (part, name, known), 0)
        for part in found.given
    ]
    records = this.tasks(join.STAGE, tasks, "shards")
    total, scored = sum(part.documents for part in found.given), sum(one.values["found"] for one in records)
    if total and not scored:
        example = next(one.values["example"] for one in records if one.values["example"])
        raise DataError(
            f"quality.join.{name}: none of {total:,} documents has a score; ids of documents are like '{example}', of "
            f"the table like '{record.values['example']}'; set id, or source"
        )
    this.say(join.STAGE, f"{name}: {scored:,} of {total:,} documents have a score")
    found.add([name], [this.folder(join.STAGE).file(one.key, join.FILE) for one in records])


def _rank(this: Run, found: Columned, name: str, order: str) -> None:
    """Ranks of a score by the column `order` of its file."""
    parts = [part.with_columns(dict(part.columns)[name], [order], part.key) for part in found.parts]
    keys = [[part.key, known[name]] for part, known in zip(found.given, found.keys, strict=True)]
    sources: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        sources.setdefault(part.source, []).append(number)
    tables = [
        Task(
            make_key(ranks.STAGE, ranks.VERSION, name, [keys[number] for number in numbers]),
            ranks.tabulate,
            ([parts[number] for number in numbers], order),
            0,
        )
        for numbers in sources.values()
    ]
    records = dict(zip(sources, this.tasks(ranks.STAGE, tables, "tables"), strict=True))
    folder = this.folder(ranks.STAGE)
    tasks = []
    for part, known in zip(parts, keys, strict=True):
        table = records[part.source].key
        key = make_key(ranks.STAGE, ranks.VERSION, known, table)
        tasks.append(Task(key, ranks.rank, (part, name, order, folder.file(table, ranks.TABLE)), 0))
    made = this.tasks(ranks.STAGE, tasks, "shards")
    found.add([name + RANK], [folder.file(one.key, ranks.FILE) for one in made])
