"""Train a model of quality on the documents of a selection."""

from pathlib import Path

from data_prep.documents import Part
from data_prep.stages import Run


def run(this: Run, parts: list[Part]) -> Path:
    """Write the model to its directory, which is returned, and say how well it does on held-out documents."""
    raise NotImplementedError
