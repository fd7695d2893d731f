"""What a run writes down: metrics.jsonl, eval.jsonl, events.jsonl and TensorBoard files in its run directory.

One line is one JSON object. Numbers read back to the same bits; a value that is not finite is written as null and
its key named in `nonfinite` (nested keys with a dot: "loss_by_source.web"). Every line goes out in one unbuffered
write, so a killed process loses nothing that was logged, and `flush` makes it survive the machine as well.

    with MetricsWriter(run_dir, tensorboard=True, resume_step=None) as metrics:
        metrics.log_event("started", 0, devices=8)
        metrics.log({"step": 10, "tokens": 655360, "loss": 9.8, "loss_by_source": {"web": 9.7, "code": 9.9}})
        metrics.log_eval({"step": 10, "source": "web", "loss": 9.9, "bits_per_byte": 3.1})
        metrics.flush()

A line of eval.jsonl is of a held-out `source`, as above, or of a `task`, whose figures are in `metrics`, their standard
errors in `stderr`, and what makes them comparable in `settings`. Where it is not the parameters that were measured but
an average of them, `weights` says which: "ema".

metrics.jsonl and eval.jsonl follow the state of the run: resuming from a checkpoint, or rewinding to one, drops the
lines after its step. events.jsonl is history and keeps everything.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from maxlm.errors import DataError, SaveError
from maxlm.saved import sync_directory

METRICS, EVAL, EVENTS = "metrics.jsonl", "eval.jsonl", "events.jsonl"
TENSORBOARD, OUTSIDE = "tensorboard", "evaluated"  # the second a folder in the first, of what commands measured
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class MetricsWriter:
    """Appends to the files of one run directory; `resume_step` is the step of the restored checkpoint, or None.

    None means a new run: raises `DataError` when the directory already holds lines. A number keeps the lines of
    metrics.jsonl and eval.jsonl with step <= resume_step, and drops what a crash left of a last line; -1 starts over
    in the directory of a run that never reached a checkpoint. One that does not `write` touches no file: of the
    processes of a run, all call and one writes.
    """

    def __init__(self, run_dir: str | Path, tensorboard: bool, resume_step: int | None, write: bool = True):
        self.run_dir = Path(run_dir)
        self._tensorboard = tensorboard
        self._write = write
        self._files, self._summary = {}, None
        if not write:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            self._refuse_earlier_lines()
        else:
            _keep(self.run_dir / EVENTS, lambda line: True)
            self._truncate(resume_step)
        self._open(resume_step)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one training step to metrics.jsonl; `line` has an int `step`.

        Values are Python, numpy or JAX scalars, strings, None, and lists and dictionaries of them; anything else
        is a TypeError that names the key.
        """
        plain = self._append(METRICS, line)
        for key, value in plain.items():
            if isinstance(value, dict):
                _draw(self._summary, key, value, plain["step"])
        _draw(self._summary, "train", plain, plain["step"])

    def log_eval(self, line: Mapping[str, Any]) -> None:
        """Append the result of one held-out `source` or one `task` to eval.jsonl; `line` has an int `step`."""
        _draw_eval(self._summary, self._append(EVAL, line))

    def log_event(self, kind: str, step: int, **fields: Any) -> None:
        """Append something that happened to events.jsonl, with the UTC time."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._append(EVENTS, {"time": time, "kind": kind, "step": step, **fields})

    def flush(self) -> None:
        """Force everything to disk; called before a checkpoint starts, so that no checkpoint outlives its metrics."""
        for name, file in self._files.items():
            _sync(self.run_dir / name, file)
        if self._summary:
            self._summary.flush()

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl and eval.jsonl after `step`, because training goes back to it."""
        if not self._write:
            return
        self.close()
        self._truncate(step)
        self._open(step)

    def close(self) -> None:
        self.flush()
        for file in self._files.values():
            os.close(file)
        self._files = {}
        if self._summary:
            self._summary.close()
            self._summary = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refuse_earlier_lines(self) -> None:
        for name in (METRICS, EVAL, EVENTS):
            path = self.run_dir / name
            if path.exists() and path.stat().st_size:
                raise DataError(f"{path}: holds lines of an earlier run; choose another name or remove {self.run_dir}")

    def _truncate(self, step: int) -> None:
        for name in (METRICS, EVAL):
            _keep(self.run_dir / name, lambda line: line["step"] <= step)

    def _open(self, resume_step: int | None) -> None:
        # Descriptors rather than buffered files: a line is one system call, whole for readers of the live file.
        self._files = {name: os.open(self.run_dir / name, APPEND, 0o666) for name in (METRICS, EVAL, EVENTS)}
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            purge_step = None if resume_step is None else resume_step + 1
            self._summary = SummaryWriter(str(self.run_dir / TENSORBOARD), purge_step=purge_step)

    def _append(self, name: str, line: Mapping[str, Any]) -> dict[str, Any]:
        """Write one line; returns it as plain Python values."""
        plain, data = _encode(line)
        if self._write:
            _write(self.run_dir / name, self._files[name], data)
        return plain


def append_eval(run_dir: str | Path, line: Mapping[str, Any], tensorboard: bool, name: str = EVAL) -> None:
    """Append a line to eval.jsonl (or to another file of the directory) from outside the run, which may be writing
    there at the same time; it is on disk when this returns. Raises `SaveError` where it cannot be written.

    TensorBoard follows the newest file of a folder alone: what is measured outside has a folder of its own, so that
    the curves of a run under way go on.
    """
    path = Path(run_dir) / name
    plain, data = _encode(line)
    try:
        _mend(path)
        file = os.open(path, APPEND, 0o666)
    except OSError as error:
        raise SaveError(f"{path}: cannot be written ({error})") from None
    try:
        _write(path, file, data)
        _sync(path, file)
    finally:
        os.close(file)
    if tensorboard:
        from tensorboardX import SummaryWriter

        with SummaryWriter(str(Path(run_dir) / TENSORBOARD / OUTSIDE)) as summary:
            _draw_eval(summary, plain)


def _encode(line: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A line as plain Python values, and as the bytes of a file."""
    nonfinite: list[str] = []
    plain = _plain("", line, nonfinite)
    if type(plain.get("step")) is not int:
        raise TypeError(f"step: expected an int, found {plain.get('step')!r}")
    return plain, json.dumps(plain | ({"nonfinite": nonfinite} if nonfinite else {}), allow_nan=False).encode() + b"\n"


def _write(path: Path, file: int, data: bytes) -> None:
    try:
        written = os.write(file, data)
    except OSError as error:
        raise SaveError(f"{path}: cannot be written ({error})") from None
    if written != len(data):
        raise SaveError(f"{path}: cannot be written (the disk took {written} of {len(data)} bytes)")


def _sync(path: Path, file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        raise SaveError(f"{path}: cannot be written ({error})") from None


def _draw_eval(summary: Any, line: Mapping[str, Any]) -> None:
    kind, values = ("task", line.get("metrics") or {}) if "task" in line else ("eval", line)
    weights = f" ({line['weights']})" if "weights" in line else ""
    _draw(summary, f"{kind}/{line.get(kind, line.get('source', 'all'))}{weights}", values, line["step"])


def _draw(summary: Any, prefix: str, values: Mapping[str, Any], step: int) -> None:
    """Give the numbers of `values` to TensorBoard, where there is one (`summary` is not None)."""
    if summary is None:
        return
    from tensorboardX.proto.summary_pb2 import Summary

    # Not add_scalar, which makes underscores of spaces and brackets.
    found = [(key, value) for key, value in values.items() if isinstance(value, int | float) and key != "step"]
    scalars = [Summary.Value(tag=f"{prefix}/{key}", simple_value=value) for key, value in found]
    summary.file_writer.add_summary(Summary(value=scalars), step)


class Goodput:
    """Share of the wall time since `began` that was spent in training steps that count; seconds of one clock."""

    def __init__(self, began: float):
        self.began = began
        self.seconds = 0.0

    def productive(self, seconds: float) -> None:
        self.seconds += seconds

    def ratio(self, now: float) -> float:
        return self.seconds / max(now - self.began, self.seconds) if self.seconds else 0.0


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file of a run, without the last one where it is only partly written.

    A missing file has no lines. Raises `DataError` naming a damaged line before the last.
    """
    return [line for line, _ in _complete_lines(Path(path))]


def _complete_lines(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every complete line as its object and its bytes, newline included."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        damaged = None
        for number, data in enumerate(file, 1):
            if damaged:
                raise DataError(f"{path}: line {damaged} is not a JSON object; restore the file or remove that line")
            try:
                line = json.loads(data)
            except ValueError:
                line = None
            if isinstance(line, dict):
                yield line, data if data.endswith(b"\n") else data + b"\n"
            else:
                damaged = number


def _mend(path: Path) -> None:
    """Complete or drop what a killed writer left of a last line; in place, since a run under way has the file open."""
    if not path.exists() or not path.stat().st_size:
        return
    with open(path, "r+b") as file:
        *_, last = file
        if last.endswith(b"\n"):
            return
        try:
            json.loads(last)
        except ValueError:
            file.truncate(file.tell() - len(last))
        else:
            file.write(b"\n")


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a .jsonl file with its complete, wanted lines; atomically, so a crash leaves the old or the new."""
    if not path.exists():
        return
    new = path.with_suffix(".new")
    try:
        with open(new, "wb") as file:
            file.writelines(data for line, data in _complete_lines(path) if wanted(line))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        sync_directory(path.parent)
    except OSError as error:
        raise SaveError(f"{path}: cannot be rewritten ({error})") from None


def _plain(key: str, value: Any, nonfinite: list[str]) -> Any:
    """`value` as what JSON can hold; keys of values that are not finite are added to `nonfinite`."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        # A numpy or JAX scalar, known by its shape so that neither is imported; the conversion is exact.
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        nonfinite.append(key)
        return None
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(f"{key}.{name}" if key else name, inner, nonfinite) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{key}.{index}", inner, nonfinite) for index, inner in enumerate(value)]
    raise TypeError(f"{key or 'line'}: expected a scalar, found {type(value).__name__}")
