"""The data's section: sources, the mixture of them over a run, and how they are read."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config.section import Count, Integer, Name, Real, Section, Tokens

# A window lies in one block of the data order (maxlm/data/order.py), which has 2^24 tokens.
SeqLen = Annotated[Integer, Field(gt=0, le=2**24)]


class SourceConfig(Section):
    path: str = Field(description="Directory of prepared shards, as maxlm-prep wrote it.")
    max_epochs: Real | None = Field(
        None, gt=0, description="Most times that the source is read; null for no limit. data.exhausted says what then."
    )
    order: Literal["shuffled", "as_written"] = Field(
        "shuffled",
        description="Order of its examples: new in every epoch, or as they were written (a curriculum is prepared so).",
    )


class HeldOutConfig(Section):
    path: str = Field(description="Directory of prepared shards, as maxlm-prep wrote it.")


class StageConfig(Section):
    tokens: Tokens = Field(description="Length of the stage in slots (examples x seq_len).")
    weights: dict[str, Annotated[Real, Field(ge=0)]] = Field(
        description="Share of the slots per source; normalised to a sum of 1."
    )
    seq_len: SeqLen | None = Field(
        None, description="Length of an example in this stage, in tokens; null for data.seq_len."
    )
    batch_tokens: Tokens | None = Field(
        None, description="Slots per optimizer step in this stage; null for train.batch_tokens."
    )


class DataConfig(Section):
    seq_len: SeqLen = Field(description="Length of one training example in tokens.")
    sources: dict[Name, SourceConfig] = Field(min_length=1, description="Training sources by name.")
    mixture: list[StageConfig] = Field(
        min_length=1, description="Stages of the run, in order; the last one has no end but the run's."
    )
    exhausted: Literal["stop", "renormalise"] = Field(
        "stop",
        description="What happens when a source has been read max_epochs times: the run stops there, or goes on with "
        "the shares of the others.",
    )
    mask_documents: bool = Field(True, description="No attention across documents; positions restart.")
    validation: dict[Name, HeldOutConfig] = Field({}, description="Held-out sources by name.")
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
