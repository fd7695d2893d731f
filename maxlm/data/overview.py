"""What a run reads, summed up: for every part of its schedule the slots of each source, epochs, and what is left out.

Counts are those of the schedule, as the steps read them; what a rewind undid is counted apart.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from maxlm.data.mixture import UNITS
from maxlm.data.schedule import Schedule, Segment, Supply, windows_left


@dataclass(frozen=True)
class Part:
    """A segment as far as it counts in the run; one of kind "end" has no examples."""

    segment: Segment
    examples: int
    empty: int  # examples that fill up its last step
    undone: int  # examples that were read before a rewind went back behind them
    read: Mapping[str, int]  # windows of each source that has a weight
    epochs: Mapping[str, float]  # read from the start of the run to its end, of the sources whose size is known
    used_up: tuple[str, ...]  # sources that have reached max_epochs where it begins
    abandoned: Mapping[str, int]  # slots that its beginning leaves out, of the sources whose size is known

    @property
    def tokens(self) -> int:
        """Slots."""
        return self.examples * self.segment.seq_len

    @property
    def last_step(self) -> int:
        """The step that reads its last example."""
        return self.segment.first_step + max(0, self.segment.lead + self.examples - 1) // self.segment.batch_size

    @property
    def tokens_by_source(self) -> dict[str, int]:
        """Slots of each source that has a weight."""
        return {name: windows * self.segment.seq_len for name, windows in self.read.items()}


@dataclass(frozen=True)
class Overview:
    """Parts in the order of their steps."""

    parts: Sequence[Part]
    total_tokens: int  # slots that the configuration asks for
    steps: int
    unknown: tuple[str, ...]  # sources whose data are not here

    @property
    def tokens(self) -> int:
        """Slots of the whole run: more than asked for by less than a step, or fewer where data run out."""
        return sum(part.tokens for part in self.parts)

    @cached_property
    def tokens_by_source(self) -> dict[str, int]:
        """Slots of each source that has a weight somewhere, the most first."""
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(part.tokens_by_source)
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    @property
    def steps_by_shape(self) -> dict[tuple[int, int], int]:
        """Steps of every (examples, tokens per example)."""
        examples: Counter[tuple[int, int]] = Counter()
        for part in self.parts:
            examples[part.segment.shape] += part.examples + part.empty
        return {shape: count // shape[0] for shape, count in examples.items() if count}

    def shares(self, columns: int) -> NDArray[np.float64]:
        """What equal spans of the run's slots are made of, by the weights: [columns, sources of tokens_by_source]."""
        parts = [part for part in self.parts if part.tokens]
        weights = np.array([[part.segment.weights.get(name, 0) for name in self.tokens_by_source] for part in parts])
        slots = np.array([part.tokens for part in parts])
        ends, totals = np.cumsum(slots), np.cumsum(slots[:, None] * (weights / UNITS), axis=0)
        edges = np.linspace(0, ends[-1], columns + 1)
        read = [np.interp(edges, np.append(0, ends), np.append(0, total)) for total in totals.T]
        return np.diff(np.array(read)).T * columns / ends[-1]


def overview(
    schedule: Schedule, total_tokens: int, supplies: Mapping[str, Supply], unknown: Sequence[str] = ()
) -> Overview:
    """The parts of a run of `total_tokens` slots.

    Args:
        supplies: the sources by name.
        unknown: those of them that stand in for data that are not here; nothing is said of their epochs.
    """
    steps, segments = schedule.steps(total_tokens), schedule.segments
    last = schedule.span(steps - 1)
    end = last.first_tokens + last.tokens
    # What counts of a segment ends with the first slot of any later one: a rewind goes back in slots.
    stops = list(accumulate((segment.first_tokens for segment in segments[:0:-1]), min, initial=end))[::-1]
    known, parts = sorted(supplies.keys() - {*unknown}), []
    epochs = dict.fromkeys(known, 0.0)
    for segment, stop, before, after in zip(segments, stops, (None, *segments), (*segments[1:], None), strict=False):
        if segment.first_tokens > end:
            break
        examples = max(0, stop - segment.first_tokens) // segment.seq_len
        read = _read(segment, examples, after)
        windows = {name: supplies[name].order(segment.seq_len).windows for name in known}
        epochs = {name: done + read.get(name, 0) / windows[name] for name, done in epochs.items()}
        goes_back = after is not None and (after.kind == "rewind" or stop < min(after.first_tokens, end))
        undone = after.first_example - segment.first_example - examples if goes_back else 0
        fills = after is not None and not goes_back and after.first_tokens <= end and _is_filled(segment, after)
        empty = -(segment.lead + examples) % segment.batch_size if fills else 0
        if examples or undone or segment.kind == "end":
            left_out = {name: n * before.seq_len for name, n in segment.abandoned.items() if name in windows}
            parts.append(
                Part(segment, examples, empty, undone, read, epochs, _used_up(before, segment, supplies), left_out)
            )
    return Overview(parts, total_tokens, steps, tuple(unknown))


def _read(segment: Segment, examples: int, after: Segment | None) -> dict[str, int]:
    """Windows of each source with a weight in the first examples of a segment."""
    if after and (after.seq_len, after.first_example) == (segment.seq_len, segment.first_example + examples):
        until = after.offsets  # known without counting; there may be ten thousand segments
    else:
        until = segment.read(examples)
    return {name: until[name] - segment.offsets[name] for name, units in segment.weights.items() if units}


def _is_filled(segment: Segment, after: Segment) -> bool:
    """Whether a segment's last step is filled up with empty examples: none of the next are in it."""
    return after.kind == "end" or after.shape != segment.shape


def _used_up(before: Segment | None, segment: Segment, supplies: Mapping[str, Supply]) -> tuple[str, ...]:
    """Sources that were read until a segment and have nothing left there."""
    read = [name for name, units in before.weights.items() if units] if before else []
    return tuple(name for name in read if windows_left(supplies[name], segment.offsets[name], segment.seq_len) == 0)
