"""Tasks of lm-eval: found by name, opened without a network, evaluated one after the other.

    tasks = open_tasks(Wanted(["arc_easy", "mmlu"], folder="my-tasks"))
    for name in tasks.tasks:
        line = evaluate_task(tasks, name, model)      # figures, standard errors, items, settings

A folder of one's own holds YAML files of lm-eval's; their functions (`!function`) are programs that run here, so it has
to be one that is trusted. `data_files` of a YAML file are relative to it, or to the folder. A group's figures are
means over its tasks, as its YAML says.
"""

import difflib
import hashlib
import importlib.util
import inspect
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.errors import ConfigError, DataError
from maxlm.evaluate.surroundings import as_lm_eval_runs
from maxlm.report.progress import Track, untracked

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
FEWSHOT_SEED = 1234  # lm-eval's own
DRAWS = 1000  # of a bootstrap, for the standard errors of what is no mean
LOCAL = ("json", "csv", "parquet", "text", "arrow")  # data sets that are files
NEAREST = 5  # names that are told for one that is unknown
KIND = "lm-eval"


class Wanted(NamedTuple):
    """What is to be evaluated, and how."""

    names: Sequence[str]  # tasks, groups and tags; * stands for anything
    folder: str | None = None  # with tasks of one's own
    shots: int | None = None  # examples before a question; None for as many as the task says
    limit: int | None = None  # questions of a task; None for all
    chat: bool = False  # questions are asked by the chat template


@dataclass(frozen=True)
class Tasks:
    """Opened tasks by name, and the groups that were asked for."""

    wanted: Wanted
    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)

    @property
    def generating(self) -> list[str]:
        """Names of those that a model answers in words."""
        return [name for name, task in self.tasks.items() if task.OUTPUT_TYPE == "generate_until"]


def require() -> None:
    """Raises `ConfigError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("tasks need lm-eval, which is not installed; run: pip install 'maxlm[eval]'")


def stay_offline() -> None:
    """Keep lm-eval's libraries off the network, unless HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set.

    They look at the environment when they are imported; where the hub's is in use already (a run may read shards from
    hf://), data sets alone are kept off it.
    """
    in_use = "huggingface_hub" in sys.modules
    for name in OFFLINE[in_use:]:
        os.environ.setdefault(name, "1")


def open_tasks(wanted: Wanted, track: Track = untracked) -> Tasks:
    """Find the tasks and read their data.

    Raises `ConfigError` for a name that is unknown, a task that cannot be asked of a language model and lm-eval that is
    not installed, `DataError` where a task's data cannot be read.
    """
    require()
    stay_offline()
    if wanted.folder is not None and not Path(wanted.folder).is_dir():
        raise DataError(f"{wanted.folder}: no such directory; expected a folder with YAML files of tasks")
    with as_lm_eval_runs(track):
        manager = _manager(wanted)
        found = Tasks(wanted)
        for chosen in dict.fromkeys(match for name in wanted.names for match in _matching(name, manager)):
            _add(found, _loaded(chosen, manager))
        for name, task in found.tasks.items():
            _prepare(name, task, wanted)
    return found


def settings(tasks: Tasks, name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """What makes results of a task or group comparable; `model` says how the model reads (length, type, template)."""
    fixed = {"kind": KIND, "lm_eval": version("lm_eval"), "limit": tasks.wanted.limit}
    if name in tasks.tasks:
        task = tasks.tasks[name]
        own = {"shots": task.config.num_fewshot, "version": task.VERSION, "config": _hash(_description(task))}
    else:
        group = tasks.groups[name]
        members = [member.task_name for member in group.get_all_tasks()]
        shots = {tasks.tasks[member].config.num_fewshot for member in members}
        parts = [str(group.aggregate_metric_list), *(_hash(_description(tasks.tasks[member])) for member in members)]
        own = {"shots": shots.pop() if len(shots) == 1 else None, "version": group.version, "config": _hash(parts)}
    return json.loads(json.dumps(fixed | own | dict(model), default=str))


def evaluate_task(tasks: Tasks, name: str, model: Any, track: Track = untracked) -> dict[str, Any]:
    """Figures of one task: `metrics`, `stderr` and `items`; `cut` where texts lost their beginnings for their length.

    Args:
        model: a `harness.HarnessModel`.
    """
    from lm_eval import evaluator

    task = tasks.tasks[name]
    model.task, model.cut = name, 0
    with as_lm_eval_runs(track):
        task.set_fewshot_seed(seed=FEWSHOT_SEED)  # the same examples whenever it is asked
        results = evaluator.evaluate(
            lm=model,
            task_dict={"tasks": {name: task}},
            limit=tasks.wanted.limit,
            bootstrap_iters=DRAWS,
            log_samples=False,
            apply_chat_template=tasks.wanted.chat,
            fewshot_as_multiturn=tasks.wanted.chat,
        )
    return _figures(results["results"][name]) | ({"cut": model.cut} if model.cut else {})


def aggregate(tasks: Tasks, lines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures of the groups that have such, from the `metrics`, `stderr` and `items` of their tasks."""
    flat = {name: _flat(line) for name, line in lines.items()}
    with as_lm_eval_runs(untracked):
        groups = {name: group for name, group in tasks.groups.items() if group.has_aggregation}
        return {name: _figures(group.aggregate(flat)) for name, group in groups.items()}


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's keys are metric,filter and metric_stderr,filter; a filter that does nothing is called none."""
    metrics, stderr = {}, {}
    for key, value in result.items():
        metric, comma, chosen = key.partition(",")
        if not comma or not isinstance(value, int | float) and not hasattr(value, "item"):
            continue
        kind, metric = (stderr, metric.removesuffix("_stderr")) if metric.endswith("_stderr") else (metrics, metric)
        kind[metric if chosen == "none" else f"{metric},{chosen}"] = float(value)
    stderr = {key: value for key, value in stderr.items() if math.isfinite(value)}
    return {"metrics": metrics, "stderr": stderr, "items": int(result.get("sample_len", 0))}


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """`_figures` undone."""
    found: dict[str, Any] = {"sample_len": line["items"]}
    for key, value in line["metrics"].items():
        metric, comma, chosen = key.partition(",")
        chosen = chosen if comma else "none"
        found[f"{metric},{chosen}"] = value
        found[f"{metric}_stderr,{chosen}"] = line["stderr"].get(key, "N/A")
    return found


# --- finding and opening ------------------------------------------------------------------------------------


def _manager(wanted: Wanted) -> Any:
    """The folder's tasks where it has all that are wanted: lm-eval's own are thousands of files to look through."""
    from lm_eval.tasks import TaskManager

    if wanted.folder is not None:
        own = _with_files(TaskManager(include_path=wanted.folder, include_defaults=False), wanted.folder)
        if all(_matches(name, own) for name in wanted.names) and _is_closed(own, wanted.names):
            return own
    return _with_files(TaskManager(include_path=wanted.folder), wanted.folder)


def _is_closed(manager: Any, names: Sequence[str]) -> bool:
    """Whether the groups among the names are of tasks that are there."""
    waiting = [match for name in names for match in _matches(name, manager)]
    while waiting:
        members = (manager.task_index[waiting.pop()].cfg or {}).get("task", "")
        for member in members if isinstance(members, list) else []:
            name = member if isinstance(member, str) else member.get("task", member.get("group"))
            if isinstance(member, str) and name not in manager.task_index:
                return False
            waiting += [name] if name in manager.task_index else []
    return True


def _with_files(manager: Any, folder: str | None) -> Any:
    """The manager, by which files of the folder's tasks are found beside their YAML files, wherever this runs."""
    from lm_eval.tasks._factory import TaskFactory

    class Factory(TaskFactory):
        def _load_full_config(self, entry, overrides=None):
            config = super()._load_full_config(entry, overrides)
            here = entry.yaml_path and Path(folder or "").resolve() in entry.yaml_path.resolve().parents
            if folder is None or not here or config.get("dataset_path") not in LOCAL:
                return config
            arguments = config.get("dataset_kwargs") or {}
            places = entry.yaml_path.parent, Path(folder)
            files = {key: _placed(arguments[key], places) for key in ("data_files", "data_dir") if key in arguments}
            return config | {"dataset_kwargs": arguments | files}

    manager._factory = Factory(meta=manager.metadata)
    return manager


def _placed(files: Any, places: Sequence[Path]) -> Any:
    """Names of files, in whatever lists and dictionaries, from where they are."""
    if isinstance(files, Mapping):
        return {key: _placed(value, places) for key, value in files.items()}
    if isinstance(files, list):
        return [_placed(value, places) for value in files]
    if "://" in files or Path(files).is_absolute():
        return files
    found = (place.resolve() / files for place in places)
    place = next((path for path in found if any(path.parent.glob(path.name))), None)
    if place is None:
        raise DataError(
            f"{places[0].resolve() / files}: no such file; a task's data_files are relative to its YAML file"
        )
    return str(place)


def _matches(name: str, manager: Any) -> list[str]:
    return manager.match_tasks([name]) if "*" in name else [name] * (name in manager.task_index)


def _matching(name: str, manager: Any) -> list[str]:
    if found := _matches(name, manager):
        return found
    near = difflib.get_close_matches(name, manager.all_tasks, NEAREST, 0.4)
    advice = f"the nearest are {', '.join(near)}" if near else "no name is near it"
    raise ConfigError(f"task {name}: unknown; {advice} (tasks of one's own are looked for in the tasks folder)")


def _loaded(name: str, manager: Any) -> Mapping[str, Any]:
    try:
        return manager.load([name])
    except DataError as error:
        raise DataError(f"task {name}: {error}") from None
    except Exception as error:  # whatever data sets, YAML files and their functions raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        offline = any(os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE") for variable in OFFLINE)
        advice = f"; set {OFFLINE[0]}=0 and {OFFLINE[1]}=0 to let it be downloaded" if offline else ""
        raise DataError(f"task {name}: cannot be opened, its data may not be here ({reason}){advice}") from None


def _add(found: Tasks, loaded: Mapping[str, Any]) -> None:
    for name, task in loaded["tasks"].items():
        if name in found.tasks and _description(found.tasks[name]) != _description(task):
            raise ConfigError(f"task {name}: is asked for in two forms, by groups that differ; ask for one at a time")
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"task {name}: runs programs that the model writes, which is not done here; leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"task {name}: asks of pictures or sounds, and the model reads text; leave it out")
        found.tasks.setdefault(name, task)
    found.groups.update(loaded.get("groups", {}))


def _prepare(name: str, task: Any, wanted: Wanted) -> None:
    """Shots as lm-eval decides them: those of a task that says 0 stay 0."""
    said = task.get_config("num_fewshot")
    if wanted.shots is not None and said != 0:
        task.set_config(key="num_fewshot", value=wanted.shots)
    elif said is None:
        task.set_config(key="num_fewshot", value=0)


# --- what a task is -----------------------------------------------------------------------------------------


def _description(task: Any) -> dict[str, Any]:
    """A task's configuration without places on this disk: of files, their contents."""
    config = json.loads(json.dumps(task.dump_config(), default=_source, sort_keys=True))
    config.get("metadata", {}).pop("config_source", None)
    arguments = config.get("dataset_kwargs") or {}
    if config.get("dataset_path") in LOCAL and "data_files" in arguments:
        config["dataset_kwargs"] = arguments | {"data_files": _contents(arguments["data_files"])}
    return config


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return getattr(value, "__qualname__", type(value).__name__)


def _contents(files: Any) -> Any:
    if isinstance(files, Mapping):
        return {key: _contents(value) for key, value in files.items()}
    if isinstance(files, list):
        return [_contents(value) for value in files]
    path = Path(files)
    return {found.name: hashlib.sha256(found.read_bytes()).hexdigest() for found in sorted(path.parent.glob(path.name))}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
