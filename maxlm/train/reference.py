"""The reference of a proxy run: which checkpoint it is, whether it fits the run's data, and its parameters."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from maxlm import checkpoint
from maxlm.config import Config, DoremiConfig
from maxlm.data.sources import Source
from maxlm.errors import ConfigError
from maxlm.saved import find as find_saved
from maxlm.train.state import Blueprint, abstract_canonical, restored_parameters

KEY = "data.dynamic.reference"


class Reference(NamedTuple):
    directory: Path  # of the checkpoint
    identity: dict[str, Any]  # path, step, and a hash of what the checkpoint says of its run

    def parameters(self, plan: Blueprint) -> dict:
        """On the mesh of the proxy's plan, as the proxy computes with them; raises `DataError` where damaged."""
        items, _ = checkpoint.restore(self.directory, {"params": abstract_canonical(plan.reference).params})
        with jax.set_mesh(plan.mesh):
            return restored_parameters(items["params"], plan.reference)


def find(config: Config, sources: Mapping[str, Source]) -> Reference | None:
    """The reference of a proxy run, None of another.

    Raises `DataError` where there is no checkpoint, `ConfigError` where its tokenizer or its sources are not the run's.
    """
    if not isinstance(config.data.dynamic, DoremiConfig):
        return None
    saved = find_saved(config.data.dynamic.reference)
    if saved.config is None:
        raise ConfigError(f"{KEY}: {saved.directory} is an imported model; train a reference on the same sources")
    tokenizer = saved.run["tokenizer"]
    known = set(saved.run["manifests"].values())
    for name, shards in ((name, source.shards) for name, source in sources.items()):
        if shards.manifest.tokenizer.model_dump(mode="json") != tokenizer:
            raise ConfigError(
                f"{KEY}: {saved.directory} was trained with another tokenizer than that of {shards.directory}; their "
                "losses per token do not compare: train a reference on the same sources"
            )
        if shards.manifest.hash not in known:
            raise ConfigError(
                f"{KEY}: {saved.directory} was not trained on data.sources.{name} ({shards.directory}), but on "
                f"{', '.join(sorted(saved.run['manifests']))}; train a reference on the same sources"
            )
    text = json.dumps(saved.run, sort_keys=True)
    identity = {"path": str(saved.directory), "step": int(saved.run["step"])}
    return Reference(saved.directory, identity | {"sha256": hashlib.sha256(text.encode()).hexdigest()})


def check_same(before: dict[str, Any] | None, now: Reference | None) -> None:
    """Raise `ConfigError` where a proxy run goes on against another reference; the same one elsewhere is fine."""
    if now is None or before is None or _what(before) == _what(now.identity):
        return
    raise ConfigError(
        f"{KEY}: the run began against {before['path']} (step {before['step']}, {before['sha256'][:12]}), and this is "
        f"{now.directory} (step {now.identity['step']}, {now.identity['sha256'][:12]}); name the checkpoint it began "
        "with, or choose another name"
    )


def _what(identity: dict[str, Any]) -> tuple[int, str]:
    return identity["step"], identity["sha256"]
