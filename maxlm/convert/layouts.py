"""How the numbers of our parameters lie in a tensor of theirs. Everything here moves numbers and changes none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Slices(NamedTuple):
    """What a layout has to know of the slices of ours that one tensor holds."""

    shapes: tuple[Shape, ...]
    rotated: int  # dimensions at the end of a head that the rotary embedding turns (ModelConfig.rope_dim)


@dataclass(frozen=True)
class Layout:
    """A matrix or vector of theirs that holds one or more slices of ours.

    Ours are laid behind each other along `axis`; of the axes of the whole the first `inputs` become one axis, the
    others become the second one; with `transposed` theirs has outputs first. Without inputs theirs is a vector.

    With `interleaved` the rotated dimensions at the end of the last axis are pairs (x0, y0), (x1, y1), ... in their
    files, where ours has all x before all y: the rotation is the same, and so are all products of rotated heads.
    """

    inputs: int = 1
    transposed: bool = False
    axis: int = 0
    interleaved: bool = False

    def shape(self, slices: Slices) -> Shape:
        """That the tensor has in their files."""
        whole = self._whole(slices)
        rows, columns = math.prod(whole[: self.inputs]), math.prod(whole[self.inputs :])
        if not self.inputs:
            return (columns,)
        return (columns, rows) if self.transposed else (rows, columns)

    def split(self, tensor: np.ndarray, slices: Slices) -> Sequence[np.ndarray]:
        whole = (tensor.T if self.transposed else tensor).reshape(self._whole(slices))
        if self.interleaved:
            whole = whole[..., _pairs_apart(whole.shape[-1], slices.rotated)]
        ends = np.cumsum([shape[self.axis] for shape in slices.shapes])[:-1]
        return np.split(whole, ends, axis=self.axis)

    def join(self, ours: Sequence[np.ndarray], slices: Slices) -> np.ndarray:
        whole = ours[0] if len(ours) == 1 else np.concatenate(ours, axis=self.axis)
        if self.interleaved:
            whole = whole[..., np.argsort(_pairs_apart(whole.shape[-1], slices.rotated))]
        shape = self.shape(slices)
        return whole.reshape(shape[::-1]).T if self.transposed else whole.reshape(shape)

    def _whole(self, slices: Slices) -> Shape:
        """The shape of all slices behind each other."""
        whole = list(slices.shapes[0])
        whole[self.axis] = sum(shape[self.axis] for shape in slices.shapes)
        return tuple(whole)


def _pairs_apart(width: int, rotated: int) -> np.ndarray:
    """Where, among `width` interleaved dimensions of which the last are rotated, those of ours stand."""
    kept = np.arange(width - rotated)
    pairs = np.arange(width - rotated, width)
    return np.concatenate([kept, pairs[0::2], pairs[1::2]])


VECTOR = Layout(inputs=0)  # biases and norms, also those that have an axis of heads
TABLE = Layout()  # a row per token or position
LINEAR = Layout(transposed=True)  # [outputs, inputs], as torch's Linear keeps it
LINEAR_OUT = Layout(inputs=2, transposed=True)  # likewise, of heads back to the residual stream
LINEARS = Layout(transposed=True, axis=1)  # several with the same inputs, outputs behind each other
