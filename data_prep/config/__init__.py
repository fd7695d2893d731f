"""The configuration of a preparation pipeline: frozen pydantic models, one named section per stage.

    pipeline = load("configs/prep/quickstart.yaml", ["ingest.sources.stdlib.path=/usr/lib/python3.11"], Pipeline)

A section that is absent (null) is a stage that does not run. Sections rather than a list, so that every value can be
overridden by its dotted key.
"""

# ruff: noqa: F401
from data_prep.config.decontaminate import DecontaminateConfig
from data_prep.config.dedup import (
    DedupConfig,
    FuzzyConfig,
    LinesConfig,
    ParagraphsConfig,
    ShinglesConfig,
    SubstringsConfig,
)
from data_prep.config.extract import ExtractConfig, ResiliparseConfig, TrafilaturaConfig
from data_prep.config.ingest import IngestConfig, SourceConfig
from data_prep.config.language import LanguageConfig
from data_prep.config.mix import MixConfig, UpsampleConfig
from data_prep.config.pipeline import VALIDATION_SUFFIX, Pipeline, Selection, ValidationConfig
from data_prep.config.privacy import PrivacyConfig
from data_prep.config.quality import JoinConfig, QualityConfig, ScoreLimit, ScorerConfig
from data_prep.config.quality_model import ClassifierTraining, QualityModel
from data_prep.config.rules import RulesConfig
from data_prep.config.select import SelectConfig
from data_prep.config.shards import OrderConfig, ShardsConfig
from data_prep.config.synthesis import Synthesis
from data_prep.config.tokenizer import TokenizerConfig
