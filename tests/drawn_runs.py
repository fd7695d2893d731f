"""Runs drawn at random over sources that exist only as numbers, and a walk through them as training does it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from hypothesis import strategies as st

from maxlm.data import order
from maxlm.data.schedule import Layout, Schedule, Segment, Span, Stage
from maxlm.train.position import Position

BLOCK = 24  # tokens; small, so that a few hundred examples pass through blocks and epochs


class MadeUp:
    """A source of `tokens` tokens in blocks of `block`."""

    def __init__(self, name: str, tokens: int, max_epochs: float | None = None, shuffled: bool = True, block=BLOCK):
        self.name, self.inputs, self.max_epochs = name, tokens - 1, max_epochs
        self.shuffled, self.block = shuffled, block
        self.order = cache(self._order)

    def _order(self, seq_len: int) -> order.SourceOrder:
        inputs = np.minimum(self.block, self.inputs - np.arange(0, self.inputs, self.block))
        return order.SourceOrder(-(-inputs // seq_len), 5, order.source_id(self.name), self.shuffled)

    def inputs_of(self, seq_len: int, first: int, count: int) -> list[tuple[int, range]]:
        """Epoch and inputs of the windows at consecutive positions."""
        one, position = self.order(seq_len), np.arange(first, first + count)
        block, window = order.window_order([one], np.zeros_like(position), position)
        begin = block * self.block + window * seq_len
        end = np.minimum(begin + seq_len, np.minimum((block + 1) * self.block, self.inputs))
        held = map(range, begin.tolist(), end.tolist())
        return list(zip((position // one.windows).tolist(), held, strict=True))

    def limit(self, seq_len: int) -> int | None:
        """Windows that may be read."""
        return None if self.max_epochs is None else int(self.max_epochs * self.order(seq_len).windows)


def weights_of(names: list[str], random: np.random.Generator) -> dict[str, float]:
    """Weights of 1e-6 to 1, and zeros, of which some are left out."""
    weights = np.where(random.random(len(names)) < 0.3, 0.0, 10 ** random.uniform(-6, 0, len(names)))
    weights[random.integers(len(names))] = 1.0
    drawn = dict(zip(names, weights.tolist(), strict=True))
    return {name: weight for name, weight in drawn.items() if weight or random.random() < 0.5}


def stages(names: list[str], random: np.random.Generator, seq_lens=(1, 3, 5, 8), most: int = 4):
    """Lists of stages, some shorter than an example and some of many steps."""
    shapes = st.tuples(st.integers(1, 400), st.integers(1, 9), st.sampled_from(seq_lens))
    return st.lists(shapes, min_size=1, max_size=most).map(
        lambda drawn: [Stage(tokens, weights_of(names, random), size, length) for tokens, size, length in drawn]
    )


@st.composite
def layouts(draw: Callable, limits: bool = False, seq_lens=(1, 3, 5, 8)) -> Layout:
    """Runs of 1 to 100 sources, of which with `limits` some are read a limited number of times."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = [f"source{number}" for number in range(draw(st.sampled_from((1, 2, 3, 5, 8, 30, 100))))]
    supplies = {}
    for name in names:
        tokens = int(random.integers(2, 160))
        # At least one window, whatever its length.
        limit = random.uniform(1, 3) if limits and random.random() < 0.3 else None
        supplies[name] = MadeUp(name, tokens, limit, shuffled=random.random() < 0.7)
    exhausted = draw(st.sampled_from(("stop", "renormalise"))) if limits else "stop"
    return Layout(draw(stages(names, random, seq_lens)), supplies, exhausted)


class Walk:
    """A run read step by step, with all that was read and what the schedule said of it then."""

    def __init__(self, layout: Layout):
        self.layout, self.position = layout, Position(0, 0, 0, 0, layout.begin())
        self.saved = [self.position]  # what a checkpoint of each step would hold
        self.laid_out_by: list[Layout | None] = [layout]  # what the rest of each says; None for shares set in the run
        self.spans: list[Span] = []
        self.following: list[Span] = []  # of each step, what the schedule said of the next one
        self.beginning: list[list[Segment]] = []
        self.sources: list[str] = []  # of each example
        self.positions: list[int] = []

    @property
    def schedule(self) -> Schedule:
        return self.position.schedule

    def step(self) -> None:
        """Read the step's examples as the loader does."""
        step, span, names = self.position.step, self.position.span, sorted(self.layout.supplies)
        assert self.schedule.point(step) == self.position.point
        source, position = located(self.schedule, names, span.first_example, span.examples)
        self.spans.append(span)
        self.following.append(self.schedule.span(step + 1))
        self.beginning.append(self.schedule.beginning(step))
        self.sources += source
        self.positions += position
        self.position = self.position.advanced()
        self._save(self.laid_out_by[-1])

    def steps(self, count: int) -> None:
        """Read on, at most to the end of the data."""
        for _ in range(count):
            if self.position.finished(10**9):
                break
            self.step()

    def edit(self, layout: Layout) -> None:
        self.layout, self.position = layout, self.position.edited(layout)
        self._save(layout)

    def reweigh(self, weights: dict[str, float], after: int) -> None:
        """Other weights after some more steps, as a mixture that follows the losses sets them."""
        layout = replace(self.layout, stages=self.layout.stages[-1:]).weighted(weights)
        schedule = layout.reweigh(self.schedule, self.position.step + after)
        self.position = replace(self.position, schedule=schedule)
        self._save(None)

    def rewind(self, steps: int) -> None:
        """Back by some steps; the data goes on."""
        saved = self.saved[max(0, len(self.saved) - 1 - steps)]
        self.position = self.position.rewound(saved, self.layout)
        self._save(self.layout)

    def _save(self, laid_out_by: Layout | None) -> None:
        del self.saved[self.position.step :], self.laid_out_by[self.position.step :]
        self.saved.append(self.position)
        self.laid_out_by.append(laid_out_by)


def located(schedule: Schedule, names: list[str], first: int, count: int) -> tuple[list[str], list[int]]:
    """Names and positions of consecutive examples."""
    source, position = schedule.locate(np.arange(first, first + count), names)
    return [names[number] for number in source.tolist()], position.tolist()


@st.composite
def walks(draw: Callable, limits: bool = False, seq_lens=(1, 3, 5, 8)) -> Walk:
    """Runs that were edited, given other sources and shares, and wound back."""
    walk = Walk(draw(layouts(limits, seq_lens)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for what in draw(st.lists(st.sampled_from(("same", "edit", "source", "reweigh", "rewind")), max_size=4)):
        walk.steps(draw(st.integers(0, 12)))
        layout = walk.layout
        if what == "rewind" and walk.position.step:
            walk.rewind(draw(st.integers(0, 5)))
        elif what == "reweigh":
            walk.reweigh(weights_of(sorted(layout.supplies), random), draw(st.integers(0, 4)))
        elif what != "rewind":
            if what == "source":
                name = f"another{len(layout.supplies)}"
                layout = replace(layout, supplies=layout.supplies | {name: MadeUp(name, int(random.integers(2, 160)))})
            if what != "same":
                layout = replace(layout, stages=draw(stages(sorted(layout.supplies), random, seq_lens)))
            walk.edit(layout)
    walk.steps(draw(st.integers(1, 60)))
    return walk
