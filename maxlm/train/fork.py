"""Branches: runs that begin with the whole state of another run's checkpoint, under their own name.

What a branch may have otherwise is what may change when a run goes on, and it is refused, recorded and followed by the
same rules (see `resume`): to them a branch is its parent with another configuration from that step on.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxlm import checkpoint, saved
from maxlm.config import Config, validate
from maxlm.errors import ConfigError, DataError
from maxlm.parallel.agreement import gather, together
from maxlm.train import resume


@dataclass(frozen=True)
class Fork:
    """What a branch is to be taken from."""

    parent: Config  # the branch's configuration, under the name of the run that is branched
    step: int | None  # of the checkpoint; None for the newest that can be read

    @property
    def directory(self) -> Path:
        """The checkpoints of the parent."""
        return self.parent.run_dir / saved.DIRECTORY

    def steps(self) -> list[int]:
        """The checkpoints that it may be, ascending; process 0's, since a parent that trains makes and drops some.

        Raises `ConfigError` where there is none.
        """
        found = json.loads(gather(json.dumps(saved.finished(self.directory)))[0])
        with together():
            if not found:
                raise ConfigError(f"--fork: {self.parent.run_dir} holds no checkpoint that could be branched")
            if self.step is not None and self.step not in found:
                listed = ", ".join(map(str, found))
                raise ConfigError(f"--fork-step {self.step}: {self.parent.run_dir} has checkpoints of steps {listed}")
        return found if self.step is None else [self.step]

    def check(self, manifests: dict[str, str]) -> None:
        """Refuse what a branch cannot change, and one with nothing to train, before anything of it is made."""
        steps = self.steps()
        with together():
            if (run := self._read(steps)) is None:
                return  # `restore` says what is damaged
            resume.check_manifests(run["manifests"], manifests, self.parent)
            resume.recorded_changes(validate(run["config"], Config, f"{self.parent.run_dir}"), self.parent)
            if run["tokens"] >= self.parent.total_tokens:
                raise ConfigError(
                    f"--fork: {self.parent.run_dir} has read {run['tokens']:,} tokens at step {run['step']:,}, and the "
                    f"branch would end at {self.parent.total_tokens:,}; its mixture and train.total_tokens count from "
                    "the parent's first step"
                )

    def _read(self, steps: list[int]) -> dict[str, Any] | None:
        for step in reversed(steps):
            try:
                return saved.read_training(self.directory / str(step))
            except DataError:
                continue
        return None

    def restore(
        self, abstract: Callable[[dict], dict[str, Any]], report: Callable[[str], None]
    ) -> tuple[dict[str, Any], dict]:
        """The checkpoint's items and JSON; raises as `checkpoint.restore_last` does."""
        return checkpoint.restore_last(self.directory.resolve(), self.steps(), abstract, report)

    def record(self, run: dict[str, Any], changes: resume.Changes) -> dict[str, Any]:
        """What the branch's checkpoints say of where it is from, given the JSON of the parent's."""
        text = json.dumps(run, sort_keys=True)
        parent = {"name": self.parent.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        origin = {"from": str(self.parent.run_dir), "from_step": int(run["step"]), "parent": parent}
        return origin | {"changes": resume.shown(changes)}

    def check_begun(self, run_dir: Path, forked: dict[str, Any] | None) -> str:
        """What to tell of a branch that goes on with its own checkpoints, which say of it what `record` gave.

        Raises `ConfigError` where they say otherwise than what is asked for.
        """
        advice = "name another branch, or go on with this one by name=NAME and without --fork"
        if forked is None or forked["parent"]["name"] != self.parent.name:
            origin = "by itself" if forked is None else f"as a branch of {forked['from']}"
            raise ConfigError(f"--fork: {run_dir} began {origin}, and not as one of {self.parent.run_dir}; {advice}")
        if self.step not in (None, forked["from_step"]):
            found = f"{run_dir} was branched at step {forked['from_step']}"
            raise ConfigError(f"--fork-step {self.step}: {found}; {advice}")
        return f"{run_dir} was branched from {forked['from']} at step {forked['from_step']:,}, and goes on by itself"


def branch(config: Config, name: str | None, step: int | None) -> tuple[Config, Fork | None]:
    """The configuration of the branch `name` of the run that a configuration names, and what it is taken from.

    Without a name the run itself, and None.
    """
    if name is None:
        if step is not None:
            raise ConfigError(f"--fork-step {step}: is of a branch, which needs a name: add --fork NAME")
        return config, None
    if name == config.name:
        raise ConfigError(
            f"--fork {name}: is the name of the run to be branched; give the branch another, and leave `name` to the "
            "parent where a file of its own extends it"
        )
    return validate(config.model_dump(mode="json") | {"name": name}, Config, "--fork"), Fork(config, step)
