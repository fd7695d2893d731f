"""Where a run begins that goes on from another model (`init`): which model that is, whether it fits the run, and the
state before the first step.

Every process reads the parts that its devices hold, straight into the run's own shards. Of an extended vocabulary the
tables (embedding, output, and where they are kept their moments) are read with all their old rows on every shard of the
vocabulary, since old numbers of rows need not divide, and grow there.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from maxlm import checkpoint, saved
from maxlm.config import Config, InitConfig
from maxlm.convert.folder import CONFIG, is_folder
from maxlm.convert.tensors import INDEX
from maxlm.data.shards import Shards
from maxlm.data.tokenizer import Extension, Tokenizer, read_extension
from maxlm.errors import ConfigError
from maxlm.evaluate.load import Source, find_source
from maxlm.parallel.agreement import everywhere
from maxlm.parallel.sharding import named_sharding
from maxlm.train import rows
from maxlm.train.resume import differences
from maxlm.train.state import (
    Blueprint,
    TrainState,
    abstract_canonical,
    initial_tables,
    restored_moments,
    restored_parameters,
    state_around,
)

KEY = "init.from"
VOCABULARY = "vocab"  # the logical axis of tables that is as long as the vocabulary
# Keys of a model's section that may be others in the run; they change no parameter's shape or meaning.
OTHERS = ("context_length", "rope", "moe.aux_weight", "moe.bias_rate", "moe.z_weight")
OPTIMIZER = "optimizer"  # item of a checkpoint


class Items(NamedTuple):
    """What is read of the model, in a checkpoint's layout; of an extended vocabulary with the old rows alone."""

    params: dict
    moments: Any | None


class Initial(NamedTuple):
    init: InitConfig
    source: Source
    identity: dict[str, Any]  # path, step, and a hash of what the checkpoint, or the folder, says of itself
    extension: Extension | None  # of the data's tokenizer, with `vocabulary: extended`

    def read(self, plan: Blueprint) -> Items:
        """This process's part of what the model has; raises `DataError` where it is damaged."""
        wanted, axes = abstract_canonical(plan), plan.state_axes
        params, moments = self.source.read(self._old(wanted.params, axes.params, plan)), None
        if self.init.optimizer == "kept":
            tree = {OPTIMIZER: self._old(wanted.optimizer, axes.optimizer, plan)}
            moments = checkpoint.restore(self.source.path, tree)[0][OPTIMIZER]
        return Items(params, moments)

    def state(self, items: Items, plan: Blueprint) -> TrainState:
        """The state before the first step, of what `read` found."""
        (params, moments), wanted = items, abstract_canonical(plan)
        with jax.set_mesh(plan.mesh):
            if self.extension:
                params = self._grown_parameters(params, plan, wanted.params)
                if moments is not None:
                    moments = jax.tree.map(self._grown_moment, moments, plan.state_axes.optimizer, wanted.optimizer)
            moments = None if moments is None else restored_moments(moments, plan)
            return state_around(restored_parameters(params, plan), plan, moments)

    def story(self) -> dict[str, Any]:
        """What was done, for events.jsonl."""
        found = {"from": self.identity["path"], "from_step": self.identity["step"], "sha256": self.identity["sha256"]}
        found |= {"weights": self.init.weights, "vocabulary": self.init.vocabulary, "moments": self.init.optimizer}
        if self.extension is None:
            return found | {"rows_kept": self.source.model.vocab_size, "rows_new": 0}
        kept, new = self.extension.old_vocab_size, len(self.extension.bounds) - 1
        return found | {"rows_kept": kept, "rows_new": new, "rows": self.init.rows}

    def _old(self, abstract: Any, axes: Any, plan: Blueprint) -> Any:
        """What is to be read of the source for a part of the run's state: the tables have their old rows."""
        if self.extension is None:
            return abstract

        def old(leaf: jax.ShapeDtypeStruct, names: tuple) -> jax.ShapeDtypeStruct:
            if VOCABULARY not in names:
                return leaf
            sizes = zip(names, leaf.shape, strict=True)
            shape = tuple(self.source.model.vocab_size if name == VOCABULARY else size for name, size in sizes)
            place = named_sharding([None if name == VOCABULARY else name for name in names], plan.mesh, shape)
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

        return jax.tree.map(old, abstract, axes)

    def _grown_parameters(self, params: dict, plan: Blueprint, wanted: dict) -> dict:
        place = NamedSharding(plan.mesh, PartitionSpec())
        ids_PK, fresh = everywhere(rows.padded(self.extension), place), initial_tables(plan)

        def grow(old, fresh, ids_PK, axis: int, dtype) -> jax.Array:
            """The old table [V, D] or [D, V] in that type, with the new rows."""
            old_VD, fresh_WD = jnp.moveaxis(old, axis, 0), jnp.moveaxis(fresh, axis, 0).astype(jnp.float32)
            first = self.extension.old_vocab_size
            at_random_PD = fresh_WD[first : first + len(ids_PK)]
            match self.init.rows:
                case "pieces":
                    rows_PD = rows.means(old_VD, ids_PK)
                case "scaled_pieces":
                    rows_PD = rows.scaled(rows.means(old_VD, ids_PK), at_random_PD)
                case "mean":
                    rows_PD = jnp.broadcast_to(rows.mean(old_VD[:first]), at_random_PD.shape)
                case "random":
                    rows_PD = at_random_PD
            grown_WD = rows.grown(old_VD, fresh_WD[len(old_VD) :], first, rows_PD)
            return jnp.moveaxis(grown_WD.astype(dtype), 0, axis)

        for name, table in fresh.items():
            step = partial(grow, axis=plan.axes[name].index(VOCABULARY), dtype=table.dtype)
            params = params | {name: jax.jit(step, out_shardings=wanted[name].sharding)(params[name], table, ids_PK)}
        return params

    def _grown_moment(self, moment: jax.Array, names: tuple, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        """A moment of a table with zeros for the new rows; others as they are."""
        if VOCABULARY not in names:
            return moment
        axis, first, count = names.index(VOCABULARY), self.extension.old_vocab_size, len(self.extension.bounds) - 1

        def grow(moment: jax.Array) -> jax.Array:
            old_VD = jnp.moveaxis(moment, axis, 0)
            zeros_WD = jnp.zeros((wanted.shape[axis], old_VD.shape[1]))
            grown_WD = rows.grown(old_VD, zeros_WD[len(old_VD) :], first, zeros_WD[:count])
            return jnp.moveaxis(grown_WD.astype(wanted.dtype), 0, axis)

        return jax.jit(grow, out_shardings=wanted.sharding)(moment)


def find(config: Config, shards: Shards) -> Initial | None:
    """The model that a run is to begin with, None of one that begins from the start; `shards` are any of its data.

    Raises `DataError` where there is no such model, `ConfigError` where it, its tokenizer or its moments do not fit.
    """
    if config.init is None:
        return None
    path = Path(config.init.path)
    found = None if is_folder(path) else saved.find(path)
    source = find_source(found.directory if found else path.resolve(), config.init.weights)
    _check_tokenizer(source)
    tokenizer = Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)
    extension = None
    if config.init.vocabulary == "extended":
        extension = _extension(source, shards, tokenizer)
    elif not tokenizer.equals(source.tokenizer):
        raise ConfigError(
            f"{KEY}: {source.path} has another tokenizer than {shards.directory}; prepare the data with its tokenizer "
            "(tokenizer.path), or extend that (tokenizer.extend) and set init.vocabulary to extended"
        )
    _check_model(source, config, extended=extension is not None)
    if config.init.optimizer == "kept":
        _check_moments(source, config)
    identity = {"path": str(source.path), "step": source.step, "sha256": _digest(source.path, found)}
    return Initial(config.init, source, identity, extension)


def _digest(path: Path, found: saved.Saved | None) -> str:
    if found:
        return hashlib.sha256(json.dumps(found.run, sort_keys=True).encode()).hexdigest()
    files = [path / name for name in (CONFIG, INDEX)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def _check_tokenizer(source: Source) -> None:
    if source.tokenizer is None:
        raise ConfigError(
            f"{KEY}: {source.path} has no tokenizer.json and no tokenizer.model, so nobody knows whether the data are "
            "for it; put the file that the model was trained with there"
        )


def _extension(source: Source, shards: Shards, tokenizer: Tokenizer) -> Extension:
    """How the data's tokenizer extends that of the model; raises `ConfigError` where it does not."""
    found = read_extension(shards.local_tokenizer())
    if found is None:
        raise ConfigError(
            f"init.vocabulary is extended, and the tokenizer of {shards.directory} was not extended (it has no "
            "extension.json); set it to same, or prepare the data with tokenizer.extend"
        )
    if not tokenizer.extends(source.tokenizer, found):
        raise ConfigError(
            f"{KEY}: the tokenizer of {shards.directory} extends another one ({found.old_hash[:12]}) than that of "
            f"{source.path} ({source.tokenizer.entry.hash[:12]}); extend the model's own (tokenizer.path)"
        )
    if found.vocab_size != tokenizer.vocab_size or found.old_vocab_size > source.model.vocab_size:
        raise ConfigError(
            f"{KEY}: extension.json of {shards.directory} makes {found.vocab_size:,} ids of {found.old_vocab_size:,}; "
            f"expected {tokenizer.vocab_size:,}, the tokenizer's, of at most {source.model.vocab_size:,}, the rows of "
            f"{source.path}"
        )
    return found


def _check_model(source: Source, config: Config, extended: bool) -> None:
    before, now = (model.model_dump(mode="json") for model in (source.model, config.model))
    unlike = differences(_less_free(before), _less_free(now))
    if extended and config.model.vocab_size >= source.model.vocab_size:
        unlike.pop("vocab_size", None)
    if unlike:
        listed = "; ".join(f"model.{key}: {there!r} there, {here!r} here" for key, (there, here) in unlike.items())
        rows = f", with vocab_size of at least {source.model.vocab_size}" if extended else ""
        raise ConfigError(
            f"{KEY}: {source.path} is another model: {listed}; take its section from `maxlm config model "
            f"{source.path}`{rows}"
        )


def _less_free(model: dict[str, Any]) -> dict[str, Any]:
    """A model's section without the keys that may be others."""
    left = {key: value for key, value in model.items() if key not in OTHERS}
    if left["moe"]:
        left["moe"] = {key: value for key, value in left["moe"].items() if f"moe.{key}" not in OTHERS}
        # A bias of the router's choice is a parameter; a loss is none.
        left["moe"]["balance"] = "bias" if left["moe"]["balance"] == "bias" else None
    return left


def _check_moments(source: Source, config: Config) -> None:
    if source.config is None or not (source.path / OPTIMIZER).is_dir():
        raise ConfigError(
            f"init.optimizer is kept, and {source.path} has no moments; expected a checkpoint of a run, or fresh"
        )
    if source.config.optimizer.name != config.optimizer.name:
        raise ConfigError(
            f"init.optimizer is kept, and {source.path} was trained with {source.config.optimizer.name}, this run with "
            f"{config.optimizer.name}; expected the same optimizer.name, or fresh"
        )
