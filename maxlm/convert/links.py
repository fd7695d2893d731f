"""Which tensor of a Hugging Face folder holds which parts of our parameters: the form in which both directions read a
family's table.

A link is one tensor of theirs and the one or more slices of ours that it holds. Tensors are converted one at a time, so
neither direction ever holds a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ParameterPath = tuple[str, ...]  # in the decoder's tree, as ("blocks", "0", "attention", "query")


class Place(NamedTuple):
    """A slice of one of our parameters."""

    path: ParameterPath
    index: tuple[int, ...]  # along its first axes: the block of a stacked layer, then the expert; () for all of it


@dataclass(frozen=True)
class Link:
    """One of their tensors.

    `split` makes of it the slices at `ours`, in that order; `join` is its inverse, to the bit. Both keep the dtype and
    move numbers alone, so a tensor travels unchanged there and back.
    """

    theirs: str  # its name in their files
    shape: tuple[int, ...]  # that it must have
    ours: tuple[Place, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]
