"""What a run directory says of its checkpoints without reading an array: their names, and each one's JSON.

Nothing of jax is imported, so that a command that only looks answers at once.
"""

import json
from pathlib import Path
from typing import Any

from maxlm.errors import DataError

DIRECTORY = "checkpoints"
FORMAT_VERSION = 1
RUN_JSON = "run/metadata"  # where Orbax writes a JSON item that is called `run`


def finished(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a run's `checkpoints`, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def latest(run_dir: Path) -> Path | None:
    """Directory of the newest finished checkpoint of a run."""
    steps = finished(run_dir / DIRECTORY)
    return run_dir / DIRECTORY / str(steps[-1]) if steps else None


def named(path: Path) -> Path | None:
    """The checkpoint that a path names: itself, or the newest one of a run directory.

    Returns None for a directory without a checkpoint; raises `DataError` where there is no directory.
    """
    path = path.resolve()
    if not path.is_dir():
        raise DataError(f"{path}: no such directory; expected a run directory or one of its checkpoints")
    return path if path.parent.name == DIRECTORY else latest(path)


def read_run(directory: Path) -> dict[str, Any]:
    """The run's JSON in one checkpoint; raises `DataError` naming the checkpoint where it is damaged."""
    try:
        run = json.loads((directory / RUN_JSON).read_bytes())
        version = run.get("version")
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{directory}: the checkpoint is damaged or incomplete ({reason})") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{directory}: has format version {version}, this program reads {FORMAT_VERSION}")
    return run
