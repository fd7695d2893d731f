"""Quality by models: what scores documents, and which of them stay."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config import Name, Real, Section

# It becomes the name of a column.
ScoreName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
RANK, LABEL_SCORE = "_rank", "_score"
LANGUAGES = "Languages of the documents that {}, as in the column `language`, regions aside ([en, zh]). Null for all."


class ScorerConfig(Section):
    path: str = Field(description="Directory of the model, as `maxlm-prep train-model` writes it.")
    languages: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description=LANGUAGES.format("are scored; others have no score")
    )


class JoinConfig(Section):
    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="File, directory or glob, or a list of them: .parquet or .jsonl, the latter also compressed."
    )
    id: str = Field("id", description="Column or key of the document's id.")
    score: str = Field("score", description="Column or key of the score, a number.")
    source: Name | None = Field(
        None,
        description="Source whose documents the ids are of, where they do not begin with it; null for ids such as "
        "SOURCE/ID, which documents have in the output.",
    )


class ScoreLimit(Section):
    score: str = Field(
        description="Column that decides: NAME of a model or of a join, NAME_rank, or NAME_score of a topic model."
    )
    min: Real | None = Field(None, description="Documents with a smaller score are dropped.")
    max: Real | None = Field(None, description="Documents with a larger score are dropped.")
    labels: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="With NAME of a topic model: labels whose documents stay, all others are dropped."
    )
    sources: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Sources whose documents the limit is for. Null for all."
    )
    languages: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description=LANGUAGES.format("the limit is for")
    )
    missing: Literal["keep", "drop"] = Field("keep", description="What becomes of a document without a score.")

    @model_validator(mode="after")
    def _check(self) -> "ScoreLimit":
        if self.min is None and self.max is None and self.labels is None:
            raise ValueError(f"the limit on '{self.score}' has neither min nor max nor labels")
        if self.labels is not None and (self.min is not None or self.max is not None):
            raise ValueError(f"the limit on '{self.score}' has labels, which are no numbers, beside min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"the limit on '{self.score}' has min {self.min} above max {self.max}")
        return self


class QualityConfig(Section):
    models: dict[ScoreName, ScorerConfig] = Field(
        {},
        description="Models that score every document, by the name of the column: a classifier of two labels gives "
        "NAME (probability of its first label) and NAME_rank, one of more labels NAME (the likeliest) and NAME_score "
        "(its probability), a language model NAME (perplexity) and NAME_rank. A rank is the share of the documents of "
        "the same source and language that have a smaller score.",
    )
    join: dict[ScoreName, JoinConfig] = Field(
        {}, description="Scores from elsewhere, joined by the documents' ids; they give NAME and NAME_rank."
    )
    select: list[ScoreLimit] = Field([], description="Limits; a document is dropped by the first that it breaks.")
    expect_matches: bool = Field(False, description="Stop with exit code 3 when `select` drops nothing.")

    @model_validator(mode="after")
    def _check(self) -> "QualityConfig":
        if not self.models and not self.join:
            raise ValueError("quality has neither models nor join: there is no score")
        if both := self.models.keys() & self.join.keys():
            raise ValueError(f"'{min(both)}' is the name of a model and of a join")
        return self
