"""What occurs in benchmarks goes."""

from data_prep.documents import Part
from data_prep.stages import Run


def run(this: Run, parts: list[Part]) -> list[Part]:
    return parts
