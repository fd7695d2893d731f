"""Which source an example comes from, and which of that source's examples it is, in closed form.

Shares are integers out of 2^30. The sources of the first j examples are counted on a balanced binary tree: at a node
with W units, of which V lie in its left half, floor((V j + phase) / W) of its first j examples go left, where phase is
W / 2 at the start of a run. That count never falls and rises by at most one per example, so every example has one
source and a number within it, and nothing has to be remembered.

The bound: with n sources of weights w_i, the number k of examples of source i among the first j keeps
|k - j w_i / sum(w)| <= ceil(log2(n)) / 2 at every j. A node rounds by at most 1/2, and passes its parent's error on
scaled down. To that the quantisation of shares adds less than j / 2^30, unless there are sources below one unit.

When shares change, each node goes on with the remainder that it had, as its phase under the new shares: shares that
stay the same are apportioned as if nothing had happened, and one that is below an example per segment is not lost to
rounding over and over. Counted from a change on, a node is off by less than 1, so the bound is twice the one above.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNITS = 2**30

Ints = NDArray[np.int64]


def quantise(weights: Mapping[str, float]) -> dict[str, int]:
    """Shares as units that sum to 2^30, by largest remainder; a positive weight gets at least one, 0 none.

    The result is sorted by name, so the order in which a configuration lists its sources changes nothing.
    """
    exact = {name: Fraction(weights[name]) for name in sorted(weights)}
    if min(exact.values(), default=0) < 0 or not (total := sum(exact.values())):
        raise ValueError(f"weights must be at least 0 and not all 0, found {dict(weights)}")
    exact = {name: weight / total * UNITS for name, weight in exact.items()}
    units = {name: max(int(weight), int(weight > 0)) for name, weight in exact.items()}
    missing = UNITS - sum(units.values())
    remainder = sorted((name for name in units if exact[name]), key=lambda name: units[name] - exact[name])
    for name in remainder[: max(missing, 0)]:
        units[name] += 1
    # Only where several shares were lifted to one unit: the largest pays.
    units[max(units, key=units.__getitem__)] += min(missing, 0)
    return units


class Shares:
    """The apportionment of examples, numbered from 0, to sources.

    Args:
        units: weight of each source, integers; not all 0.
        phases: one number per inner node of the tree, below the node's units; None for the start of a run.
    """

    def __init__(self, units: Sequence[int], phases: Sequence[int] | None = None):
        self.units = tuple(units)
        self._sums = np.concatenate([[0], np.cumsum(self.units, dtype=np.int64)])
        # A node is known by where it parts its sources: every place between two sources parts one node.
        self._halves = {middle: (low, high) for low, middle, high in _nodes(0, len(self.units))}
        self.phases = tuple(phases or (self._unit(*self._halves[m]) // 2 for m in range(1, len(self.units))))
        self._phase = np.array((0, *self.phases), np.int64)

    def assign(self, examples: ArrayLike) -> tuple[Ints, Ints]:
        """Source of each example and its number within the source, for 0 <= example < 2^62."""
        number = np.asarray(examples, np.int64)
        low, high = np.zeros_like(number), np.full_like(number, len(self.units))
        for _ in range(_levels(len(self.units))):
            middle = (low + high) // 2
            left = self._left(number, low, middle, high)
            goes_left = self._left(number + 1, low, middle, high) > left
            number = np.where(goes_left, left, number - left)
            low, high = np.where(goes_left, low, middle), np.where(goes_left, middle, high)
        return low, number

    def counts(self, examples: ArrayLike) -> Ints:
        """How many of the first `examples` examples belong to each source: int64 [..., sources]."""
        source = np.arange(len(self.units))
        number = np.repeat(np.asarray(examples, np.int64)[..., None], len(self.units), axis=-1)
        low, high = np.zeros_like(source), np.full_like(source, len(self.units))
        for _ in range(_levels(len(self.units))):
            middle = (low + high) // 2
            left = self._left(number, low, middle, high)
            goes_left = source < middle
            number = np.where(goes_left, left, number - left)
            low, high = np.where(goes_left, low, middle), np.where(goes_left, middle, high)
        return number

    def example_of(self, source: int, number: int) -> int:
        """The inverse of `assign`: the example that is number `number` (from 0) of a source with a weight."""
        source, number = int(source), int(number)  # the products below pass 2^63
        # The count of the first j examples lies within the number of levels of j w / sum(w).
        turn = sum(self.units) // self.units[source] + 1
        middle, margin = number * sum(self.units) // self.units[source], (_levels(len(self.units)) + 2) * turn
        low, high = max(0, middle - margin), middle + margin
        while low < high:  # the first example after which the source has more than `number`
            half = (low + high) // 2
            if self._count(source, half + 1) > number:
                high = half
            else:
                low = half + 1
        return low

    def after(self, examples: int, units: Sequence[int]) -> "Shares":
        """The apportionment that goes on after so many examples, with other weights of the same sources."""
        phases, counts = [], self.counts(examples).tolist()
        for middle in range(1, len(units)):
            low, high = self._halves[middle]
            whole, new = self._unit(low, high), sum(units[low:high])
            number = sum(counts[low:high])
            remainder = (self._unit(low, middle) * number + self.phases[middle - 1]) % whole if whole else 0
            phases.append(remainder * new // whole if whole else new // 2)
        return Shares(units, phases)

    def _unit(self, low: int, high: int) -> int:
        return int(self._sums[high] - self._sums[low])

    def _left(self, number: Ints, low: Ints, middle: Ints, high: Ints) -> Ints:
        """How many of a node's first examples go left: 0 where the node is a source, with nothing to its left.

        floor((part * number + phase) / whole), exactly: number is split so that no product passes 2^62.
        """
        part, whole = self._sums[middle] - self._sums[low], self._sums[high] - self._sums[low]
        whole = np.maximum(whole, 1)  # a node without weight holds no examples
        turns, rest = np.divmod(number, whole)
        return np.where(middle > low, part * turns + (part * rest + self._phase[middle]) // whole, 0)

    def _count(self, source: int, examples: int) -> int:
        """`counts` of one source in Python's integers, which are faster for a single number and never overflow."""
        low, high, number = 0, len(self.units), examples
        while high - low > 1:
            middle = (low + high) // 2
            part, whole = self._unit(low, middle), max(self._unit(low, high), 1)
            left = (part * number + self.phases[middle - 1]) // whole
            low, high, number = (low, middle, left) if source < middle else (middle, high, number - left)
        return number


def _nodes(low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """The inner nodes over the sources low..high-1: where each begins, parts and ends."""
    if high - low > 1:
        middle = (low + high) // 2
        yield low, middle, high
        yield from _nodes(low, middle)
        yield from _nodes(middle, high)


def _levels(sources: int) -> int:
    return (sources - 1).bit_length()
