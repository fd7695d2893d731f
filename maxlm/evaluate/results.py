"""Results that a command appends to the eval.jsonl of what it measured, and finds there again.

A line is written as soon as its task is finished, so a command that is killed and started again measures what is left.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maxlm import saved
from maxlm.convert.folder import is_folder
from maxlm.errors import SaveError
from maxlm.evaluate.load import Source
from maxlm.report.metrics import EVAL, TENSORBOARD, append_eval, read_lines
from maxlm.saved import PARAMS


class Place(NamedTuple):
    """What is measured, and where its results go."""

    step: int
    tokens: int
    where: Path | None  # a directory with an eval.jsonl, or a file; None for nowhere
    weights: str | None = None  # "ema" for an average of the parameters

    @property
    def head(self) -> dict[str, Any]:
        """What every line begins with."""
        return {"step": self.step, "tokens": self.tokens} | ({"weights": self.weights} if self.weights else {})

    def finished(self, task: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        return None if self.where is None else finished(self.where, self.step, task, settings, self.weights)

    def append(self, line: Mapping[str, Any]) -> None:
        if self.where is not None:
            append(self.where, line)


def place_of(source: Source, file: Path | None) -> Place:
    """The directory of the run or imported model, or the file where one is named; a Hugging Face folder takes none."""
    if is_folder(source.path):
        return Place(0, 0, file)
    found = saved.find(source.path)
    weights = None if source.weights == PARAMS else source.weights
    return Place(source.step, int(found.run.get("tokens", 0)), file or found.directory.parents[1], weights)


def append(where: Path, line: Mapping[str, Any]) -> None:
    """Append a result to the eval.jsonl of a directory, or to a file itself, and wait until it is on the disk.

    It goes to TensorBoard too where the directory has its files.

    Args:
        line: as `MetricsWriter.log_eval` takes it.
    """
    file = _file(where)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"{file.parent}: cannot be made ({error})") from None
    append_eval(file.parent, line, (file.parent / TENSORBOARD).is_dir(), file.name)


def finished(
    where: Path, step: int, task: str, settings: Mapping[str, Any], weights: str | None = None
) -> dict[str, Any] | None:
    """The newest line of a task that was measured at this step with exactly these settings; None where there is none.

    Raises `DataError` where the file holds a damaged line.
    """
    wanted = {"step": step, "task": task, "settings": dict(settings), "weights": weights}
    lines = [line for line in read_lines(_file(where)) if all(line.get(key) == wanted[key] for key in wanted)]
    return lines[-1] if lines else None


def _file(where: Path) -> Path:
    return where / EVAL if where.is_dir() else where
