"""What `maxlm eval --tasks` does with a path: results are lines of the run's eval.jsonl, one as soon as it is there."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from maxlm.evaluate import results
from maxlm.evaluate.load import Loaded, find_source, load_source
from maxlm.evaluate.placing import named_mesh
from maxlm.evaluate.scoring import Scorer
from maxlm.evaluate.tasks import Tasks, aggregate, evaluate_task, settings
from maxlm.parallel import runtime
from maxlm.parallel.sharding import RULES
from maxlm.report.progress import Track, track, untracked

BATCH_PER_DEVICE = 8  # texts of full length
LONGEST = 2048  # tokens that are read at a time, where no model says for how many it is made; as lm-eval's


def evaluate_tasks(
    path: Path,
    tasks: Tasks,
    *,
    mesh: str | None,
    batch: int | None,
    file: Path | None,
    again: bool,
    weights: str,
    report: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Lines of eval.jsonl by task, then by group, as they were written; those that were there are not measured again.

    Args:
        mesh: as in data=2,tensor=4; None for all devices along `fsdp`.
        batch: texts of full length at a time; None for `BATCH_PER_DEVICE` on every device.
        file: where lines go in place of the run's own eval.jsonl.
        again: measure what is finished too.
        weights: params, or ema for the average of them that a run kept.
        report: told what was found finished, and what was cut.
    """
    runtime.setup()
    source = find_source(path, weights)
    place = results.place_of(source, file)
    loaded = load_source(source, mesh=named_mesh(mesh, jax.devices()) if mesh else None)
    model = build(loaded, batch, track=track)
    read = described(model, tasks)
    lines: dict[str, dict[str, Any]] = {}
    for name in tasks.tasks:
        if not again and (found := place.finished(name, settings(tasks, name, read))):
            report(f"{name} is finished for step {place.step:,}: taken from {place.where}; --again measures it again")
        else:
            found = line_of(tasks, name, model, read, place.head, track)
            place.append(found)
            if "cut" in found:
                report(
                    f"{name}: {found['cut']:,} texts lost their beginnings, the model reads {model.max_length} tokens"
                )
        lines[name] = found
    groups = group_lines(tasks, lines, read, place.head)
    for name, line in groups.items():
        if again or place.finished(name, line["settings"]) is None:
            place.append(line)
    return lines | groups


def build(loaded: Loaded, batch: int | None, scorer: Scorer | None = None, track: Track = untracked) -> Any:
    """lm-eval's model of a model; `scorer` where it is not to be made of `loaded`."""
    from maxlm.evaluate.harness import HarnessModel

    shards = math.prod(loaded.mesh.shape[name] for name in RULES["batch"])
    rows = BATCH_PER_DEVICE * loaded.mesh.size if batch is None else batch
    rows = math.ceil(rows / shards) * shards
    if scorer is None:
        length = loaded.made_for or LONGEST
        scorer = Scorer(loaded.graphdef, loaded.params, loaded.mesh, rows=rows, max_length=length)
    return HarnessModel(loaded, scorer, rows, track)


def described(model: Any, tasks: Tasks) -> dict[str, Any]:
    """How the model reads, of which results depend."""
    template = model.template_hash if tasks.wanted.chat else None
    return {"max_length": model.max_length, "dtype": model.dtype, "chat_template": template}


def line_of(
    tasks: Tasks,
    name: str,
    model: Any,
    read: Mapping[str, Any],
    head: Mapping[str, Any],
    track: Track = untracked,
) -> dict[str, Any]:
    """Measure a task; its line of eval.jsonl, which begins with `head`."""
    began = time.monotonic()
    line = dict(head) | {"task": name} | evaluate_task(tasks, name, model, track)
    return line | {"settings": settings(tasks, name, read), "seconds": time.monotonic() - began}


def group_lines(
    tasks: Tasks, lines: Mapping[str, Mapping[str, Any]], read: Mapping[str, Any], head: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Lines of the groups that have figures of their own; their seconds are those of their tasks."""
    found = {}
    for name, figures in aggregate(tasks, lines).items():
        seconds = sum(lines[task.task_name]["seconds"] for task in tasks.groups[name].get_all_tasks())
        end = {"settings": settings(tasks, name, read), "seconds": seconds}
        found[name] = dict(head) | {"task": name} | figures | end
    return found
