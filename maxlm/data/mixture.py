"""Which source an example comes from, and which of that source's windows it is: a pure function of the schedule.

Shares are integers out of 2^30. The sources of the first j examples are counted in closed form on a balanced
binary tree: at a node with W units, of which V lie in its left half, floor((V j + W // 2) / W) of its first j
examples go left. That count never falls and rises by at most one per example, so every example has one source
and a number within it, and nothing has to be remembered.

A run's schedule is a list of segments. An edited mixture, another batch size and a rewind each append a segment
that goes on where the last one stopped reading, per source; nothing that was read is ever taken back. The whole
state of the loader is `{"examples": g, "schedule": to_json(schedule)}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNITS = 2**30

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A span of the run with one mixture and one batch size; names of sources are kept in sorted order."""

    first_step: int
    first_example: int
    batch_size: int  # examples per step
    seq_len: int  # tokens per example
    weights: Mapping[str, int]  # units out of 2^30 per source
    offsets: Mapping[str, int]  # windows of each source that were read before the segment


Schedule = tuple[Segment, ...]


def start(weights: Mapping[str, float], batch_size: int, seq_len: int) -> Schedule:
    """The schedule of a new run; weights are shares of any sum."""
    units = quantise(weights)
    return (Segment(0, 0, batch_size, seq_len, units, dict.fromkeys(units, 0)),)


def append(
    schedule: Schedule,
    step: int,
    example: int,
    *,
    weights: Mapping[str, float] | None = None,
    batch_size: int | None = None,
) -> Schedule:
    """The schedule that from `step` on reads the examples from number `example` on.

    What was read before that example stays read: every source goes on where it stopped. `step` may lie before
    earlier segments (a rewind). A source that `weights` leaves out keeps its place with weight 0.
    """
    last = schedule[-1]
    if step < 0 or example < last.first_example:
        raise ValueError(f"a segment from step {step}, example {example} cannot follow example {last.first_example}")
    read = counts(example - last.first_example, list(last.weights.values())).tolist()
    offsets = {name: last.offsets[name] + more for name, more in zip(last.weights, read, strict=True)}
    units = last.weights if weights is None else quantise(dict.fromkeys(offsets, 0.0) | dict(weights))
    offsets = {name: offsets.get(name, 0) for name in units}
    return (*schedule, Segment(step, example, batch_size or last.batch_size, last.seq_len, units, offsets))


def examples_of_step(schedule: Schedule, step: int) -> tuple[int, int]:
    """The first example of a step, and how many it has; of segments that overlap in steps the later one counts."""
    segment = next(segment for segment in reversed(schedule) if segment.first_step <= step)
    return segment.first_example + (step - segment.first_step) * segment.batch_size, segment.batch_size


def locate(schedule: Schedule, examples: ArrayLike, names: Sequence[str]) -> tuple[Ints, Ints]:
    """Source and position within the source of each example.

    Args:
        examples: numbers of examples, int64, any shape.
        names: sources in the order that the answer counts them in; at least those with a weight (`KeyError` if not).
    Returns: (index into names, number of the source's windows read before), both int64 of the shape of examples.
    """
    examples = np.asarray(examples, np.int64)
    place = {name: number for number, name in enumerate(names)}
    firsts = [segment.first_example for segment in schedule]
    owner = np.searchsorted(firsts, examples, "right") - 1
    source, position = np.zeros_like(examples), np.zeros_like(examples)
    for number in np.unique(owner):
        segment, mask = schedule[number], owner == number
        index, count = assign(examples[mask] - segment.first_example, list(segment.weights.values()))
        source[mask] = np.array([place[name] if units else -1 for name, units in segment.weights.items()])[index]
        position[mask] = np.array(list(segment.offsets.values()))[index] + count
    return source, position


def to_json(schedule: Schedule) -> list[dict[str, Any]]:
    """The schedule as lists, dictionaries, strings and integers."""
    return [asdict(segment) for segment in schedule]


def from_json(values: Sequence[dict[str, Any]]) -> Schedule:
    """The inverse of `to_json`, whatever the order of the keys."""
    return tuple(
        Segment(**segment | {key: dict(sorted(segment[key].items())) for key in ("weights", "offsets")})
        for segment in values
    )


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


def assign(examples: ArrayLike, weights: Sequence[int]) -> tuple[Ints, Ints]:
    """Source of each example and its number within the source, for 0 <= example < 2^62 and integer weights.

    The number k of examples of source i among the first j keeps |k - j w_i / sum(w)| <= ceil(log2(n)) / 2 at
    every j, with n sources: a node rounds by at most 1/2, and passes its parent's error on scaled down. To that
    the quantisation of shares adds less than j / 2^30, unless there are sources below one unit.
    """
    number = np.asarray(examples, np.int64)
    sums = np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])
    low, high = np.zeros_like(number), np.full_like(number, len(weights))
    for _ in range(_levels(len(weights))):
        middle = (low + high) // 2
        part, whole = sums[middle] - sums[low], sums[high] - sums[low]
        left = _share(number, part, whole)
        goes_left = _share(number + 1, part, whole) > left
        number = np.where(goes_left, left, number - left)
        low, high = np.where(goes_left, low, middle), np.where(goes_left, middle, high)
    return low, number


def counts(examples: ArrayLike, weights: Sequence[int]) -> Ints:
    """How many of the first `examples` examples belong to each source: int64 [..., sources]."""
    sums = np.concatenate([[0], np.cumsum(weights, dtype=np.int64)])
    source = np.arange(len(weights))
    number = np.repeat(np.asarray(examples, np.int64)[..., None], len(weights), axis=-1)
    low, high = np.zeros_like(source), np.full_like(source, len(weights))
    for _ in range(_levels(len(weights))):
        middle = (low + high) // 2
        left = _share(number, sums[middle] - sums[low], sums[high] - sums[low])
        goes_left = source < middle
        number = np.where(goes_left, left, number - left)
        low, high = np.where(goes_left, low, middle), np.where(goes_left, middle, high)
    return number


def _levels(sources: int) -> int:
    return (sources - 1).bit_length()


def _share(number: Ints, part: Ints, whole: Ints) -> Ints:
    """floor((part * number + whole // 2) / whole), exactly: number is split so that no product passes 2^62."""
    whole = np.maximum(whole, 1)  # a node without weight holds no examples
    turns, rest = np.divmod(number, whole)
    return part * turns + (part * rest + whole // 2) // whole
