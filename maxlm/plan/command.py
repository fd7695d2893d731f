"""`maxlm plan`: one plan, or a search for the best one. Results go to stdout, progress to stderr."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from maxlm.config import SAVEABLE, Config
from maxlm.errors import ConfigError
from maxlm.parallel.hardware import System
from maxlm.plan.plan import Plan, make_plan
from maxlm.plan.request import request
from maxlm.plan.search import Candidate, lines_to_paste, search
from maxlm.plan.tables import search_table, tables
from maxlm.report.progress import track
from maxlm.report.terminal import console

SEARCHED = (
    *(f"mesh.{axis}" for axis in ("pipeline", "data", "fsdp", "context", "expert", "tensor")),
    "remat.policy",
    "train.accumulate",
    "pipeline.microbatches",
    "pipeline.repeats",
)


def plan_command(
    path: Path,
    overrides: list[str],
    hardware: str | None,
    compile: bool,
    within: list[str],
    compiles: int | None,
    as_json: bool,
) -> None:
    """Print a plan, after a search where `compiles` says how many candidates to compile at a time.

    Raises `DoesNotFitError` (exit code 5), after printing, where the step does not fit.
    """
    config, system = request(path, overrides, hardware)
    if compiles is None:
        plan = make_plan(config, system, compile)
        show(plan, plan.to_json() if as_json else None)
    else:
        plan = searched(config, system, parse_within(within), compiles, as_json)
    plan.check_fit()


def searched(config: Config, system: System, within: dict[str, list], compiles: int, as_json: bool) -> Plan:
    """Print the candidates of a search, and the plan of the best."""

    def progress(compiled: Iterator[Candidate], total: int) -> Iterator[Candidate]:
        return track(compiled, f"compiling for {system.name}", total=total)

    found = search(config, system, within, compiles, progress)
    plan = make_plan(found.best.config, system, measured=found.best.measured)
    if as_json:
        show(plan, plan.to_json() | {"candidates": [candidate.to_json() for candidate in found.compiled]})
    else:
        show(plan, None)
        console().print(search_table(found))
        print(lines_to_paste(found.best.config))
    return plan


def show(plan: Plan, as_json: dict[str, Any] | None) -> None:
    if as_json is None:
        console().print(tables(plan))
    else:
        print(json.dumps(as_json))


def parse_within(texts: list[str]) -> dict[str, list]:
    """Values by key, from KEY=V,V; raises `ConfigError` for keys that the search does not vary."""
    within = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if key not in SEARCHED or not values:
            raise ConfigError(f"--within '{text}': expected KEY=V,V with a key of {', '.join(SEARCHED)}")
        found = yaml.safe_load(f"[{values}]")
        if key == "remat.policy":
            found = [_policy(value) for value in found]
        elif not all(isinstance(value, int) for value in found):
            raise ConfigError(f"--within '{text}': expected whole numbers")
        within[key] = found
    return within


def _policy(value: Any) -> str | tuple[str, ...]:
    names = tuple(value) if isinstance(value, list) else value
    if names not in ("none", "dots", "full", "offload") and not (
        isinstance(names, tuple) and set(names) <= {*SAVEABLE}
    ):
        raise ConfigError(
            f"--within remat.policy: found {value!r}; expected none, dots, full, offload or lists such as [query, key]"
        )
    return names
