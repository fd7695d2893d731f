"""The configuration of a preparation pipeline: named sections, one per stage."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from data_prep.config.decontaminate import DecontaminateConfig
from data_prep.config.dedup import DedupConfig
from data_prep.config.extract import ExtractConfig
from data_prep.config.ingest import IngestConfig
from data_prep.config.language import LanguageConfig
from data_prep.config.mix import MixConfig
from data_prep.config.privacy import PrivacyConfig
from data_prep.config.quality import QualityConfig
from data_prep.config.rules import RulesConfig
from data_prep.config.shards import ShardsConfig
from data_prep.config.tokenizer import TokenizerConfig
from maxlm.config import Count, Name, Section

VALIDATION_SUFFIX = "-val"
SelectingStage = Literal[
    "language",
    "exact",
    "rules",
    "fuzzy",
    "lines",
    "substrings",
    "decontaminate",
    "quality",
    "privacy",
    "limit",
]


class ValidationConfig(Section):
    fraction: float = Field(
        gt=0,
        lt=1,
        description="Share of the documents that is held out, chosen by a hash of the document's id; with "
        "dedup.fuzzy.drop false by that of its cluster, which is held out whole.",
    )


class Selection(Section):
    """What a pipeline reads, and what it keeps of that."""

    name: Name = Field(description="Name of the pipeline; its intermediate results lie in output/.work/name.")
    output: str = Field("prepared", description="Directory that gets one directory of shards per source and split.")
    work_dir: str | None = Field(None, description="Directory of the intermediate results; null for output/.work/name.")
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = Field(
        0, description="Seed of the order of the documents."
    )
    workers: Count | None = Field(
        None,
        description="Worker processes, on a cluster tasks at a time; null for one per processor. Each needs the memory "
        "that ingest.shard_bytes says, up to 1.2 GB with its default.",
    )
    order: list[SelectingStage] = Field(
        list(get_args(SelectingStage)),
        description="Order of the stages between ingest and tokenizer, every one of them named; a stage without its "
        "section does nothing. FineWeb-2 removes duplicates before it applies rules.",
    )
    ingest: IngestConfig = Field(description="Read raw files into intermediate shards of text.")
    extract: ExtractConfig = Field(
        ExtractConfig(),
        description="Turn HTML pages into text while they are read, in sources of the kinds warc and html.",
    )
    language: LanguageConfig | None = Field(None, description="Find each document's language and script.")
    rules: RulesConfig | None = Field(None, description="Remove lines and documents by rules of quality.")
    dedup: DedupConfig | None = Field(None, description="Remove duplicates across all sources.")
    decontaminate: DecontaminateConfig | None = Field(None, description="Remove what occurs in benchmarks.")
    quality: QualityConfig | None = Field(None, description="Score documents by models, and select by the scores.")
    privacy: PrivacyConfig | None = Field(
        None,
        description="Mask personal data and secrets in what is written for training, ids and addresses among it. The "
        "work directory keeps the text as it was read, and fingerprints are hashes of that text.",
    )

    @property
    def work(self) -> Path:
        return Path(self.work_dir) if self.work_dir is not None else Path(self.output) / ".work" / self.name

    @model_validator(mode="after")
    def _check_order(self) -> "Selection":
        if sorted(self.order) != sorted(stages := get_args(SelectingStage)):
            raise ValueError(f"order must name every stage once: {', '.join(stages)}; found {', '.join(self.order)}")
        return self


class Pipeline(Selection):
    """From raw files to the shards that training reads."""

    validation: ValidationConfig | None = Field(None, description="Hold documents out of training.")
    tokenizer: TokenizerConfig = Field(description="Train or take a tokenizer.")
    mix: MixConfig | None = Field(
        None, description="Choose how many tokens of each source there are; null for all documents, once."
    )
    shards: ShardsConfig = Field(
        ShardsConfig(), description="Tokenize, shuffle and write the shards that training reads."
    )

    @property
    def validation_fraction(self) -> float:
        return self.validation.fraction if self.validation else 0.0

    @model_validator(mode="after")
    def _check_names(self) -> "Pipeline":
        for name in self.ingest.sources:
            if self.validation and name + VALIDATION_SUFFIX in self.ingest.sources:
                raise ValueError(
                    f"the source '{name + VALIDATION_SUFFIX}' and the held-out documents of '{name}' would share one "
                    "directory; rename the source"
                )
        names = [name + end for name in self.ingest.sources for end in ("", VALIDATION_SUFFIX)]
        written = {Path(self.output, name).resolve() for name in names}
        for source in self.ingest.sources.values():
            for path in source.paths if source.kind == "shards" else ():
                if Path(path).resolve() in written:
                    raise ValueError(f"{path} is read as a source and would be replaced; set another output")
        return self

    @model_validator(mode="after")
    def _check_mix(self) -> "Pipeline":
        sources = list(self.ingest.sources)
        if self.mix is not None:
            self.mix.check_sources(sources)
        for name in (self.shards.order and self.shards.order.sources) or ():
            if name not in sources:
                raise ValueError(f"shards.order.sources names '{name}', ingest.sources has {', '.join(sources)}")
        return self
