"""One page on a pipeline: what each stage kept and dropped, with samples to judge it by."""

from pathlib import Path

from rich.console import Console

from data_prep.config import Pipeline


def make_report(config: Pipeline, console: Console, path: Path | None = None) -> Path:
    """Write the page, and beside it the same as JSON; returns the path of the page."""
    raise NotImplementedError
