"""How much of each source there is for training, and which documents occur more than once."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config import Count, Name, Real, Section

# Copies of a document are numbered in 16 bits: copies of a bucket times max_epochs stay below.
Factor = Annotated[Real, Field(le=200)]


class BucketConfig(Section):
    min: Real = Field(description="Least value of the bucket's documents; the next larger `min` is where it ends.")
    copies: Annotated[Factor, Field(ge=0)] = Field(
        description="Copies of each in one epoch of the source; of 1.5, say, half of the documents have two."
    )


class UpsampleConfig(Section):
    by: Name = Field(description="Column that decides: of numbers, such as bytes or prose_rank, or of labels.")
    buckets: list[BucketConfig] = Field([], description="Copies by a number; every value must lie in a bucket.")
    labels: dict[str, Annotated[Factor, Field(ge=0)]] = Field(
        {}, description="Copies by a label, such as the topic that a model found."
    )
    other: Annotated[Factor, Field(ge=0)] = Field(
        1.0, description="Copies of documents without a value, or with a label that is not named."
    )

    @model_validator(mode="after")
    def _check(self) -> "UpsampleConfig":
        if bool(self.buckets) == bool(self.labels):
            raise ValueError("expected buckets, for a column of numbers, or labels")
        if len({bucket.min for bucket in self.buckets}) < len(self.buckets):
            raise ValueError("buckets: each needs a `min` of its own")
        if not any([self.other, *self.labels.values(), *(bucket.copies for bucket in self.buckets)]):
            raise ValueError("no document would be left; a weight of 0 leaves a source out")
        return self


class MixConfig(Section):
    """Shares are of training tokens, BOS and EOS included. Held-out documents are written once, whatever this says."""

    tokens: Count | None = Field(
        None, description="Training tokens of all sources together; null for as many as the sources allow."
    )
    weights: dict[Name, Annotated[Real, Field(ge=0)]] = Field(
        {},
        description="Share of the tokens per source or group, normalised to a sum of 1; 0 leaves one out. Every source "
        "must be named, itself or by its group; {} for the sources' own sizes.",
    )
    groups: dict[Name, Annotated[list[Name], Field(min_length=1)]] = Field(
        {}, description="Names for several sources that have one weight; each is read as often as the others."
    )
    max_epochs: dict[Name, Annotated[Factor, Field(gt=0)]] = Field(
        {}, description="Most times that a source or group of `weights` is repeated to reach its share; 1 if not named."
    )
    exhausted: Literal["stop", "shrink"] = Field(
        "stop",
        description="Where `tokens` is more than a source has in max_epochs: stop with exit code 3, or take less of "
        "all, so that the shares hold.",
    )
    upsample: dict[Name, UpsampleConfig] = Field(
        {}, description="Copies of a source's documents by a column, before its share is taken."
    )

    @model_validator(mode="after")
    def _check(self) -> "MixConfig":
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights: at least one must be above 0")
        if twice := set(self.groups) - set(self.weights):
            raise ValueError(f"weights must name the group '{min(twice)}'")
        if unknown := set(self.max_epochs) - set(self.weights):
            raise ValueError(f"max_epochs names '{min(unknown)}', which weights does not")
        return self

    def units(self, sources: list[str]) -> dict[str, list[str]]:
        """The sources of every name in `weights`; one unit named "all" where there are no weights."""
        if not self.weights:
            return {"all": sources}
        return {name: self.groups.get(name, [name]) for name in self.weights}

    def check_sources(self, sources: list[str]) -> None:
        """Raise `ValueError` where the sections do not name the sources once each."""
        named = [source for unit in self.units(sources).values() for source in unit]
        for where, names in (("weights", named), ("upsample", list(self.upsample))):
            for name in names:
                if name not in sources:
                    raise ValueError(f"mix.{where} names the source '{name}', ingest.sources has {', '.join(sources)}")
        for source in sources:
            if (count := named.count(source)) != 1:
                found = "is not named; 0 leaves it out" if not count else f"is named {count} times"
                raise ValueError(f"mix.weights: the source '{source}' {found}")
        if clash := set(self.groups) & set(sources):
            raise ValueError(f"mix.groups: '{min(clash)}' is the name of a source")
