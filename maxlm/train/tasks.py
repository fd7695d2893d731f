"""Tasks of lm-eval that a run is asked while it trains: opened before it begins, answered on its own mesh."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from maxlm.config import Config
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.evaluate import task_command
from maxlm.evaluate.load import Loaded
from maxlm.evaluate.scoring import Scorer
from maxlm.evaluate.tasks import Tasks, Wanted, open_tasks, settings
from maxlm.model import decoder
from maxlm.parallel.agreement import by_first, gather, together
from maxlm.report.progress import Track


class RunTasks(NamedTuple):
    """Opened tasks, with what is asked of them."""

    tasks: Tasks
    config: Config
    mesh: Mesh
    tokenizer: Tokenizer
    scoring: nnx.GraphDef  # the model as the step computes it
    decoding: nnx.GraphDef  # and as tokens are drawn from it, on a mesh that can

    def model(self, params: dict, step: int, track: Track) -> Any:
        """lm-eval's model of a step's parameters, where they are."""
        config, rows = self.config, self.config.batch_size // self.config.train.accumulate
        scorer = Scorer(self.scoring, params, self.mesh, rows=rows, max_length=config.made_for, chunk=config.loss.chunk)
        stops = (self.tokenizer.eos_id,)
        loaded = Loaded(
            config.run_dir, config.model, config, self.decoding, params, self.tokenizer, stops, self.mesh, step
        )
        return task_command.build(loaded, rows, scorer, track)


def open_run_tasks(config: Config, mesh: Mesh, tokenizer: Tokenizer, scoring: nnx.GraphDef) -> RunTasks | None:
    """The tasks of `eval.tasks`, None without; all processes call this and see the same.

    Raises `ConfigError` and `DataError` as `open_tasks` does, and where the mesh cannot draw the words that a task
    wants.
    """
    if (section := config.eval.tasks) is None:
        return None
    wanted = Wanted(section.names, section.folder, section.shots, section.limit)
    # Data sets leave files on the disk when they are read first: one process makes them, the others find them.
    first = by_first(lambda: open_tasks(wanted))
    with together():
        tasks = first or open_tasks(wanted)
        _check(tasks, config, mesh)
    mine = json.dumps({name: settings(tasks, name, {}) for name in tasks.tasks}, sort_keys=True)
    told = gather(mine)
    with together():
        if told[0] != mine:
            raise ConfigError("eval.tasks: the tasks are not those of process 0; give all processes the same files")
    return RunTasks(tasks, config, mesh, tokenizer, scoring, _decoding(config, mesh, scoring))


def _check(tasks: Tasks, config: Config, mesh: Mesh) -> None:
    split = {f"mesh.{name}": mesh.shape[name] for name in ("pipeline", "context") if mesh.shape[name] > 1}
    if tasks.generating and split:
        found = ", ".join(f"{name} = {size}" for name, size in split.items())
        raise ConfigError(
            f"eval.tasks: {', '.join(tasks.generating)} want words, which cannot be drawn on a mesh with {found}; "
            f"leave them out, and ask them of its checkpoints: maxlm eval {config.run_dir} --tasks "
            f"{','.join(tasks.generating)}"
        )
    from maxlm.evaluate.harness import room_for

    for name in tasks.generating:
        room_for(_generation(tasks.tasks[name]), name, config.made_for)


def _generation(task: Any) -> Mapping[str, Any]:
    return task.config.generation_kwargs or {}


def _decoding(config: Config, mesh: Mesh, scoring: nnx.GraphDef) -> nnx.GraphDef:
    """Tokens come one at a time: the residual stream is not split along the sequence, and nothing is recomputed."""
    if mesh.shape["pipeline"] > 1:
        return scoring
    device, precision = mesh.devices.flat[0], config.precision
    computed = precision.compute
    if computed == "auto":
        computed = "float32" if device.platform == "cpu" else "bfloat16"
    options = {"params_dtype": jnp.dtype(precision.params), "dtype": jnp.dtype(computed)}
    return decoder.abstract(config.model, **options, platform=device.platform, device_kind=device.device_kind)[0]
