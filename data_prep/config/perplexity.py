"""Language models for perplexity: what they are trained on, and how."""

from typing import Annotated

from pydantic import Field, field_validator

from maxlm.config import Count, Section


class PerplexityTraining(Section):
    sources: list[str] | None = Field(
        None, description="Sources whose documents the model is trained on, as in ingest.sources; null for all."
    )
    order: Annotated[int, Field(ge=2, le=8, strict=True)] = Field(
        5, description="Length of the longest n-grams, in words; the model sees order - 1 words before each."
    )
    splitter: str = Field(
        "unicode",
        description="Word splitter: unicode (a Han character is a word), jieba (Chinese by its words) or whitespace.",
    )
    fold: bool = Field(
        True, description="Whether words that differ in case, compatibility forms or Chinese script alone are the same."
    )
    max_bytes: Annotated[Count, Field(lt=2**31)] = Field(
        2**26,
        description="Text to train on, in bytes, at most: a sample of the documents by hash. Training needs about 20 "
        "times as much memory for English, 30 times for Chinese.",
    )
    held_out: float = Field(
        0.02, gt=0, lt=1, description="Share of the documents that is held out, by hash of the id, to evaluate on."
    )
    prune: list[Annotated[int, Field(ge=0, strict=True)]] = Field(
        [0, 0, 1],
        min_length=1,
        description="n-grams that occur at most so often are left out, by length; the last holds for longer ones.",
    )
    vocabulary: Count | None = Field(
        2**18, description="Words that the model knows, the most frequent ones; null for all. The others are unknown."
    )
    arpa: bool = Field(False, description="Write model.arpa as well, the text format of KenLM and SRILM.")

    @field_validator("prune")
    @classmethod
    def _check_prune(cls, prune: list[int]) -> list[int]:
        if prune[0] or prune != sorted(prune):
            raise ValueError(
                "prune must begin with 0 and not fall: parts of an n-gram that is kept are kept; words are limited by "
                f"vocabulary; found {prune}"
            )
        return prune
