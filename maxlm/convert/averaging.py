"""`maxlm average`: the mean of the parameters of several checkpoints of a run, region by region (Izmailov et al. 2018,
"Averaging weights leads to wider optima"; Kaddour 2022, latest weight averaging).
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from maxlm import saved
from maxlm.convert.arrays import (
    Array,
    Region,
    Slices,
    damaged,
    each,
    open_checkpoint,
    return_freed_memory,
    write_checkpoint,
)
from maxlm.convert.building import building
from maxlm.convert.folder import path_of
from maxlm.convert.importing import megabytes, nested
from maxlm.convert.links import ParameterPath
from maxlm.errors import ConfigError, DataError, SaveError
from maxlm.model import counts, decoder
from maxlm.report.progress import track
from maxlm.saved import DIRECTORY, EMA_UPDATES, TOKENIZER, Saved

# What of a checkpoint's JSON is for going on with the run.
STATE = ("loader", "online", "rewinds", "reference", EMA_UPDATES)
KEEP = "checkpoint.keep_every_steps lets them stay"


class Averaged(NamedTuple):
    """What the command tells at its end."""

    steps: list[int]
    parameters: int
    nbytes: int  # that were read
    seconds: float


def average(run_dir: Path, out: Path, last: int | None = None, steps: Sequence[int] | None = None) -> Averaged:
    """Make `out` the mean of the last so many checkpoints of a run, or of those of the steps.

    The sum is taken in float32 in the order of the steps, then divided by their number; parameters keep their types.
    The configuration and the tokenizer are the run's, and there are no moments. Raises `ConfigError` where fewer than
    two are asked for or there, for checkpoints of other models, and for an `out` that exists; `DataError` where one is
    damaged; `SaveError` where `out` cannot be written.
    """
    began = time.monotonic()
    return_freed_memory()
    chosen = [saved.find(run_dir / DIRECTORY / str(step)) for step in choose(run_dir, last, steps)]
    newest = chosen[-1]
    for one in chosen:
        if one.model != newest.model:
            raise ConfigError(f"{one.directory}: holds another model than {newest.directory}; average those of one")
    arrays = _arrays(newest)
    opened = [_open(one, arrays) for one in chosen]
    nbytes = sum(array.nbytes for array in arrays.values())
    averaged = {"run": str(run_dir.resolve()), "steps": [int(one.directory.name) for one in chosen]}
    run = {key: value for key, value in newest.run.items() if key not in STATE} | {"averaged": averaged}
    with building(out, nbytes) as unfinished:
        shutil.copytree(newest.tokenizer_dir, unfinished / TOKENIZER)
        (unfinished / DIRECTORY).mkdir()
        fill = _filling(arrays, chosen, opened, f"averaging {len(chosen)} checkpoints of {run_dir.name}")
        try:
            write_checkpoint(unfinished / DIRECTORY / newest.directory.name, nested(arrays), run, fill)
        except ValueError as error:  # of TensorStore, as where the disk is full
            raise SaveError(f"{out}: cannot be written ({' '.join(str(error).split())[:200]})") from None
    seconds = time.monotonic() - began
    return Averaged(averaged["steps"], counts.parameter_count(newest.model), nbytes * len(chosen), seconds)


def choose(run_dir: Path, last: int | None, steps: Sequence[int] | None) -> list[int]:
    """The steps whose checkpoints are averaged, ascending; raises `ConfigError` for what cannot be."""
    if (last is None) == (steps is None):
        raise ConfigError("average: say which checkpoints, by either --last K or --steps N,N,...")
    if (newest := saved.named(run_dir)) is None or newest.parent.parent != run_dir.resolve():
        raise ConfigError(f"{run_dir}: is no run directory with checkpoints, of which an average is made")
    saved.read_training(newest)
    there = saved.finished(run_dir / DIRECTORY)
    listed = f"{run_dir} has checkpoints of steps {', '.join(map(str, there))}"
    wanted = there[-max(1, last) :] if steps is None else sorted(set(steps))
    asked = f"--last {last}" if steps is None else f"--steps {','.join(map(str, wanted))}"
    if (len(wanted) if last is None else last) < 2:
        raise ConfigError(f"{asked}: an average is of 2 checkpoints at least; {listed}")
    if len(wanted) < (last or 0) or not set(wanted) <= set(there):
        raise ConfigError(f"{asked}: {listed}; {KEEP}")
    return wanted


def step_numbers(text: str) -> list[int]:
    """The steps of `--steps 100,200,300`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--steps {text}: expected numbers of steps as in --steps 100,200,300")
    return [int(part) for part in parts]


def _arrays(newest: Saved) -> dict[ParameterPath, Array]:
    """The parameters to be written: of a checkpoint's types, layers and experts apart as a run saves them."""
    dtypes = open_checkpoint(newest.directory).dtypes
    _, shapes, axes = decoder.abstract(newest.model)

    def array(keys: tuple, leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> Array:
        apart = sum(1 for _ in takewhile(lambda name: name in ("layers", "experts"), names))
        return Array(leaf.shape, dtypes.get(path_of(keys), np.dtype(np.float32)), apart)

    tree = jax.tree_util.tree_map_with_path(array, shapes, axes)
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Array))
    return {path_of(keys): leaf for keys, leaf in leaves}


def _open(one: Saved, arrays: Mapping[ParameterPath, Array]) -> Slices:
    opened = open_checkpoint(one.directory)
    expected = {path: (array.shape, array.dtype) for path, array in arrays.items()}
    found = {path: (shape, opened.dtypes[path]) for path, shape in opened.shapes.items()}
    if unlike := sorted({".".join(path) for path, _ in expected.items() ^ found.items()}):
        raise DataError(f"{one.directory}: its parameters are not those of its model: {', '.join(unlike[:5])}")
    return opened


def _filling(
    arrays: Mapping[ParameterPath, Array], chosen: Sequence[Saved], opened: Sequence[Slices], told: str
) -> Callable[[Slices], None]:
    """What writes the mean of the checkpoints' numbers."""

    def mean(written: Slices, path: ParameterPath, region: Region) -> None:
        total = np.zeros((), np.float32)
        for one, slices in zip(chosen, opened, strict=True):
            try:
                values = slices.read_region(path, region, np.dtype(np.float32))
            except ValueError as error:  # whatever a damaged file makes TensorStore raise
                raise damaged(one.directory, error) from None
            total = values if one is chosen[0] else np.add(total, values, out=total)
        written.write_region(path, region, np.divide(total, np.float32(len(chosen)), out=total))

    def fill(written: Slices) -> None:
        regions = [(path, region) for path in arrays for region in written.regions(path)]

        def cost(item: tuple[ParameterPath, Region]) -> int:
            path, region = item
            return math.prod(part.stop - part.start for part in region) * arrays[path].dtype.itemsize

        done = each(lambda item: mean(written, *item), regions, cost)
        total = max(1, sum(map(cost, regions)) // 10**6)
        for _ in track(megabytes(done), told, total, unit="MB"):
            pass

    return fill
