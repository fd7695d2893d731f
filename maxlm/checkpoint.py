"""Checkpoints of a run through Orbax: asynchronous, atomic, and readable on any mesh.

`checkpoints/STEP/` holds four items, or five. Their layout is that of the parameters' nested dictionary and of optax's
state, never of the mesh, and each can be read without the others:

    params      parameters; a layer's arrays have a leading axis over the repeats of the layer pattern
    ema         with optimizer.ema the average of the parameters, in float32, as `params` is laid out
    optimizer   moments
    counters    the window of the spike test, the sums since the last line of the metrics, and of a proxy run its domain
                weights (the other runs have no such entry)
    run         JSON: step, tokens, target_tokens, loader state, rewinds, configuration, manifests and how much
                text they stand for, tokenizer, of a proxy run its reference, where it began with the parameters of
                another model, which one (`init`: path, step, sha256), of a branch where it was taken
                from, and with an average the updates in it

A directory appears under its final name when everything in it is on disk, so a killed save leaves the checkpoints
before it as they were.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from maxlm.config import CheckpointConfig
from maxlm.errors import ConfigError, DataError, SaveError
from maxlm.parallel.agreement import by_first, gather, together, wait_until
from maxlm.saved import DIRECTORY, FORMAT_VERSION, finished, read_run, read_training

ITEMS = ("params", "ema", "optimizer", "counters", "run")
# Most of an array that is stored, and read, together. A layer's parameters are stored apart, an expert's too: an export
# reads them one after the other, on machines that hold no more.
CHUNK_BYTES = 2**23
SHARED_SECONDS = 60  # until a network disk shows everywhere what one process has made


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: the training loop asks jax, which needs to be asked once a step with numbers that only grow."""
        return False


class Checkpoints:
    """The checkpoints of one run directory; a context manager that waits for the save in progress."""

    def __init__(self, run_dir: str | Path, config: CheckpointConfig):
        self.directory = Path(run_dir).resolve() / DIRECTORY
        self.keep_every_steps = config.keep_every_steps
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep, keep_period=config.keep_every_steps, cleanup_tmp_directories=True
        )
        by_first(self._make_directory)
        with together():
            if not wait_until(self.directory.is_dir, SHARED_SECONDS):
                raise ConfigError(
                    f"{self.directory}: made by process 0 and not seen here; runs_dir must be on a disk that all hosts "
                    "share, under one path"
                )
        try:
            self._manager = _Manager(self.directory, options=options, item_names=ITEMS)
        except OSError as error:
            raise self._unwritable(error) from None
        with together():
            if (first := json.loads(gather(json.dumps(self.steps()))[0])) != self.steps():
                raise DataError(f"{self.directory}: process 0 sees the checkpoints {first}, this one {self.steps()}")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.wait()
        except SaveError:
            if kind is None:
                raise
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, params: Any, axes: Any, optimizer: Any, counters: Any, run: dict, average: Any = None
    ) -> None:
        """Start saving; returns when the arrays are copied from the devices, before they are on disk.

        `axes` has the logical axes of the parameters; `average` is theirs, if there is one.
        """
        apart = jax.tree.map(lambda _, names: _stored_apart(names), params, axes)
        items = {
            "params": ocp.args.PyTreeSave(params, save_args=apart),
            "optimizer": ocp.args.PyTreeSave(optimizer),
            "counters": ocp.args.PyTreeSave(counters),
            "run": ocp.args.JsonSave({"version": FORMAT_VERSION} | run),
        }
        if average is not None:
            items["ema"] = ocp.args.PyTreeSave(average, save_args=apart)
        self._check_room((params, average, optimizer, counters))
        self._guard(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True))

    def wait(self) -> None:
        """Wait until the save in progress is on disk; raises `SaveError` when it could not be written."""
        self._guard(self._manager.wait_until_finished)

    def check(self) -> None:
        """Raise `SaveError` when a save has failed in the background."""
        self._guard(self._manager.check_for_errors)

    def restore_newest(
        self, abstract: Callable[[dict], dict[str, Any]], report: Callable[[str], None]
    ) -> tuple[dict[str, Any], dict] | None:
        """The newest checkpoint that can be read, after reporting those that cannot; None where there is none.

        Returns: arrays of the items that `abstract` makes of the run's JSON (trees of ShapeDtypeStruct with
        shardings), and the run's JSON.
        """
        steps = self.steps()
        if not steps:
            return None
        found = restore_last(self.directory, steps, abstract, report)
        self._set_aside([step for step in steps if step > int(found[1]["step"])])
        return found

    def _set_aside(self, steps: list[int]) -> None:
        """Rename damaged checkpoints to STEP.damaged, since the run will come to their steps again."""
        if not steps:
            return

        def rename() -> None:
            for step in steps:
                (self.directory / str(step)).rename(self.directory / f"{step}.damaged")

        by_first(rename)
        with together():
            if not wait_until(lambda: not set(steps) & set(finished(self.directory)), SHARED_SECONDS):
                raise DataError(
                    f"{self.directory}: damaged checkpoints renamed by process 0 still have their names here"
                )
        self._manager.reload()

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> SaveError:
        return SaveError(f"{self.directory}: cannot be written ({error})")

    def _check_room(self, arrays: Any) -> None:
        """Refuse a save that cannot fit, all processes' parts together, before anything is written."""
        shards = [part for array in jax.tree.leaves(arrays) for part in array.addressable_shards if not part.replica_id]
        needed = sum(map(int, gather(str(sum(part.data.nbytes for part in shards)))))
        by_first(lambda: self._refuse_above(needed, shutil.disk_usage(self.directory).free))

    def _refuse_above(self, needed: int, free: int) -> None:
        if needed > free:
            raise SaveError(
                f"{self.directory}: a checkpoint of {needed / 2**30:.2f} GiB does not fit, {free / 2**30:.2f} GiB are "
                f"free; {self._before()}; free some space and start the same command again"
            )

    def _before(self) -> str:
        steps = finished(self.directory)
        return f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no earlier checkpoint"

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # Orbax passes on what its threads and TensorStore raised, of many types
            reason = " ".join(str(error).split())[:300]
            message = f"{self.directory}: a checkpoint could not be written ({reason}); {self._before()}"
            raise SaveError(message) from error


def _stored_apart(axes: tuple[str | None, ...]) -> ocp.SaveArgs:
    apart = tuple(number for number, name in enumerate(axes) if name in ("layers", "experts"))
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=apart)


def restore_last(
    directory: Path, steps: Sequence[int], abstract: Callable[[dict], dict[str, Any]], report: Callable[[str], None]
) -> tuple[dict[str, Any], dict]:
    """The last of some checkpoints, ascending, that can be read; those that cannot are reported, and stay as they are.

    Returns what `Checkpoints.restore_newest` does; raises `DataError` where none can be read.
    """
    for step in reversed(steps):
        try:
            with together():  # a process reads its own part: what one cannot read is damaged for all
                return restore(directory / str(step), abstract(read_training(directory / str(step))))
        except DataError as error:
            if len(steps) == 1:
                raise
            report(f"{error}; trying the one before")
    with together():
        raise DataError(f"{directory}: none of its {len(steps)} checkpoints can be read")


def restore(directory: Path, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict]:
    """Items of one checkpoint directory, and the run's JSON; raises `DataError` naming it when it is damaged.

    With several processes each reads what its devices need and waits for no other, so one may fail alone.
    """
    run = read_run(directory)
    here = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    arguments = {
        name: ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
        for name, tree in abstract.items()
    }
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=here) as reader:
            found = reader.restore(directory, args=ocp.args.Composite(**arguments))
    except Exception as error:  # whatever a damaged file makes TensorStore raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{directory}: the checkpoint is damaged or incomplete ({reason})") from None
    return {name: found[name] for name in abstract}, run
