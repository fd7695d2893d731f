"""Quality by rules: profiles of thresholds, and lines that are removed.

A profile is data: the files data_prep/rules/profiles/*.yaml, a file of one's own, or a mapping in the pipeline, which
may extend another one key by key. Null turns a rule off.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from maxlm.config import Count, Fraction, Integer, Real, Section

PROFILES = Path(__file__).parents[1] / "rules" / "profiles"
DEFAULT, OF_CODE = "default", "code"
Characters = Literal["sentence_terminal"] | list[Annotated[str, Field(min_length=1, max_length=1)]]
Positive = Annotated[Real, Field(ge=0)]
NotNegative = Annotated[Integer, Field(ge=0)]
Phrase = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]
SharePart = Fraction | None


class RepetitionRules(Section):
    """Gopher's rules of repetition. Shares of characters are of all characters of the text."""

    max_duplicate_paragraphs: SharePart = Field(None, description="Share of the paragraphs that occurred before.")
    max_duplicate_paragraph_characters: SharePart = Field(None, description="Share of characters in such paragraphs.")
    max_duplicate_lines: SharePart = Field(None, description="Share of the lines that occurred before.")
    max_duplicate_line_characters: SharePart = Field(None, description="Share of characters in such lines.")
    max_top_2_gram_characters: SharePart = Field(None, description="Share in the most frequent pair of words.")
    max_top_3_gram_characters: SharePart = Field(None, description="Share in the most frequent 3-gram.")
    max_top_4_gram_characters: SharePart = Field(None, description="Share in the most frequent 4-gram.")
    max_duplicate_5_gram_characters: SharePart = Field(None, description="Share in 5-grams that occurred before.")
    max_duplicate_6_gram_characters: SharePart = Field(None, description="Share in 6-grams that occurred before.")
    max_duplicate_7_gram_characters: SharePart = Field(None, description="Share in 7-grams that occurred before.")
    max_duplicate_8_gram_characters: SharePart = Field(None, description="Share in 8-grams that occurred before.")
    max_duplicate_9_gram_characters: SharePart = Field(None, description="Share in 9-grams that occurred before.")
    max_duplicate_10_gram_characters: SharePart = Field(None, description="Share in 10-grams that occurred before.")


class GopherRules(Section):
    """Gopher's rules of quality."""

    min_words: Count | None = Field(None, description="Words that are not symbols alone.")
    max_words: Count | None = Field(None, description="Words that are not symbols alone.")
    min_word_length: Positive | None = Field(None, description="Mean length of such words, in characters.")
    max_word_length: Positive | None = Field(None, description="Mean length of such words, in characters.")
    max_hashes: Positive | None = Field(None, description="'#' per word, symbols included.")
    max_ellipses: Positive | None = Field(None, description="'...' and '…' per word, symbols included.")
    max_bullet_lines: SharePart = Field(None, description="Share of the lines that begin with '•' or '-'.")
    max_ellipsis_lines: SharePart = Field(None, description="Share of the lines that end with '...' or '…'.")
    min_alphabetic_words: SharePart = Field(None, description="Share of the words that have a letter.")
    min_stop_words: Count | None = Field(None, description="Different words of `stop_words` that occur.")


class C4Lines(Section):
    """C4's rules for lines; with them, lines also lose white space at their ends, and newlines stand between them."""

    max_word_characters: Count | None = Field(None, description="Remove lines with a longer word, in characters.")
    citations: bool = Field(False, description="Cut out [1], [edit] and [citation needed].")
    final_punctuation: bool = Field(False, description="Remove lines that do not end in . ! ? \" or '.")
    min_words: Count | None = Field(None, description="Remove lines with fewer words, separated by white space.")
    javascript: list[Phrase] | None = Field(None, description="Remove lines with one of these, in any case.")
    policy: list[Phrase] | None = Field(None, description="Remove lines with one of these, in any case.")


class C4Rules(Section):
    """C4's rules; counts are of the lines that its rules for lines leave."""

    lines: C4Lines | None = Field(None, description="Lines that are removed.")
    max_lorem_ipsum_lines: NotNegative | None = Field(None, description="Lines with 'lorem ipsum', in any case.")
    max_curly_bracket_lines: NotNegative | None = Field(None, description="Lines with '{'.")
    min_sentences: Count | None = Field(None, description="Sentences of the lines that are left.")


class FineWebRules(Section):
    """FineWeb's rules, on what line rules left; lines that are blank do not count."""

    min_stop_lines: SharePart = Field(
        None, description="Share of the lines that end in a character of `stop_characters`."
    )
    max_short_lines: SharePart = Field(
        None, description="Share of the lines that have at most `short_line_characters` characters."
    )
    max_duplicate_characters: SharePart = Field(None, description="Share of characters in lines that occurred before.")
    max_newlines: Positive | None = Field(None, description="Newlines per word, symbols included.")


class CodeRules(Section):
    """Rules for source code."""

    max_line_length: Count | None = Field(None, description="Longest line, in characters.")
    max_mean_line_length: Positive | None = Field(None, description="Mean length of the lines, in characters.")
    min_letters_and_digits: SharePart = Field(None, description="Share of the characters that are letters or digits.")


class LinesConfig(Section):
    """Lines that are removed beside C4's."""

    remove: list[Literal["boilerplate", "short_runs", "few_words"]] = Field(
        [],
        description="boilerplate: lines with a phrase; short_runs: runs of short lines without final punctuation, as "
        "in menus; few_words: lines with too few words.",
    )
    containing: list[Phrase] = Field(
        [], description="Boilerplate: remove lines that contain one of these, in any case."
    )
    equal: list[Phrase] = Field([], description="Boilerplate: remove lines that are one of these, in any case.")
    max_characters: Count = Field(200, description="Boilerplate: longest line that is removed, in characters.")
    run_characters: Count = Field(30, description="Short runs: longest line of a run, in characters.")
    run_lines: Count = Field(
        4, description="Short runs: fewest lines of a run that is removed; blank ones do not count."
    )
    run_anywhere: bool = Field(False, description="Short runs: also inside the text, not at its start and end alone.")
    min_words: Count = Field(3, description="Few words: fewest words of a line that stays, symbols aside.")


Group = Literal["repetition", "gopher", "c4", "fineweb", "code"]


class Profile(Section):
    """The rules for the documents of a language."""

    words: Literal["unicode", "jieba", "whitespace"] = Field(
        "unicode", description="Word splitter; jieba segments Han characters by a dictionary."
    )
    sentences: Literal["punctuation"] = Field("punctuation", description="Sentence splitter.")
    stop_words: list[Phrase] = Field([], description="Words of which `gopher.min_stop_words` must occur, in this case.")
    stop_characters: Characters = Field(
        "sentence_terminal",
        description="Characters that end lines of prose; sentence_terminal for Unicode's property of that name.",
    )
    short_line_characters: Count = Field(30, description="Longest line that is short to FineWeb, in characters.")
    order: list[Group] = Field(
        ["repetition", "gopher", "c4", "fineweb", "code"],
        description="Order of the rules; the first that a document fails is the reason why it is dropped.",
    )
    lines: LinesConfig | None = Field(None, description="Lines that are removed beside C4's.")
    repetition: RepetitionRules | None = Field(None, description="Gopher's rules of repetition.")
    gopher: GopherRules | None = Field(None, description="Gopher's rules of quality.")
    c4: C4Rules | None = Field(None, description="C4's rules.")
    fineweb: FineWebRules | None = Field(None, description="FineWeb's rules.")
    code: CodeRules | None = Field(None, description="Rules for source code.")

    @model_validator(mode="after")
    def _check(self) -> "Profile":
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order names a group twice, found {', '.join(self.order)}")
        for name in ("repetition", "gopher", "c4", "fineweb", "code"):
            if getattr(self, name) is not None and name not in self.order:
                raise ValueError(f"order must name every group that has rules; '{name}' is missing")
        if self.gopher and (self.gopher.min_stop_words or 0) > len(set(self.stop_words)):
            raise ValueError(
                f"gopher.min_stop_words is {self.gopher.min_stop_words}, but stop_words has {len(set(self.stop_words))}"
            )
        return self


def resolve(value: Any, extending: tuple[str, ...] = ()) -> Any:
    """A profile with what it extends as one mapping; `ValueError` where a name or a file is not known."""
    if isinstance(value, str):
        path = _path(value)
        if str(path) in extending:
            raise ValueError(f"the profile extends itself through {' -> '.join((*extending, str(path)))}")
        return resolve(_load(path), (*extending, str(path)))
    if not isinstance(value, Mapping) or "extends" not in value:
        return value
    own = {key: entry for key, entry in value.items() if key != "extends"}
    if not isinstance(value["extends"], str):
        raise ValueError(f"extends must be the name or the file of one profile, found {value['extends']!r}")
    return _merged(resolve(value["extends"], extending), own)


def _path(name: str) -> Path:
    known = {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}
    if name in known:
        return known[name]
    if not name.endswith((".yaml", ".yml")):
        close = difflib.get_close_matches(name, known, 1)
        nearest = f"; the nearest is '{close[0]}'" if close else ""
        raise ValueError(f"no profile is called '{name}'{nearest}; there are {', '.join(known)}, or a .yaml file")
    return Path(name)


def _load(path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected the keys of a profile, found {type(values).__name__}")
    return values


def _merged(base: Any, own: Mapping) -> dict:
    """Mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in own.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


ProfileOf = Annotated[Profile | None, BeforeValidator(resolve, json_schema_input_type=str | dict | None)]


class RulesConfig(Section):
    profiles: dict[str, ProfileOf] = Field(
        description="Profile of each language (the column `language`): a name (en, zh, code, default), a YAML file, or "
        "a mapping, which may extend one of them; null to leave its documents alone. `code` is for languages of code "
        "that have none of their own, `default` for all others."
    )
    expect_matches: bool = Field(False, description="Stop with exit code 3 when no rule concerns any document.")

    @model_validator(mode="after")
    def _check(self) -> "RulesConfig":
        if DEFAULT not in self.profiles:
            raise ValueError(
                "profiles must say what happens to documents of other languages: `default: default`, or "
                "`default: null` to leave them alone"
            )
        return self
