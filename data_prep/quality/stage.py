"""Quality by models: scores of every document, found once as columns; then a choice by them."""

from data_prep.config import Selection
from data_prep.documents import Part
from data_prep.stages import Run


def run(this: Run, parts: list[Part]) -> list[Part]:
    if this.config.quality is None:
        return parts
    raise NotImplementedError


def check(config: Selection) -> None:
    """The models are there, and can be read."""
