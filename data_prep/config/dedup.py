"""What counts as a copy, and which copy stays."""

import unicodedata
from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config import Count, Name, Section

# Of the word splitter, of the kernel of signatures, and of the tables of characters: a test holds them to those.
SIGNATURES = f"words unicode 1, kernel 1, Unicode {unicodedata.unidata_version}"

Unit = Literal["words", "characters"]


class ShinglesConfig(Section):
    unit: Unit = Field(
        "words",
        description="What shingles are made of, after case and script are folded and symbols left out; of scripts "
        "without spaces every character is a word.",
    )
    ngram: Count = Field(5, description="Length of a shingle, in units; a shorter document is one shingle.")


class FuzzyConfig(ShinglesConfig):
    by_language: dict[Name, ShinglesConfig] = Field(
        {}, description="Other shingles for documents of a language, by its code in the documents."
    )
    buckets: Annotated[Count, Field(le=256)] = Field(
        14, description="Number of bands; documents that share one are near duplicates."
    )
    rows: Annotated[Count, Field(le=64)] = Field(
        8,
        description="Minima per band: documents of Jaccard similarity s share a band with the probability "
        "1 - (1 - s^rows)^buckets, half at about (1 / buckets)^(1 / rows).",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = Field(0, description="Seed of the permutations.")
    drop: bool = Field(
        True,
        description="Keep one document of a cluster; false keeps all, with the columns cluster and cluster_size, and "
        "holds out whole clusters. Copies of what is in `against` are dropped in either case.",
    )
    expect_matches: bool = Field(False, description="Stop with exit code 3 when no near duplicate is found.")


class LinesConfig(Section):
    min_characters: Count = Field(
        20, description="Shorter ones are never cut, in characters; a run of white space counts as one."
    )
    max_documents: Count = Field(6, description="Number of documents of all sources that one may occur in.")
    keep: Literal["first", "none"] = Field(
        "first",
        description="Of one that occurs in more: keep it in the first max_documents documents, by the order of sources "
        "and a hash of their ids, or in none.",
    )
    normalise: bool = Field(
        True, description="Compare without case, width of characters, script of Han characters and kind of white space."
    )
    expect_matches: bool = Field(False, description="Stop with exit code 3 when nothing is cut.")


class ParagraphsConfig(LinesConfig):
    min_characters: Count = Field(200, description=LinesConfig.model_fields["min_characters"].description)
    max_documents: Count = Field(1, description=LinesConfig.model_fields["max_documents"].description)


class SubstringsConfig(Section):
    min_bytes: Annotated[Count, Field(ge=32)] = Field(
        200,
        description="Length from which substrings that occurred before are cut, in bytes of UTF-8: from one and a half "
        "times this length on all of them, but for up to half of min_bytes at each end; shorter ones by chance.",
    )
    expect_matches: bool = Field(False, description="Stop with exit code 3 when nothing is cut.")


class DedupConfig(Section):
    exact: bool = Field(True, description="Keep one of the documents whose text is the same, byte for byte.")
    normalised: bool = Field(
        False,
        description="Keep one of the documents whose letters and numbers are the same, whatever their case, script "
        "(traditional or simplified), punctuation and white space; found by 64-bit hashes, in the stage fuzzy.",
    )
    fuzzy: FuzzyConfig | None = Field(
        None, description="Keep one of the documents that share most of their shingles; the longest of a source."
    )
    lines: LinesConfig | None = Field(None, description="Cut lines that occur in many documents.")
    paragraphs: ParagraphsConfig | None = Field(
        None, description="Cut blocks between blank lines that occur in more than one document, after the lines."
    )
    substrings: SubstringsConfig | None = Field(None, description="Cut long repeats within and across documents.")
    against: list[str] = Field(
        [],
        description="Directories of prepared shards: what is a copy of one of their documents, in the sense of exact, "
        "normalised and fuzzy, is dropped.",
    )
    signatures: str = Field(
        SIGNATURES,
        description="Version of what computes normalised and fuzzy; recorded with the shards, not to be set.",
    )
    expect_matches: bool = Field(
        False, description="Stop with exit code 3 when no duplicate is found by exact, or by normalised without fuzzy."
    )

    @property
    def signed(self) -> bool:
        """Whether documents get signatures."""
        return self.normalised or self.fuzzy is not None

    @model_validator(mode="after")
    def _check(self) -> "DedupConfig":
        if self.signatures != SIGNATURES:
            raise ValueError(
                f"signatures are '{SIGNATURES}' here, found '{self.signatures}'; leave the key out, or use the version "
                "of the program that wrote it"
            )
        if self.fuzzy and not self.fuzzy.drop and self.normalised:
            raise ValueError("normalised drops documents of the clusters that fuzzy.drop false keeps; set one of both")
        if self.against and not (self.exact or self.signed):
            raise ValueError("against needs exact, normalised or fuzzy, which say what a copy is")
        return self
