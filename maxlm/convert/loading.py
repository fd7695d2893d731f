"""Parameters from a Hugging Face folder straight onto devices: every shard reads what it needs of the files."""

import itertools
from typing import Any

import jax
import numpy as np

from maxlm.convert.arrays import copy_into
from maxlm.convert.folder import Folder, path_of
from maxlm.convert.links import Link


def load_parameters(folder: Folder, abstract: Any) -> dict:
    """The decoder's parameters, for a tree of `jax.ShapeDtypeStruct` with shardings; files are mapped, not read."""
    places: dict[tuple, dict[tuple, tuple[Link, int]]] = {}
    for link in folder.links:
        for number, (path, index) in enumerate(link.ours):
            places.setdefault(path, {})[index] = link, number

    def parameter(keys: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        slices = places[path_of(keys)]
        stacked = len(next(iter(slices)))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            ranges = [range(*one.indices(size)) for one, size in zip(index, leaf.shape, strict=True)]
            values = np.empty([len(one) for one in ranges], leaf.dtype)
            for target in itertools.product(*(range(len(one)) for one in ranges[:stacked])):
                link, number = slices[tuple(one[at] for one, at in zip(ranges, target, strict=False))]
                found = link.split(folder.tensors[link.theirs].map())[number]
                copy_into(values[target], found[index[stacked:]])
            return values

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    return jax.tree_util.tree_map_with_path(parameter, abstract)
