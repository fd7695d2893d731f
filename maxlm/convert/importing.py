"""`maxlm import`: a Hugging Face folder becomes a directory that all commands read like a run's."""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from maxlm.convert import tokenizer_files
from maxlm.convert.arrays import Array, Slices, each, return_freed_memory, write_checkpoint
from maxlm.convert.building import building
from maxlm.convert.folder import Folder, converted, parameters, read_folder
from maxlm.convert.links import Link
from maxlm.errors import SaveError
from maxlm.model import counts
from maxlm.report.progress import track
from maxlm.saved import DIRECTORY, TOKENIZER

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of config.json, which an export writes again


class Converted(NamedTuple):
    """What a command tells at its end."""

    family: str
    parameters: int
    nbytes: int  # of the tensors, as they are written
    seconds: float
    notes: list[str]


def import_folder(directory: Path, out: Path, dtype: str | None = None) -> Converted:
    """Make `out` of a folder, tensor by tensor; `dtype` converts the tensors, None keeps them as they are.

    Raises `ConfigError` for a model that cannot be imported and an `out` that exists, `DataError` for damaged files,
    `SaveError` where `out` cannot be written.
    """
    began = time.monotonic()
    return_freed_memory()
    folder = read_folder(directory)
    arrays = _arrays(folder, dtype)
    nbytes = sum(array.nbytes for array in arrays.values())
    run = {"step": 0, "tokens": 0, "family": folder.family, "model": folder.model.model_dump(mode="json")}
    run |= {"token_ids": {key: folder.config[key] for key in TOKEN_IDS if folder.config.get(key) is not None}}
    with building(out, nbytes) as partial:
        tokenizer_files.copy_files(directory, partial / TOKENIZER)
        tokenizer, stops = tokenizer_files.describe(directory)
        run |= {"stop_ids": stops, "tokenizer": tokenizer and tokenizer.model_dump(mode="json")}
        tree = nested(arrays)
        (partial / DIRECTORY).mkdir()
        try:
            write_checkpoint(partial / DIRECTORY / "0", tree, run, lambda slices: _fill(folder, slices))
        except ValueError as error:  # of TensorStore, as where the disk is full
            raise SaveError(f"{out}: cannot be written ({' '.join(str(error).split())[:200]})") from None
    notes = folder.notes + (
        [] if tokenizer else [f"{directory} has no tokenizer.json and no tokenizer.model: texts cannot be encoded"]
    )
    return Converted(folder.family, counts.parameter_count(folder.model), nbytes, time.monotonic() - began, notes)


def _arrays(folder: Folder, dtype: str | None) -> dict[tuple[str, ...], Array]:
    dtypes = converted(folder.model, folder.dtypes, dtype and jnp.dtype(dtype))
    stacked = {path: len(index) for link in folder.links for path, index in link.ours}
    shapes = parameters(folder.model)
    return {path: Array(leaf.shape, dtypes[path], stacked[path]) for path, leaf in shapes.items()}


def nested(arrays: Mapping[tuple[str, ...], Array]) -> dict[str, Any]:
    """The tree of arrays by their paths."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = array
    return tree


def _fill(folder: Folder, slices: Slices) -> None:
    def convert(link: Link) -> None:
        parts = link.split(folder.tensors[link.theirs].read())
        for (path, index), part in zip(link.ours, parts, strict=True):
            slices.write(path, index, part)

    done = each(convert, folder.links, lambda link: folder.tensors[link.theirs].nbytes)
    total = sum(folder.tensors[link.theirs].nbytes for link in folder.links)
    for _ in track(megabytes(done), f"importing {folder.directory.name}", max(1, total // 10**6), unit="MB"):
        pass


def megabytes(done: Iterable[int]) -> Iterator[int]:
    """One item for every whole million of the bytes that are done."""
    whole, count = 0, 0
    for nbytes in done:
        count += nbytes
        yield from range(count // 10**6 - whole)
        whole = count // 10**6
