"""From a step to the documents in it, and from a document to the steps that read it.

Both directions are closed form: nothing here takes longer at a later step or in a longer run. Every number counts from
0; a token of a window counts where it is an input, so the last token of a window's text belongs to the next window.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maxlm.data import order
from maxlm.data.order import SourceOrder
from maxlm.data.schedule import Schedule, Segment
from maxlm.data.sources import Source

Ints = NDArray[np.int64]
State = Literal["read", "undone", "to come"]  # undone: read, before a rewind went back behind it


class Example(NamedTuple):
    """A row of a batch: which window of which source."""

    row: int
    number: int  # of the run
    source: str
    epoch: int
    block: int
    window: int


class Fragment(NamedTuple):
    """Tokens of one document in an example."""

    shard: int
    row: int  # of the document in its shard
    first: int  # which token of the document comes first
    length: int
    slot: int  # of the example, where the first token lies
    document_tokens: int  # of the whole document


class Reading(NamedTuple):
    """A window that is read at a step."""

    step: int
    row: int
    example: int
    state: State
    epoch: int
    block: int
    window: int
    seq_len: int


class _Stretch(NamedTuple):
    """Positions low..high of a source, which are read one after the other, in windows of one length."""

    segments: Sequence[Segment]
    low: int
    high: int
    state: State


def examples_of(sources: Mapping[str, Source], schedule: Schedule, step: int, rows: Sequence[int]) -> list[Example]:
    """What rows of a step's batch are; only rows below `schedule.span(step).examples` have an example."""
    span, names = schedule.span(step), list(sources)
    numbers = span.first_example + np.asarray(rows, np.int64)
    source, position = schedule.locate(numbers, names)
    orders = [one.order(span.seq_len) for one in sources.values()]
    block, window = order.window_order(orders, source, position)
    epoch = position // np.array([one.windows for one in orders])[source]
    places = (rows, numbers, source, epoch, block, window)
    return [
        Example(row, number, names[index], *place)
        for row, number, index, *place in zip(*(np.asarray(part).tolist() for part in places), strict=True)
    ]


def fragments(source: Source, seq_len: int, block: int, window: int) -> list[Fragment]:
    """The documents of a window, in the order of its slots."""
    found = []
    for piece in source.pieces(seq_len, block, window):
        stop = piece.first + piece.length
        for shard, row, start, end in source.shards.documents(piece.first, stop).tolist():
            low, high = max(start, piece.first), min(end, stop)
            slot = piece.slot + low - piece.first
            found.append(Fragment(shard, row, low - start, high - low, slot, end - start))
    return found


class Readings:
    """Everything that a run reads of one document, in the order in which it does.

    Args:
        source: that the document belongs to.
        schedule: of the run.
        place: shard and row of the document.
        done: examples that were read so far.
        end: examples of the whole run.
    """

    def __init__(self, source: Source, schedule: Schedule, place: tuple[int, int], done: int, end: int):
        self.source, self.schedule = source, schedule
        self.first, stop = source.shards.span(*place)
        self.tokens = stop - self.first
        self._stretches = list(_stretches(schedule, source.name, done, end))

    def counts(self) -> dict[State, int]:
        """How often windows of the document are read: a count of epochs, whose ends alone are looked at."""
        found: Counter[State] = Counter()
        for stretch in self._stretches:
            order_, windows = self._windows(stretch)
            first, last = (position // order_.windows for position in (stretch.low, stretch.high - 1))
            before = (self._positions(order_, first, windows)[0] < stretch.low).sum()
            after = (self._positions(order_, last, windows)[0] >= stretch.high).sum()
            found[stretch.state] += (last - first + 1) * sum(map(len, windows.values())) - int(before + after)
        return {state: found[state] for state in ("read", "undone", "to come")}

    def __iter__(self) -> Iterator[Reading]:
        for stretch in self._stretches:
            order_, windows = self._windows(stretch)
            offsets = [segment.offsets.get(self.source.name, 0) for segment in stretch.segments]
            for epoch in range(stretch.low // order_.windows, (stretch.high - 1) // order_.windows + 1):
                position, *places = self._positions(order_, epoch, windows)
                inside = (position >= stretch.low) & (position < stretch.high)
                for number, *place in zip(*(part[inside].tolist() for part in (position, *places)), strict=True):
                    segment = stretch.segments[bisect_right(offsets, number) - 1]
                    yield self._reading(segment, number, stretch.state, epoch, *place)

    def _reading(self, segment: Segment, position: int, state: State, epoch: int, block: int, window: int) -> Reading:
        index = list(segment.weights).index(self.source.name)
        inside = segment.shares.example_of(index, position - segment.offsets[self.source.name])
        example, row = segment.first_example + inside, (inside + segment.lead) % segment.batch_size
        return Reading(self.schedule.step_of(example), row, example, state, epoch, block, window, segment.seq_len)

    def _windows(self, stretch: _Stretch) -> tuple[SourceOrder, dict[int, Ints]]:
        """The order of the stretch, and the document's windows by block."""
        seq_len, windows = stretch.segments[0].seq_len, {}
        for block, window in self.source.windows_of(seq_len, self.first, self.tokens):
            windows.setdefault(block, []).append(window)
        return self.source.order(seq_len), {block: np.array(some) for block, some in windows.items()}

    @staticmethod
    def _positions(order_: SourceOrder, epoch: int, windows: dict[int, Ints]) -> Ints:
        """Position, block and window of each of the windows in an epoch, as it reads them: int64 [3, windows]."""
        parts = [
            np.stack([order_.position(epoch, block, some), np.full_like(some, block), some])
            for block, some in windows.items()
        ]
        found = np.concatenate([np.zeros((3, 0), np.int64), *parts], axis=1)
        return found[:, np.argsort(found[0])]


def _stretches(schedule: Schedule, name: str, done: int, end: int) -> Iterator[_Stretch]:
    """The examples below `end`, cut where their length or their state changes, as positions of a source."""
    segments, states = schedule.segments, _states(schedule, done, end)
    groups = [list(group) for _, group in groupby(segments, key=lambda segment: segment.seq_len)]
    bounds = [*(group[0].first_example for group in groups), end]
    for group, (first, last) in zip(groups, pairwise(bounds), strict=True):
        for start, stop, state in states:
            if max(start, first) < min(stop, last):
                low, high = (_offset(group, name, example) for example in (max(start, first), min(stop, last)))
                if low < high:
                    yield _Stretch(group, low, high, state)


def _states(schedule: Schedule, done: int, end: int) -> list[tuple[int, int, State]]:
    """The examples below `end`, cut where their state changes: (first, exclusive end, state)."""
    undone = [
        (Schedule(schedule.segments[:number]).point(segment.first_step).example, segment.first_example)
        for number, segment in enumerate(schedule.segments)
        if segment.kind == "rewind"
    ]
    cuts = sorted({0, min(done, end), end, *(example for span in undone for example in span)})

    def state(example: int) -> State:
        if any(first <= example < last for first, last in undone):
            return "undone"
        return "read" if example < done else "to come"

    return [(first, last, state(first)) for first, last in pairwise(cuts)]


def _offset(group: Sequence[Segment], name: str, example: int) -> int:
    """Windows of a source that are read before an example of a group of segments."""
    number = bisect_right([segment.first_example for segment in group], example) - 1
    return group[number].read(example - group[number].first_example).get(name, 0)
