"""The data's section: sources, the mixture of them over a run, and how they are read."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config.section import Count, Integer, Name, Real, Section, Tokens


class SourceConfig(Section):
    path: str = Field(description="Directory of prepared shards, as maxlm-prep wrote it.")


class StageConfig(Section):
    tokens: Tokens = Field(description="Length of the stage in slots (examples x seq_len).")
    weights: dict[str, Annotated[Real, Field(ge=0)]] = Field(
        description="Share of the slots per source; normalised to a sum of 1."
    )


class DataConfig(Section):
    seq_len: Count = Field(description="Length of one training example in tokens.")
    sources: dict[Name, SourceConfig] = Field(min_length=1, description="Training sources by name.")
    mixture: list[StageConfig] = Field(
        min_length=1, max_length=1, description="The mixture of sources, as a list of one stage."
    )
    mask_documents: bool = Field(True, description="No attention across documents; positions restart.")
    validation: dict[Name, SourceConfig] = Field({}, description="Held-out sources by name.")
    verify: Literal["checksums", "sizes"] = Field(
        "checksums",
        description="What is checked before training: every byte against its checksum, or file sizes alone.",
    )
    workers: Annotated[Integer, Field(ge=0)] = Field(0, description="Grain worker processes; 0 reads in threads.")
    prefetch: Count = Field(4, description="Batches that are read ahead.")

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        for stage in self.mixture:
            for name in stage.weights:
                if name not in self.sources:
                    raise ValueError(
                        f"mixture names the source '{name}', data.sources has {', '.join(sorted(self.sources))}"
                    )
            if not sum(stage.weights.values()) > 0:
                raise ValueError("mixture: at least one weight must be above 0")
        return self
