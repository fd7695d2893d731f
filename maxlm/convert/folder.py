"""A Hugging Face folder: its model, whose tensor is what, and whether everything is there, before a number is read."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config import ModelConfig
from maxlm.convert.families import links, match_names, read_config
from maxlm.convert.links import Link, ParameterPath
from maxlm.convert.table import Names
from maxlm.convert.tensors import DTYPES, Tensor, listed, read_tensors
from maxlm.errors import DataError
from maxlm.model import decoder

CONFIG = "config.json"


@dataclass(frozen=True)
class Folder:
    directory: Path
    config: dict[str, Any]  # its config.json
    family: str
    model: ModelConfig
    links: list[Link]
    tensors: Mapping[str, Tensor]  # by the names of the links
    notes: list[str]  # what of its files is not part of the model

    @cached_property
    def dtypes(self) -> dict[ParameterPath, np.dtype]:
        """Of every parameter of ours the type that holds all its tensors as they are."""
        found: dict[ParameterPath, np.dtype] = {}
        for link in self.links:
            dtype = DTYPES[self.tensors[link.theirs].dtype]
            for path, _ in link.ours:
                found[path] = np.dtype(jnp.promote_types(found.get(path, dtype), dtype))
        return found


def is_folder(path: Path) -> bool:
    """Whether a directory is a Hugging Face model's, and no run's."""
    return (path / CONFIG).is_file()


def read_folder(directory: str | Path) -> Folder:
    """A folder whose tensors are all there and of the right shapes.

    Raises `ConfigError` for a model that our decoder cannot be, `DataError` that names every tensor that is missing,
    too many, misshapen or of a type that cannot be read.
    """
    directory = Path(directory)
    config = read_json(directory / CONFIG, "expected a folder with a Hugging Face model")
    family, model = read_config(config, str(directory / CONFIG))
    wanted, tensors = links(family, model), read_tensors(directory)
    names = match_names(family, model, wanted, tensors)
    _check(directory, family, wanted, tensors, names)
    found = {name: tensors[theirs] for name, theirs in names.found.items()}
    reasons = Counter(names.left_out.values())
    notes = [f"{count:,} tensors are left out: {why}" for why, count in reasons.items()]
    return Folder(directory, config, family, model, wanted, found, notes)


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """A JSON object; raises `DataError` where there is none, which says what was expected."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {expected}")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not JSON ({error}); get the file again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object; get the file again")
    return value


def parameters(model: ModelConfig) -> dict[ParameterPath, jax.ShapeDtypeStruct]:
    """Shapes and types of the decoder's parameters by their paths, where most are in bfloat16."""
    _, shapes, _ = decoder.abstract(model, params_dtype=jnp.dtype(jnp.bfloat16))
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


def path_of(keys: tuple) -> ParameterPath:
    """A path of jax's trees as links write it."""
    return tuple(str(key.key) for key in keys)


def _check(directory: Path, family: str, wanted: list[Link], tensors: Mapping[str, Tensor], names: Names) -> None:
    """Raise `DataError` for tensors that are not those of the model."""
    held = {link.theirs: (tensors[names.found[link.theirs]], link) for link in wanted if link.theirs in names.found}
    problems = {
        "missing": names.missing,
        "not of this model": names.extra,
        "misshapen": [
            f"{name} {list(tensor.shape)} (expected {list(link.shape)})"
            for name, (tensor, link) in held.items()
            if tensor.shape != tuple(link.shape)
        ],
        "of a type that cannot be read": [
            f"{name} {tensor.dtype}" for name, (tensor, _) in held.items() if tensor.dtype not in DTYPES
        ],
    }
    if found := [f"{len(found):,} {what}: {listed(found)}" for what, found in problems.items() if found]:
        advice = f"get the files again, or the {CONFIG} that belongs to them"
        if problems["of a type that cannot be read"]:
            advice = "convert the model to float32, bfloat16 or float16 first"
        raise DataError(
            f"{directory}: its tensors are not those of the {family} in its {CONFIG}: {'; '.join(found)}; {advice}"
        )
    for name, other in names.copies.items():
        if not _equal(tensors[name], tensors[other]):
            raise DataError(
                f"{directory}: {name} differs from {other}, and its {CONFIG} ties them; set tie_word_embeddings to "
                "false, or delete the tensor"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(row.tobytes() == like.tobytes() for row, like in zip(one.map(), other.map(), strict=True))


def converted(
    model: ModelConfig, dtypes: Mapping[ParameterPath, np.dtype], dtype: Any
) -> dict[ParameterPath, np.dtype]:
    """The types of parameters of the given types when they are asked for in another one; None leaves them.

    What the decoder has in float32 whatever its other parameters are in (a router and its bias) stays as it is: small
    differences in it change who computes what.
    """
    if dtype is None:
        return dict(dtypes)
    exact = {path for path, leaf in parameters(model).items() if leaf.dtype == jnp.float32}
    return {path: found if path in exact else np.dtype(dtype) for path, found in dtypes.items()}
