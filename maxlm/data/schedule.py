"""What a run reads, and at which step: a list of segments, each with one mixture and one shape of batch.

`begin` lays out a whole run from the stages of its configuration. An edited mixture, a dynamic one and a rewind lay out
the rest of the run anew from a step on; nothing that was read is ever taken back. Stages end at an example, wherever
that lies in a batch. Only where the shape of the batch changes, the step before is filled up with empty examples, and
where the length of an example changes, every source goes on with its next block, since windows of two lengths share
no other boundary.

The whole state of the loader is `{"examples": g, "schedule": [...]}`: host integers, exact however long the run is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import floor
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxlm.data.mixture import UNITS, Shares, quantise
from maxlm.data.order import SourceOrder

MAX_EXAMPLES = 2**62  # the apportionment counts no further: a limit that lies behind is none

Ints = NDArray[np.int64]


class Supply(Protocol):
    """What laying out a run has to know of a source."""

    max_epochs: float | None

    def order(self, seq_len: int) -> SourceOrder: ...


@dataclass(frozen=True)
class Stage:
    """A part of the run as it is configured: `tokens` counts slots, `weights` are shares of any sum."""

    tokens: int
    weights: Mapping[str, float]
    batch_size: int  # examples per step
    seq_len: int  # tokens per example


class Point(NamedTuple):
    """Where a run is before a step: `tokens` slots were trained on, `example` is the next one to be read."""

    step: int
    tokens: int
    example: int


class Span(NamedTuple):
    """What a step reads: of its `batch_size` examples the first `examples` are real and the others empty."""

    first_example: int
    examples: int
    batch_size: int
    seq_len: int
    first_tokens: int  # slots before the step

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch_size, self.seq_len

    @property
    def tokens(self) -> int:
        """Slots of the real examples."""
        return self.examples * self.seq_len


@dataclass(frozen=True)
class Segment:
    """A span of the run with one mixture and one shape; names of sources are kept in sorted order."""

    kind: Literal["start", "stage", "edit", "exhausted", "online", "rewind", "end"]  # why it begins
    stage: int  # of the configuration, from 0
    first_step: int  # the step that reads the first example
    lead: int  # examples of that step that belong to segments before
    first_example: int
    first_tokens: int  # slots before the first example
    batch_size: int  # examples per step
    seq_len: int  # tokens per example
    weights: Mapping[str, int]  # units out of 2^30 per source; all 0 where nothing is left to read
    offsets: Mapping[str, int]  # windows of each source that were read before the segment
    phases: tuple[int, ...]  # of the apportionment
    abandoned: Mapping[str, int]  # windows of the length before that are left out, per source

    @cached_property
    def shares(self) -> Shares:
        return Shares(list(self.weights.values()), self.phases)

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch_size, self.seq_len

    def describe(self) -> dict[str, Any]:
        """What begins here, for people and events; what is abandoned counts windows of the length before."""
        return {
            "why": self.kind,
            "stage": self.stage,
            "example": self.first_example,
            "shares": {name: round(units / UNITS, 6) for name, units in self.weights.items() if units},
            "seq_len": self.seq_len,
            "batch_tokens": self.batch_size * self.seq_len,
            "abandoned": dict(self.abandoned),
        }

    def read(self, examples: int) -> dict[str, int]:
        """Windows of each source that were read before example number `examples` of the segment."""
        if self.kind == "end":
            return dict(self.offsets)
        counts = self.shares.counts(examples).tolist()
        return {name: self.offsets[name] + count for name, count in zip(self.weights, counts, strict=True)}


@dataclass(frozen=True)
class Schedule:
    """Segments in the order in which their examples are read.

    A rewind goes back in steps, so several segments may claim a step: the later one counts.
    """

    segments: tuple[Segment, ...]

    def span(self, step: int) -> Span:
        """What a step reads."""
        number = self._number(step)
        segment = self.segments[number]
        before = (step - segment.first_step) * segment.batch_size - segment.lead
        first, tokens = segment.first_example + before, segment.first_tokens + before * segment.seq_len
        examples = 0 if segment.kind == "end" else segment.batch_size
        if number + 1 < len(self.segments):
            examples = min(examples, self.segments[number + 1].first_example - first)
        return Span(first, examples, segment.batch_size, segment.seq_len, tokens)

    def point(self, step: int) -> Point:
        """Where the run is before a step."""
        span = self.span(step)
        return Point(step, span.first_tokens, span.first_example)

    def beginning(self, step: int) -> list[Segment]:
        """Segments whose first example a step reads, or that end the run before it."""
        first = self.point(step).example  # after a rewind, earlier segments have the same step
        return [s for s in self.segments if s.first_step == step and s.first_example >= first]

    def weights(self, step: int) -> dict[str, float]:
        """Shares of the sources at the end of a step."""
        return {name: units / UNITS for name, units in self.segments[self._number(step)].weights.items()}

    def following(self, step: int) -> tuple[Segment, ...]:
        """Segments from that of a step on."""
        return self.segments[self._number(step) :]

    def locate(self, examples: ArrayLike, names: Sequence[str]) -> tuple[Ints, Ints]:
        """Source and position within the source of each example.

        Args:
            examples: numbers of examples, int64, any shape.
            names: sources in the order that the answer counts them in; at least those with a weight (`KeyError` if
                not).
        Returns: (index into names, number of the source's windows read before), both int64 of the shape of examples.
        """
        examples = np.asarray(examples, np.int64)
        place = {name: number for number, name in enumerate(names)}
        owner = self._first_examples.searchsorted(examples, "right") - 1
        source, position = np.zeros_like(examples), np.zeros_like(examples)
        for number in np.unique(owner).tolist():
            segment, mask = self.segments[number], owner == number
            index, count = segment.shares.assign(examples[mask] - segment.first_example)
            source[mask] = np.array([place[name] if units else -1 for name, units in segment.weights.items()])[index]
            position[mask] = np.array(list(segment.offsets.values()))[index] + count
        return source, position

    def owner(self, example: int) -> Segment:
        """The segment that an example belongs to."""
        return self.segments[int(self._first_examples.searchsorted(example, "right")) - 1]

    def step_of(self, example: int) -> int:
        """The step that reads an example, or read it before a rewind (then the step's span is another)."""
        segment = self.owner(example)
        return segment.first_step + (example - segment.first_example + segment.lead) // segment.batch_size

    def step_at(self, slot: int) -> int:
        """The step that trains on a slot of the run."""
        segment = next(segment for segment in reversed(self.segments) if segment.first_tokens <= slot)
        slots = slot - segment.first_tokens + segment.lead * segment.seq_len
        return segment.first_step + slots // (segment.batch_size * segment.seq_len)

    def steps(self, total_tokens: int) -> int:
        """Steps of a run of `total_tokens` slots; fewer where nothing is left to read."""
        segment = next(s for s in reversed(self.segments) if s.first_tokens < total_tokens or not s.first_tokens)
        if segment.kind == "end":
            return segment.first_step
        slots = total_tokens - segment.first_tokens + segment.lead * segment.seq_len
        return segment.first_step + -(-slots // (segment.batch_size * segment.seq_len))

    def tokens(self, total_tokens: int) -> int:
        """Slots of a run of `total_tokens`; fewer where nothing is left to read."""
        last = self.segments[-1]
        return min(total_tokens, last.first_tokens) if last.kind == "end" else total_tokens

    def to_json(self) -> list[dict[str, Any]]:
        """The segments as lists, dictionaries, strings and integers."""
        return [asdict(segment) | {"phases": list(segment.phases)} for segment in self.segments]

    @staticmethod
    def from_json(values: Sequence[dict[str, Any]]) -> "Schedule":
        """The inverse of `to_json`, whatever the order of the keys."""
        named = ("weights", "offsets", "abandoned")
        return Schedule(
            tuple(
                Segment(
                    **segment
                    | {key: dict(sorted(segment[key].items())) for key in named}
                    | {"phases": tuple(segment["phases"])}
                )
                for segment in values
            )
        )

    @cached_property
    def _first_examples(self) -> Ints:
        return np.array([segment.first_example for segment in self.segments], np.int64)

    def _number(self, step: int) -> int:
        return next(n for n in reversed(range(len(self.segments))) if self.segments[n].first_step <= step)


@dataclass(frozen=True)
class Layout:
    """Lays out runs: stages of a configuration over the sources that it names.

    `exhausted` says what happens when a source has been read `max_epochs` times: the run stops there, or goes on with
    the shares of the other sources (renormalise) until none is left.
    """

    stages: Sequence[Stage]
    supplies: Mapping[str, Supply]
    exhausted: Literal["stop", "renormalise"] = "stop"

    def begin(self) -> Schedule:
        """The schedule of a new run."""
        return self._lay((), Point(0, 0, 0), "start")

    def edit(self, schedule: Schedule, at: Point) -> Schedule:
        """The schedule that follows the stages from a point on; the same where they say what it said already."""
        past = _before(schedule, at.example)
        if not past:
            return self.begin()
        first, *rest = self._lay(past, at, "edit").segments[len(past) :]
        if said := [segment for segment in schedule.segments if replace(first, kind=segment.kind) == segment]:
            return Schedule((*past, *said, *rest))
        # Where a batch was filled up or a rewind begins, what was read does not go on by itself.
        goes_on = Schedule(past).point(at.step) == at
        if goes_on and (first.weights, first.shape) == (past[-1].weights, past[-1].shape):
            return Schedule((*past, *rest))
        return Schedule((*past, first, *rest))

    def rewind(self, schedule: Schedule, at: Point) -> Schedule:
        """The schedule that goes back to a step, with the data going on from the point's example."""
        return self._lay(_before(schedule, at.example), at, "rewind")

    def reweigh(self, schedule: Schedule, step: int) -> Schedule:
        """The schedule that follows the stages from a step to come on, because a dynamic mixture has changed them.

        The same where the data ends before.
        """
        last = schedule.segments[-1]
        if last.kind == "end" and last.first_step <= step:
            return schedule
        at = schedule.point(step)
        return self._lay(_before(schedule, at.example), at, "online")

    def weighted(self, weights: Mapping[str, float]) -> "Layout":
        """The layout with other weights of its only stage."""
        (stage,) = self.stages
        return replace(self, stages=[replace(stage, weights=weights)])

    def _lay(self, past: tuple[Segment, ...], at: Point, kind: str) -> Schedule:
        laid, lead = list(past), 0
        for number, end in enumerate(accumulate(stage.tokens for stage in self.stages)):
            stage, last = self.stages[number], number == len(self.stages) - 1
            while last or at.tokens < end:
                segment = self._segment(laid[-1] if laid else None, kind, number, at, lead)
                if not any(segment.weights.values()):
                    return Schedule((*laid, _end(laid[-1], at, lead)))
                length, used_up = self._length(segment, None if last else -(-(end - at.tokens) // stage.seq_len))
                if length is None:
                    return Schedule((*laid, segment))
                if length:
                    laid.append(segment)
                    steps, lead = divmod(segment.lead + length, stage.batch_size)
                    tokens, example = at.tokens + length * stage.seq_len, at.example + length
                    at = Point(segment.first_step + steps, tokens, example)
                if used_up and self.exhausted == "stop":
                    return Schedule((*laid, _end(laid[-1], at, lead)))
                kind = "exhausted" if used_up else "stage"
        raise AssertionError("the last stage has no end")

    def _segment(self, before: Segment | None, kind: str, number: int, at: Point, lead: int) -> Segment:
        """The segment of a stage from a point on, `lead` examples of whose step belong to segments before."""
        stage = self.stages[number]
        shape = stage.batch_size, stage.seq_len
        offsets, abandoned = dict.fromkeys(sorted(self.supplies), 0), {}
        if before:
            offsets |= before.read(at.example - before.first_example)
            if before.seq_len != stage.seq_len:
                offsets, abandoned = self._next_blocks(offsets, before.seq_len, stage.seq_len)
            if lead and before.shape != shape:
                at, lead = at._replace(step=at.step + 1), 0
        weights = {name: float(stage.weights.get(name, 0)) for name in offsets}
        if self.exhausted == "renormalise":
            used_up = [
                name
                for name, offset in offsets.items()
                if windows_left(self.supplies[name], offset, stage.seq_len) == 0
            ]
            weights |= dict.fromkeys(used_up, 0.0)
        units = quantise(weights) if any(weights.values()) else dict.fromkeys(weights, 0)
        phases = _phases(before, at.example, units)
        place = at.step, lead, at.example, at.tokens
        return Segment(kind, number, *place, *shape, units, offsets, phases, abandoned)

    def _length(self, segment: Segment, left: int | None) -> tuple[int | None, bool]:
        """Examples of the segment (None: no end), of at most `left`, and whether a source is used up then."""
        ends = []
        for number, (name, units) in enumerate(segment.weights.items()):
            windows = windows_left(self.supplies[name], segment.offsets[name], segment.seq_len)
            if units and windows is not None:
                ends.append(segment.shares.example_of(number, windows - 1) + 1 if windows else 0)
        if ends and min(ends) < (MAX_EXAMPLES - segment.first_example if left is None else left):
            return min(ends), True
        return left, False

    def _next_blocks(self, offsets: dict[str, int], old: int, new: int) -> tuple[dict[str, int], dict[str, int]]:
        """Offsets in windows of another length, and what is abandoned for it."""
        moved = {
            name: self.supplies[name].order(old).next_block(offset, self.supplies[name].order(new))
            for name, offset in offsets.items()
        }
        return {name: place for name, (place, _) in moved.items()}, {name: n for name, (_, n) in moved.items() if n}


def windows_left(supply: Supply, offset: int, seq_len: int) -> int | None:
    """Windows of a source that may still be read after so many; None for no limit."""
    if supply.max_epochs is None:
        return None
    return max(0, max(1, floor(supply.max_epochs * supply.order(seq_len).windows)) - offset)


def _phases(before: Segment | None, example: int, units: dict[str, int]) -> tuple[int, ...]:
    """Phases of the apportionment from an example on; other sources begin it anew."""
    if not any(units.values()):
        return ()
    if before is None or list(before.weights) != list(units) or before.kind == "end":
        return Shares(list(units.values())).phases
    return before.shares.after(example - before.first_example, list(units.values())).phases


def _end(before: Segment, at: Point, lead: int) -> Segment:
    """The segment behind the last example: it has the shape of the one before, and no examples."""
    offsets = before.read(at.example - before.first_example)
    place = {"first_step": at.step + (lead > 0), "lead": 0, "first_example": at.example, "first_tokens": at.tokens}
    nothing = {"weights": dict.fromkeys(offsets, 0), "offsets": offsets, "phases": (), "abandoned": {}}
    return replace(before, kind="end", **place, **nothing)


def _before(schedule: Schedule, example: int) -> tuple[Segment, ...]:
    """Segments that have been read from, when `example` is the next one."""
    return tuple(segment for segment in schedule.segments if segment.first_example < example)
