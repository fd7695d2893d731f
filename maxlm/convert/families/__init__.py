"""Families of models as Hugging Face writes them: one table each, read in both directions."""

from typing import Any

from maxlm.config import ModelConfig
from maxlm.convert.links import Link


def read_config(config: dict[str, Any], where: str) -> tuple[str, ModelConfig]:
    """The family (their model_type) and the model that a config.json describes; `where` names it in messages.

    Raises `ConfigError` for a family that has no table, a key that no table knows, and a value that our decoder cannot
    honour: nothing that changes the mathematics is passed over.
    """
    raise NotImplementedError


def write_config(model: ModelConfig, family: str | None = None) -> tuple[str, dict[str, Any]]:
    """The family, by default the first that can express the model, and its config.json.

    Raises `ConfigError` that names what no family (or not the one given) can express.
    """
    raise NotImplementedError


def links(family: str, model: ModelConfig) -> list[Link]:
    """Every tensor of a model's files, embeddings first, then layer by layer; together they cover all parameters."""
    raise NotImplementedError
