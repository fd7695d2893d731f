"""Statistics of the documents of a part, and the list of lines that are removed: what reads text, once.

A result depends on the text, on the splitters and on what changes statistics or text, not on thresholds. Memory is that
of a row group (`documents.iterate`) and of a batch of 4 MB several times over, and 9 bytes per edit of the part.
"""

import json
from collections.abc import Container
from functools import cache

import numpy as np

from data_prep.config.languages import CODE
from data_prep.config.rules import DEFAULT, OF_CODE, C4Lines, LinesConfig, Profile
from data_prep.documents import Part, iterate
from data_prep.engine import advance
from data_prep.lists import Edits, write_edits
from data_prep.manifest import Folder, Record, writing
from data_prep.rules import columns, lines, sentences, statistics, traits
from data_prep.rules import settings as place
from data_prep.rules.phrases import compile_phrases
from data_prep.rules.settings import KINDS, SETTINGS, LineRules
from data_prep.text import words
from data_prep.text.texts import Texts

VERSION = 1
FILE = "statistics.parquet"
LARGEST = np.iinfo(np.int32).max


def settings_of(profile: Profile) -> dict:
    """What changes statistics or text, as JSON: it enters the key of results."""
    return {
        "versions": [statistics.VERSION, lines.VERSION, traits.VERSION],
        "words": words.version(profile.words),
        "sentences": sentences.version(profile.sentences),
        "stop_words": sorted(set(profile.stop_words)),
        "stop_characters": profile.stop_characters,
        "short_line_characters": profile.short_line_characters,
        "lines": profile.lines.model_dump() if profile.lines and profile.lines.remove else None,
        "c4": profile.c4 is not None,
        "c4_lines": profile.c4.lines.model_dump() if profile.c4 and profile.c4.lines else None,
    }


class Measure:
    """The statistics of a profile, ready for batches of text."""

    def __init__(self, settings: dict):
        stops = settings["stop_characters"]
        self.splitter, self.short = settings["words"][0], settings["short_line_characters"]
        self.traits = traits.with_stop(stops if isinstance(stops, str) else tuple(stops))
        self.stop_words = statistics.StopWords.of(tuple(settings["stop_words"]))
        self.lines = _line_rules(settings)

    def __call__(self, texts: Texts) -> tuple[np.ndarray, lines.Left | None]:
        """Statistics int64 [documents, columns.COUNT] of a batch, and what line rules left where there are any."""
        found = words.split(texts, self.splitter)
        rows = statistics.measure(texts, found, self.traits, self.stop_words)
        left = lines.apply_rules(texts, found, self.traits, self.lines, rows) if self.lines.at_work else None
        counts, every = np.diff(found.bounds), np.arange(len(texts))
        if left is None or len(left.changed) < len(texts):
            statistics.measure_left(texts, counts, self.traits, self.short, rows, every)
        if left is not None and len(left.changed):
            counts = np.diff(words.split(left.texts, self.splitter).bounds)
            statistics.measure_left(left.texts, counts, self.traits, self.short, rows, left.changed)
        return rows, left


def _line_rules(settings: dict) -> LineRules:
    own = LinesConfig(**(settings["lines"] or {}))
    c4 = C4Lines(**(settings["c4_lines"] or {}))
    values = np.zeros(SETTINGS, np.int64)
    phrases = {place.LOREM_GROUP: ["lorem ipsum"]} if settings["c4"] else {}
    phrases |= {place.JAVASCRIPT_GROUP: c4.javascript or [], place.POLICY_GROUP: c4.policy or []}
    equal = {}
    if "boilerplate" in own.remove:
        values[place.BOILERPLATE_CHARACTERS] = own.max_characters
        phrases[place.BOILERPLATE_GROUP], equal[place.BOILERPLATE_GROUP] = own.containing, own.equal
    if "short_runs" in own.remove:
        values[place.RUN_CHARACTERS], values[place.RUN_LINES] = own.run_characters, own.run_lines
        values[place.RUN_ANYWHERE] = own.run_anywhere
    if "few_words" in own.remove:
        values[place.LEAST_WORDS] = own.min_words
    values[place.C4], values[place.C4_LINES] = settings["c4"], settings["c4_lines"] is not None
    values[place.WORD_CHARACTERS], values[place.C4_LEAST_WORDS] = c4.max_word_characters or 0, c4.min_words or 0
    values[place.CITATIONS], values[place.PUNCTUATION] = c4.citations, c4.final_punctuation
    return LineRules(values, compile_phrases(phrases, equal))


@cache
def _measure(settings: str) -> Measure:
    """By JSON, so that the parts of a process share its tables."""
    return Measure(json.loads(settings))


def profile_of(language: str | None, profiles: Container[str]) -> str:
    """The key of the profile that a document has: its language's, that of all code, or the default."""
    if language in profiles:
        return language
    return OF_CODE if OF_CODE in profiles and language is not None and language.lower() in CODE else DEFAULT


def annotate(folder: Folder, key: str, part: Part, profiles: dict[str, dict | None]) -> Record:
    """Write the statistics of the documents of a part, and its list of edits.

    `profiles` are the settings by language; documents of a language without any stay as they are and have no row.
    `values["removed"]` has documents and bytes by what was removed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    edits = Edits()
    counts = np.zeros((len(KINDS), 2), np.int64)
    with (
        writing(folder.file(key, FILE)) as temporary,
        pq.ParquetWriter(temporary, statistics_schema(), compression="zstd") as writer,
    ):
        for table in iterate(part, ("row", "bytes", "language", "text")):
            names = [profile_of(name, profiles) for name in table["language"].to_pylist()]
            pieces = []
            for name in sorted(set(names)):
                if profiles[name] is not None:
                    same = np.array([other == name for other in names])
                    chosen = table if same.all() else table.filter(pa.array(same))
                    measure = _measure(json.dumps(profiles[name], sort_keys=True))
                    pieces.append(_annotate(chosen, name, measure, edits, counts))
            if pieces:
                writer.write_table(pa.concat_tables(pieces).sort_by("row"))
            advance(int(table["bytes"].to_numpy().sum()))
    values = {"lists": write_edits(folder, key, part.name, edits), "removed": _by_kind(counts)}
    return folder.commit(key, [FILE, *(f"{name}.parquet" for name in values["lists"])], values)


def statistics_schema() -> "pa.Schema":  # noqa: F821
    import pyarrow as pa

    counts = [(name, pa.int32()) for name in columns.NAMES]
    return pa.schema([("row", pa.uint32()), ("bytes", pa.int64()), ("profile", pa.string()), *counts])


def _annotate(table: "pa.Table", profile: str, measure: Measure, edits: Edits, counts: np.ndarray) -> "pa.Table":  # noqa: F821
    """Statistics of documents of one profile, as the file has them; `bytes` are those that are left."""
    import pyarrow as pa

    rows, sizes = table["row"].to_numpy().astype(np.int64), table["bytes"].to_numpy().copy()
    values = np.zeros((len(rows), columns.COUNT), np.int64)
    for start, texts in Texts.of(table["text"]).batches():
        documents = slice(start, start + len(texts))
        values[documents], left = measure(texts)
        if left is not None:
            counts += left.counts
            changed = start + left.changed
            removed = np.diff(texts.bounds)[left.changed] - np.diff(left.texts.bounds)
            sizes[changed] -= removed
            edits.add(rows[changed], removed, rows[start + left.edits[:, 0]], left.edits[:, 1:])
    # int32 holds all counts of texts of up to 500 MB; of a larger one it holds the largest number.
    arrays = [pa.array(np.minimum(values[:, index], LARGEST).astype(np.int32)) for index in range(columns.COUNT)]
    return pa.table([rows, sizes, pa.array([profile] * len(rows)), *arrays], schema=statistics_schema())


def _by_kind(counts: np.ndarray) -> dict[str, list[int]]:
    return {name: counts[number].tolist() for number, name in enumerate(KINDS) if counts[number].any()}
