"""Ask a server for new documents made from old ones, and keep those that are good."""

from rich.console import Console

from data_prep.config import Synthesis


def synthesize(config: Synthesis, console: Console) -> None:
    """Ask for what is missing; what is answered is on disk and is not asked, or paid, again."""
    raise NotImplementedError
