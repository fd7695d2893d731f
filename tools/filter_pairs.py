"""Rules of a profile beside the filters of datatrove that should do the same: tables for compare_filters.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.config.rules import Profile
from data_prep.rules import filter, traits

Steps = list[tuple[str, dict[str, Any]]]
REPETITION = {
    "max_duplicate_paragraphs": "dup_para_frac",
    "max_duplicate_paragraph_characters": "dup_para_char_frac",
    "max_duplicate_lines": "dup_line_frac",
    "max_duplicate_line_characters": "dup_line_char_frac",
}
GRAMS = {
    "top_n_grams": [(n, f"max_top_{n}_gram_characters") for n in (2, 3, 4)],
    "dup_n_grams": [(n, f"max_duplicate_{n}_gram_characters") for n in range(5, 11)],
}
GOPHER = {
    "min_words": "min_doc_words",
    "max_words": "max_doc_words",
    "min_word_length": "min_avg_word_length",
    "max_word_length": "max_avg_word_length",
    "max_hashes": "max_symbol_word_ratio",
    "max_ellipses": "max_symbol_word_ratio",  # the same limit for both
    "max_bullet_lines": "max_bullet_lines_ratio",
    "max_ellipsis_lines": "max_ellipsis_lines_ratio",
    "min_alphabetic_words": "max_non_alpha_words_ratio",
    "min_stop_words": "min_stop_words",
}
C4_LINES = {
    "max_word_characters": "max_word_length",
    "citations": "remove_citations",
    "final_punctuation": "filter_no_terminal_punct",
    "min_words": "min_words_per_line",
    "javascript": "filter_javascript",
    "policy": "filter_policy",
}
C4_DOCUMENTS = {
    "max_lorem_ipsum_lines": "filter_lorem_ipsum",
    "max_curly_bracket_lines": "filter_curly_bracket",
    "min_sentences": "min_num_sentences",
}
C4_OFF = {"max_word_characters": -1, "min_words": -1, "min_sentences": -1}
FINEWEB = {
    "min_stop_lines": "line_punct_thr",
    "max_short_lines": "short_line_thr",
    "max_duplicate_characters": "char_duplicates_ratio",
    "max_newlines": "new_line_ratio",
}
# Limits that no document fails.
FINEWEB_OFF = {"line_punct_thr": 0, "short_line_thr": 999, "char_duplicates_ratio": 999, "new_line_ratio": 999}
REASONS = {
    "dup_para_frac": "repetition: duplicate paragraphs",
    "dup_para_char_frac": "repetition: characters in duplicate paragraphs",
    "dup_line_frac": "repetition: duplicate lines",
    "dup_line_char_frac": "repetition: characters in duplicate lines",
    **{f"top_{n}_gram": f"repetition: top {n}-gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"repetition: duplicate {n}-grams" for n in range(5, 11)},
    "gopher_short_doc": "gopher: too few words",
    "gopher_long_doc": "gopher: too many words",
    "gopher_below_avg_threshold": "gopher: words too short",
    "gopher_above_avg_threshold": "gopher: words too long",
    "gopher_too_many_hashes": "gopher: too many #",
    "gopher_too_many_ellipsis": "gopher: too many ellipses",
    "gopher_too_many_bullets": "gopher: too many bullets",
    "gopher_too_many_end_ellipsis": "gopher: too many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "gopher: too few words with a letter",
    "gopher_enough_stop_words": "gopher: too few stop words",
    "lorem_ipsum": "c4: lorem ipsum",
    "curly_bracket": "c4: curly bracket",
    "too_few_sentences": "c4: too few sentences",
    "line_punct_ratio": "fineweb: too few lines end in punctuation",
    "short_line_ratio": "fineweb: too many short lines",
    "char_dup_ratio": "fineweb: characters in duplicate lines",
    "list_ratio": "fineweb: too many newlines",
    "empty": filter.EMPTY,
}


@dataclass(frozen=True)
class Pair:
    """A profile, and the filters of datatrove with its limits; `words`: whether they look at words."""

    name: str
    profile: Profile
    steps: Steps
    words: bool


def _repetition(profile: Profile) -> dict[str, Any]:
    values = profile.repetition.model_dump()
    grams = {name: [(n, values[key]) for n, key in keys if values[key] is not None] for name, keys in GRAMS.items()}
    return {theirs: values[ours] for ours, theirs in REPETITION.items()} | grams


def _gopher(profile: Profile) -> dict[str, Any]:
    values = profile.gopher.model_dump()
    limits = dict.fromkeys(GOPHER.values()) | {
        GOPHER[ours]: value for ours, value in values.items() if value is not None
    }
    return limits | {"stop_words": profile.stop_words}


def _c4(profile: Profile) -> dict[str, Any]:
    lines = profile.c4.lines.model_dump() if profile.c4.lines else {}
    values = {ours: lines.get(ours) for ours in C4_LINES} | {ours: getattr(profile.c4, ours) for ours in C4_DOCUMENTS}
    found = {}
    for ours, theirs in (C4_LINES | C4_DOCUMENTS).items():
        if ours in C4_OFF:
            found[theirs] = C4_OFF[ours] if values[ours] is None else values[ours]
        else:
            # max_lorem_ipsum_lines of 0 is on; the lists of phrases are those that datatrove has.
            found[theirs] = values[ours] is not None and values[ours] is not False
    return found


def _fineweb(profile: Profile) -> dict[str, Any]:
    values = profile.fineweb.model_dump()
    limits = {theirs: values[ours] for ours, theirs in FINEWEB.items() if values[ours] is not None}
    stops = profile.stop_characters
    stops = [chr(code) for code in traits.sentence_terminal()] if isinstance(stops, str) else stops
    return FINEWEB_OFF | limits | {"stop_chars": stops, "short_line_length": profile.short_line_characters}


FILTERS = {
    "repetition": ("GopherRepetitionFilter", _repetition),
    "gopher": ("GopherQualityFilter", _gopher),
    "c4": ("C4QualityFilter", _c4),
    "fineweb": ("FineWebQualityFilter", _fineweb),
}


def steps_of(profile: Profile) -> Steps:
    """The filters of a profile, in its order."""
    groups = [group for group in profile.order if group in FILTERS and getattr(profile, group) is not None]
    return [(name, make(profile)) for name, make in map(FILTERS.get, groups)]


def pairs(profile: Profile) -> Iterator[Pair]:
    """Every rule of a profile alone, then all in their order."""
    plain = {"lines": None, **dict.fromkeys(FILTERS), "code": None}
    for group in ("repetition", "gopher", "fineweb"):
        section = getattr(profile, group)
        values = {field: limit for field, limit in section.model_dump().items() if limit is not None}
        # datatrove has one limit for both.
        symbols = {field: values.pop(field) for field in ("max_hashes", "max_ellipses") if field in values}
        alone = [{field: limit} for field, limit in values.items()] + ([symbols] if symbols else [])
        for fields in alone:
            yield _pair(f"{group}.{' + '.join(fields)}", profile, plain | {group: type(section)(**fields)})
    if profile.c4:
        whole = profile.c4.lines.model_dump() | {"final_punctuation": True}
        for field in C4_LINES:
            lines = type(profile.c4.lines)(**{field: whole[field]})
            yield _pair(f"c4.lines.{field}", profile, plain | {"c4": type(profile.c4)(lines=lines)})
        for field in C4_DOCUMENTS:
            limits = {"lines": profile.c4.lines, field: getattr(profile.c4, field)}
            yield _pair(f"c4.{field}", profile, plain | {"c4": type(profile.c4)(**limits)})
        left = type(profile.c4)(lines=profile.c4.lines)
        for field, limit in profile.fineweb.model_dump().items():
            changes = {"c4": left, "fineweb": type(profile.fineweb)(**{field: limit})}
            yield _pair(f"fineweb.{field} behind c4", profile, plain | changes)
    yield _pair("all", profile, {"lines": None})


def _pair(name: str, profile: Profile, changes: dict[str, Any]) -> Pair:
    alone = profile.model_copy(update=changes)
    words = name == "all" or "_gram_" in name or "newlines" in name or "sentences" in name or name.startswith("gopher.")
    return Pair(name, alone, steps_of(alone), words and "bullet" not in name and "ellipsis_lines" not in name)
