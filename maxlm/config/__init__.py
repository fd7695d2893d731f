"""The whole configuration of a run: frozen pydantic models, and the one way to load them.

Precedence, lowest first: the files named in `extends` (in order), the file itself, `key=value` overrides.
Dictionaries merge key by key, lists are replaced whole. Loading reads YAML files and nothing else.

    config = load("configs/runs/quickstart.yaml", ["train.batch_tokens=8192"])
"""

# ruff: noqa: F401
from maxlm.config.data import (
    CacheConfig,
    DataConfig,
    DoremiConfig,
    FimConfig,
    HeldOutConfig,
    OnlineConfig,
    PrefixConfig,
    SourceConfig,
    StageConfig,
)
from maxlm.config.files import as_yaml, json_schema, load, read, to_yaml, validate
from maxlm.config.model import LatentConfig, ModelConfig, MoeConfig
from maxlm.config.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    Scaling,
    YarnScaling,
)
from maxlm.config.section import Count, Fraction, Integer, Name, Real, Section
from maxlm.config.sections import (
    SAVEABLE,
    CheckpointConfig,
    CompilerConfig,
    Config,
    EvalConfig,
    FaultsConfig,
    HardwareConfig,
    InitConfig,
    KernelsConfig,
    LoggingConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ParallelConfig,
    PipelineConfig,
    ProcessesConfig,
    RematConfig,
    ScheduleConfig,
)
