"""Everything that happened to one document, whether it was kept or dropped."""

from typing import Any

from data_prep.config import Pipeline


def find_history(config: Pipeline, document: str, source: str | None = None) -> list[dict[str, Any]]:
    """What every stage did to the documents of this id, one mapping for each source that has one; JSON values."""
    raise NotImplementedError


def print_history(found: list[dict[str, Any]]) -> None:
    raise NotImplementedError
