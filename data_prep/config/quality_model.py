"""Models of quality: what they are trained on, and how. They are made by `maxlm-prep train-model`."""

import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from data_prep.config.perplexity import PerplexityTraining
from data_prep.config.pipeline import Selection
from maxlm.config import Count, Name, Real, Section


class ClassifierTraining(Section):
    labels: dict[Name, Annotated[list[Name], Field(min_length=1)]] = Field(
        min_length=2,
        description="Labels, each with the sources whose documents have it. Of two labels the first is the positive "
        "one, whose probability is the score; more labels make a model of topics.",
    )
    ngram: Annotated[int, Field(ge=1, le=3, strict=True)] = Field(
        2, description="Longest sequence of words that is a feature, in words; a Han character is a word."
    )
    buckets: Annotated[int, Field(ge=2**10, le=2**26, strict=True)] = Field(
        2**20,
        description="Rows of the table of weights, into which features are hashed; a power of two.",
    )
    epochs: Count = Field(3, description="Times that every training document is seen.")
    learning_rate: Annotated[Real, Field(gt=0)] = Field(
        0.1, description="Step of a weight before its first update (Adagrad)."
    )
    held_out: Annotated[Real, Field(gt=0, le=0.5)] = Field(
        0.2,
        description="Share of the documents that is not trained on, chosen by a hash of their ids: half of it "
        "calibrates the scores, on the other half the model is evaluated.",
    )
    group: str | None = Field(
        None,
        description="Regular expression; documents in whose ids it finds the same text fall on the same side of the "
        "evaluation, for example ^[^#]+ for parts FILE#1, FILE#2 of a file. Null: each document by itself, or near "
        "duplicates together where dedup.fuzzy keeps and knows them.",
    )
    max_bytes: Count = Field(
        2**26,
        description="Largest amount of text of a label, in bytes; documents are chosen by a hash of their id. Training "
        "needs two to four times this in memory for each label.",
    )

    @field_validator("buckets")
    @classmethod
    def _is_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"expected a power of two such as {2 ** (value.bit_length() - 1)}, found {value}")
        return value

    @field_validator("group")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _check(self) -> "ClassifierTraining":
        sources = [name for names in self.labels.values() for name in names]
        if twice := [name for name in sources if sources.count(name) > 1]:
            raise ValueError(f"the source '{twice[0]}' stands twice in labels; a document has one label")
        return self


class QualityModel(Selection):
    """From raw files to a model that scores documents."""

    output: str = Field("prepared/models", description="Directory of models; the model is output/name.")
    classifier: ClassifierTraining | None = Field(None, description="Train a classifier from labelled sources.")
    perplexity: PerplexityTraining | None = Field(None, description="Train a language model, whose perplexity scores.")

    @model_validator(mode="after")
    def _check_kind(self) -> "QualityModel":
        if (self.classifier is None) == (self.perplexity is None):
            raise ValueError("a model has one of the sections classifier and perplexity")
        if self.perplexity is not None:
            used = self.perplexity.sources or list(self.ingest.sources)
        else:
            used = [name for names in self.classifier.labels.values() for name in names]
        for name in used:
            if name not in self.ingest.sources:
                raise ValueError(f"the source '{name}' is not in ingest.sources: {', '.join(self.ingest.sources)}")
        for name in self.ingest.sources:
            if name not in used:
                raise ValueError(f"the source '{name}' would be read for nothing: the model is not trained on it")
        return self
