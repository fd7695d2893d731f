"""What a run directory says of its checkpoints without reading an array: their names, and each one's JSON.

The directory of an imported model holds one checkpoint, of parameters alone. Its JSON has in place of the run's
configuration, manifests and loader state

    model      the model section of a configuration
    family     the table of maxlm.convert by which it was imported
    token_ids  what its config.json says of bos_token_id, eos_token_id and pad_token_id
    stop_ids   tokens that end a text, the end of a document first
    tokenizer  as in a run; null where the model came without one that can be read

That of an average of checkpoints likewise. Its JSON is that of the last of them without the loader state, and has

    averaged   the run's directory, and the steps whose parameters' mean it holds

That of a branch has in all its checkpoints

    forked     from (the run's directory), from_step, parent (its name, and a hash of the checkpoint's JSON), and the
               changes of the configuration that were recorded

Nothing of jax is imported, so that a command that only looks answers at once.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.config import Config, ModelConfig, validate
from maxlm.errors import ConfigError, DataError

DIRECTORY = "checkpoints"
FORMAT_VERSION = 1
EMA_UPDATES = "ema_updates"  # in that JSON: the updates in the average of the parameters, where a run keeps one
PARAMS, EMA = "params", "ema"  # items of a checkpoint: parameters, and the average of them
RUN_JSON = "run/metadata"  # where Orbax writes a JSON item that is called `run`
TOKENIZER = "tokenizer"  # folder of a run directory


class Saved(NamedTuple):
    """A checkpoint without its arrays."""

    directory: Path
    run: dict[str, Any]  # its JSON
    model: ModelConfig
    config: Config | None  # None of an imported model

    @property
    def tokenizer_dir(self) -> Path:
        return self.directory.parents[1] / TOKENIZER

    def check_weights(self, weights: str) -> None:
        """Raise `ConfigError` where the checkpoint has no such parameters: PARAMS, or EMA."""
        if weights == EMA and EMA_UPDATES not in self.run:
            raise ConfigError(
                f"{self.directory}: holds no average of the parameters, which a run keeps with optimizer.ema; choose "
                "the weights params"
            )

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, the end of a document first."""
        tokenizer = self.run["tokenizer"]
        return tuple(self.run.get("stop_ids", () if tokenizer is None else (tokenizer["eos_id"],)))


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


def read_training(directory: Path) -> dict[str, Any]:
    """`read_run` for what needs a run that was trained; raises `ConfigError` for an imported model and an average."""
    run = read_run(directory)
    if "config" not in run:
        raise ConfigError(
            f"{directory}: an imported model, which has no data and no training; expected a run of maxlm train"
        )
    if "averaged" in run:
        raise ConfigError(
            f"{directory}: an average of checkpoints of {run['averaged']['run']}, which has parameters and no moments "
            "to go on with; expected a run of maxlm train"
        )
    return run


def find(path: str | Path) -> Saved:
    """The newest checkpoint of a run directory, or the checkpoint of its directory; `DataError` where there is none."""
    if (directory := named(Path(path))) is None:
        raise DataError(f"{path}: holds no checkpoint; expected a run directory or one of its checkpoints")
    run = read_run(directory)
    if "config" in run:
        config = validate(run["config"], Config, f"{directory}: its configuration")
        return Saved(directory, run, config.model, config)
    if "model" not in run:
        raise DataError(f"{directory}: the checkpoint is damaged or incomplete (it says of no model)")
    return Saved(directory, run, validate(run["model"], ModelConfig, f"{directory}: its model"), None)


def sync_directory(directory: Path) -> None:
    """Make what was renamed or made in `directory` survive a crash of the machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
