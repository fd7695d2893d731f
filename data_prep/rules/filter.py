"""Thresholds on statistics: which documents are dropped, and why. No text is read.

Rules stand in the order of the published implementations; the first that a document fails is the reason. A quotient
whose divisor is 0 is 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.config.rules import Profile
from data_prep.documents import Part
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder, Record
from data_prep.rules.annotate import FILE
from data_prep.rules.columns import NAMES

VERSION = 1
EMPTY = "no text left"


@dataclass(frozen=True)
class Rule:
    """A limit `field` of the section `group` on the count `of`, or on its quotient with the count `per`."""

    group: str
    field: str
    reason: str
    of: str
    per: str | None = None

    @property
    def measure(self) -> str:
        return f"{self.group}.{self.field.split('_', 1)[1]}"

    def limit(self, profile: Profile) -> float | None:
        section = getattr(profile, self.group)
        return None if section is None else getattr(section, self.field)

    def values(self, statistics: Mapping[str, np.ndarray]) -> np.ndarray:
        """float64 [documents]."""
        counts = statistics[self.of].astype(np.float64)
        if self.per is None:
            return counts
        divisors = statistics[self.per].astype(np.float64)
        return np.divide(counts, divisors, out=np.zeros_like(counts), where=divisors > 0)

    def fails(self, statistics: Mapping[str, np.ndarray], limit: float) -> np.ndarray:
        values = self.values(statistics)
        return values < limit if self.field.startswith("min_") else values > limit


RULES = (
    Rule("repetition", "max_duplicate_paragraphs", "duplicate paragraphs", "duplicate_paragraphs", "paragraphs"),
    Rule(
        "repetition",
        "max_duplicate_paragraph_characters",
        "characters in duplicate paragraphs",
        "duplicate_paragraph_characters",
        "characters",
    ),
    Rule("repetition", "max_duplicate_lines", "duplicate lines", "duplicate_lines", "newline_lines"),
    Rule(
        "repetition",
        "max_duplicate_line_characters",
        "characters in duplicate lines",
        "duplicate_line_characters",
        "characters",
    ),
    *(
        Rule("repetition", f"max_{count}", f"{name} {n}-gram" + "s" * (name == "duplicate"), count, "characters")
        for name, sizes in (("top", (2, 3, 4)), ("duplicate", range(5, 11)))
        for n in sizes
        for count in [f"{name}_{n}_gram_characters"]
    ),
    Rule("gopher", "min_words", "too few words", "plain_words"),
    Rule("gopher", "max_words", "too many words", "plain_words"),
    Rule("gopher", "min_word_length", "words too short", "plain_word_characters", "plain_words"),
    Rule("gopher", "max_word_length", "words too long", "plain_word_characters", "plain_words"),
    Rule("gopher", "max_hashes", "too many #", "hashes", "words"),
    Rule("gopher", "max_ellipses", "too many ellipses", "ellipses", "words"),
    Rule("gopher", "max_bullet_lines", "too many bullets", "bullet_lines", "lines"),
    Rule("gopher", "max_ellipsis_lines", "too many lines end in an ellipsis", "ellipsis_lines", "lines"),
    Rule("gopher", "min_alphabetic_words", "too few words with a letter", "alphabetic_words", "words"),
    Rule("gopher", "min_stop_words", "too few stop words", "stop_words"),
    Rule("c4", "max_lorem_ipsum_lines", "lorem ipsum", "lorem_ipsum_lines"),
    Rule("c4", "max_curly_bracket_lines", "curly bracket", "curly_bracket_lines"),
    Rule("c4", "min_sentences", "too few sentences", "sentences"),
    Rule("fineweb", "min_stop_lines", "too few lines end in punctuation", "left_stop_lines", "left_lines"),
    Rule("fineweb", "max_short_lines", "too many short lines", "left_short_lines", "left_lines"),
    Rule(
        "fineweb",
        "max_duplicate_characters",
        "characters in duplicate lines",
        "left_duplicate_characters",
        "left_characters",
    ),
    Rule("fineweb", "max_newlines", "too many newlines", "left_newlines", "left_words"),
    Rule("code", "max_line_length", "line too long", "longest_line"),
    Rule("code", "max_mean_line_length", "lines too long", "line_characters", "lines"),
    Rule("code", "min_letters_and_digits", "too few letters and digits", "letters_and_digits", "characters"),
)
REASONS = (*(f"{rule.group}: {rule.reason}" for rule in RULES), EMPTY)


def limits_of(profile: Profile) -> dict:
    """What a result of `drop` depends on beside the statistics, as JSON."""
    return {"order": profile.order, "limits": [rule.limit(profile) for rule in RULES]}


def failures(statistics: Mapping[str, np.ndarray], profile: Profile) -> np.ndarray:
    """Number of the first reason in REASONS that each document has to be dropped, or -1: int64 [documents].

    A document without text fails before FineWeb's rules, as in its filter, or in the end.
    """
    found = np.full(len(statistics[NAMES[0]]), -1, np.int64)
    empty = statistics["left_lines"] == 0
    for group in profile.order:
        if group == "fineweb":
            found[(found < 0) & empty] = len(RULES)
        for number, rule in enumerate(RULES):
            if rule.group == group and (limit := rule.limit(profile)) is not None:
                found[(found < 0) & rule.fails(statistics, limit)] = number
    found[(found < 0) & empty] = len(RULES)
    return found


def drop(folder: Folder, key: str, part: Part, path: Path, profiles: Mapping[str, Profile | None]) -> Record:
    """Mark the documents of a part that fail the rules of their profiles, by the statistics in `path`."""
    import pyarrow.parquet as pq

    marks = Marks()
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            statistics = {name: table[name].to_numpy() for name in NAMES}
            rows, sizes, names = (table[name].to_numpy() for name in ("row", "bytes", "profile"))
            for name in sorted(set(names.tolist())):
                mine = np.flatnonzero(names == name)
                found = failures({key: column[mine] for key, column in statistics.items()}, profiles[name])
                for index in np.flatnonzero(found >= 0):
                    marks.drop(rows[mine[index]], sizes[mine[index]], REASONS[found[index]])
    return commit(folder, key, {part.name: marks})


def statistics(folder: Folder, record: Record) -> "pa.Table":  # noqa: F821
    """The statistics of a part, of a record of `annotate`: row, bytes that lines rules left, profile, the counts of
    `columns.NAMES`, and what each rule compares with its limit (float32, such as "gopher.word_length")."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder.file(record.key, FILE))
    counts = {name: table[name].to_numpy() for name in NAMES}
    for rule in RULES:
        if rule.measure not in table.schema.names:
            table = table.append_column(rule.measure, pa.array(rule.values(counts).astype(np.float32)))
    return table
