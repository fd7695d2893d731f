"""The data's section: sources, the mixture of them over a run, and how they are read."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config.section import Count, Decay, Fraction, Integer, Name, Real, Section, Tokens

# A window lies in one block of the data order (maxlm/data/order.py), which has 2^24 tokens.
SeqLen = Annotated[Integer, Field(gt=0, le=2**24)]
SHARDS = "Directory of prepared shards, as maxlm-prep wrote it, or its URL in an object store: gs://, s3://, hf://, https://."


class FimConfig(Section):
    rate: Fraction = Field(0.5, description="Share of the documents that are rearranged to be filled in.")
    spm_rate: Fraction = Field(0.5, description="Share of these in the order suffix, prefix, middle; the others: PSM.")
    level: Literal["token", "character"] = Field(
        "character", description="Where a document may be split; character: its three pieces are tokenized again."
    )
    prefix: str = Field("<fim_prefix>", description="Token in front of the prefix.")
    suffix: str = Field("<fim_suffix>", description="Token in front of the suffix.")
    middle: str = Field("<fim_middle>", description="Token in front of the middle.")

    @model_validator(mode="after")
    def _check(self) -> "FimConfig":
        if len({self.prefix, self.suffix, self.middle}) < 3:
            raise ValueError(
                f"prefix, suffix and middle must be three tokens, found {self.prefix}, {self.suffix}, {self.middle}"
            )
        return self


class PrefixConfig(Section):
    rate: Fraction = Field(1.0, description="Share of the documents that have a bidirectional prefix.")


class CacheConfig(Section):
    directory: str = Field(
        "~/.cache/maxlm/shards",
        description="Folder on a local disk for parts of sources in object stores; the processes of a host share it.",
    )
    gib: Annotated[Real, Field(gt=0)] = Field(
        32.0, description="Most that the folder holds, in GiB; what was not used for the longest time is deleted."
    )
    # Of 8 MiB a store needs some 100 ms, of which its latency is less than half; twice a block of the data's order
    # (order.BLOCK_TOKENS, 32 MiB of uint16) reads one too many.
    chunk_mib: Count = Field(8, description="Size in MiB of the parts that token files are read in.")
    read_ahead: Annotated[Integer, Field(ge=0)] = Field(16, description="Steps whose data is fetched ahead of need.")
    threads: Count = Field(8, description="Threads that fetch, in each process.")
    attempts: Count = Field(6, description="Most times that a request is sent, with growing pauses, before it fails.")
    timeout_seconds: Annotated[Real, Field(gt=0)] = Field(60.0, description="Longest time of one request, in seconds.")

    @model_validator(mode="after")
    def _check(self) -> "CacheConfig":
        if self.gib * 1024 < 4 * self.chunk_mib:
            raise ValueError(
                f"{self.gib} GiB hold fewer than 4 chunks of {self.chunk_mib} MiB; set gib to at least "
                f"{self.chunk_mib / 256:g}"
            )
        return self


class SourceConfig(Section):
    path: str = Field(description=SHARDS)
    max_epochs: Real | None = Field(
        None, gt=0, description="Most times that the source is read; null for no limit. data.exhausted says what then."
    )
    order: Literal["shuffled", "as_written"] = Field(
        "shuffled",
        description="Order of its examples: new in every epoch, or as they were written (a curriculum is prepared so; "
        "with packing bestfit, block by block of 2^24 tokens).",
    )
    fim: FimConfig | None = Field(None, description="Fill-in-the-middle: documents rearranged; null for none.")
    prefix_lm: PrefixConfig | None = Field(
        None, description="Prefix language modelling: a bidirectional prefix without loss; null for none."
    )

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        # The sentinels part a rearranged document already, and its prefix may stand behind its suffix.
        if self.fim and self.prefix_lm:
            raise ValueError(
                "fim and prefix_lm exclude each other; give each a source of its own (the path may be one)"
            )
        return self


class HeldOutConfig(Section):
    path: str = Field(description=SHARDS)
    domain: Literal["old", "new"] | None = Field(
        None,
        description="Whether it is of what the model knew before this run (old) or of what it is to learn (new), which "
        "the report compares; null for neither.",
    )


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


class DoremiConfig(Section):
    name: Literal["doremi"] = Field(
        description="doremi makes this a proxy run: domain weights against the loss of a reference (Xie et al. 2023)."
    )
    reference: str = Field(
        description="The reference: directory of a run on the same sources and tokenizer, or of one of its checkpoints."
    )
    step_size: Real = Field(1.0, gt=0, description="Growth of a domain weight's logarithm per nat of excess loss.")
    smoothing: Fraction = Field(
        1e-3, description="Share of the uniform weights in the domain weights, which keeps each above 0."
    )


class OnlineConfig(Section):
    name: Literal["online"] = Field(
        description="online changes the mixture in the run, by the loss of each source (Albalak et al. 2023)."
    )
    every_steps: Count = Field(description="Steps between changes; a multiple of logging.every_steps.")
    smoothing: Decay = Field(0.9, description="Decay of the estimates of the rewards per change.")
    floor: Real | None = Field(
        None,
        gt=0,
        description="Least share of a source that the mixture has; null for what the method explores, which falls "
        "towards 0.",
    )
    warmup_steps: Annotated[Integer, Field(ge=0)] = Field(
        0, description="First steps, in which the mixture keeps its own weights."
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
    dynamic: Annotated[DoremiConfig | OnlineConfig, Field(discriminator="name")] | None = Field(
        None, description="What finds weights of the sources while a run goes on; null for nothing."
    )
    packing: Literal["concat", "bestfit"] = Field(
        "concat",
        description="How documents fill examples: one after the other, cut where an example ends, or whole, each into "
        "the fullest example of its block that holds it. Held-out data is read as with concat.",
    )
    overlong: Literal["split", "drop"] = Field(
        "split", description="What bestfit does with a document longer than an example: cut it into parts, or drop it."
    )
    mask_documents: bool = Field(True, description="No attention across documents; positions restart.")
    validation: dict[Name, HeldOutConfig] = Field({}, description="Held-out sources by name.")
    verify: Literal["checksums", "sizes"] = Field(
        "checksums",
        description="What is checked before training: every byte against its checksum, or file sizes alone.",
    )
    cache: CacheConfig = Field(CacheConfig(), description="Where and how sources in object stores are read.")
    workers: Annotated[Integer, Field(ge=0)] = Field(0, description="Grain worker processes; 0 reads in threads.")
    prefetch: Count = Field(4, description="Batches that are read ahead.")

    @property
    def has_prefixes(self) -> bool:
        """Whether batches have `prefix`: some source's documents have a bidirectional prefix."""
        return any(source.prefix_lm is not None for source in self.sources.values())

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.packing == "bestfit" and not self.mask_documents:
            raise ValueError(
                "mask_documents must be true with packing bestfit: documents that lie in one example do not follow "
                "each other"
            )
        if self.has_prefixes and not self.mask_documents:
            raise ValueError(
                "prefix_lm needs mask_documents: true, or the prefix of one document would see that of a later one"
            )
        for stage in self.mixture:
            for name in stage.weights:
                if name not in self.sources:
                    raise ValueError(
                        f"mixture names the source '{name}', data.sources has {', '.join(sorted(self.sources))}"
                    )
            if not sum(stage.weights.values()) > 0:
                raise ValueError("mixture: at least one weight must be above 0")
            if isinstance(self.dynamic, OnlineConfig) and len(self.mixture) > 1:
                raise ValueError(
                    f"dynamic: online changes one mixture as the run goes on, found {len(self.mixture)} stages; leave "
                    "one, or take the weights of the stages as they are (dynamic: null)"
                )
            if isinstance(self.dynamic, OnlineConfig) and self.dynamic.floor is not None:
                arms = sum(weight > 0 for weight in stage.weights.values())
                if self.dynamic.floor * arms > 1:
                    raise ValueError(
                        f"dynamic.floor must be at most 1 / {arms}, the sources with a weight, found "
                        f"{self.dynamic.floor}"
                    )
        return self
