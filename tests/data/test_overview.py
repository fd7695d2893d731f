"""What is summed up of a run is what its steps read."""

from collections import Counter

import numpy as np
import pytest
from tiny import STAGES

from maxlm.config import SourceConfig
from maxlm.data import order
from maxlm.data.loader import Batches
from maxlm.data.overview import overview
from maxlm.data.schedule import Layout, Point, Stage
from maxlm.data.sources import Endless, Source

TOTAL = sum(stage.tokens for stage in STAGES)


@pytest.fixture
def opened(two_sources, monkeypatch):
    """opened(web=1.5): the sources with their max_epochs."""
    monkeypatch.setattr(order, "BLOCK_TOKENS", 240)

    def opened(**limits):
        configs = {name: SourceConfig(path="", max_epochs=limits.get(name)) for name in two_sources}
        return {name: Source(name, two_sources[name], config, seed=5) for name, config in configs.items()}

    return opened


def test_counts_are_those_of_the_batches(opened):
    sources = opened()
    schedule = Layout(STAGES, sources).begin()
    found = overview(schedule, TOTAL, sources)
    batches = Batches(sources, schedule, rows={8: range(8), 4: range(4)}, num_steps=found.steps)
    slots, empty = Counter(), 0
    for step in range(found.steps):
        batch, span = batches[step], schedule.span(step)
        for row in range(span.batch_size):
            if row < span.examples:
                slots[batches.names[batch["sources"][row]]] += span.seq_len
            empty += row >= span.examples
    assert found.tokens_by_source == slots and found.tokens == sum(slots.values())
    assert sum(part.empty for part in found.parts) == empty > 0
    assert sum(found.steps_by_shape.values()) == found.steps
    assert TOTAL <= found.tokens < TOTAL + 16 * 8
    assert [part.tokens for part in found.parts][:3] == [stage.tokens for stage in STAGES[:3]]
    for part in found.parts:
        assert schedule.owner(part.segment.first_example + part.examples - 1) is part.segment
        assert schedule.step_of(part.segment.first_example + part.examples - 1) == part.last_step


def test_epochs_are_windows_read_over_those_there_are(opened):
    sources = opened()
    stage = Stage(24 * 4 * 100, {"web": 1, "code": 1}, 4, 24)
    (part,) = overview(Layout([stage], sources).begin(), stage.tokens, sources).parts
    assert part.epochs == {name: 200 / sources[name].order(24).windows for name in sources}
    parts = overview(Layout(STAGES, sources).begin(), TOTAL, sources).parts
    for name in sources:
        expected = sum(part.read.get(name, 0) / sources[name].order(part.segment.seq_len).windows for part in parts)
        assert parts[-1].epochs[name] == pytest.approx(expected)


def test_what_a_change_of_length_leaves_out_is_less_than_a_block(opened):
    sources = opened()
    parts = overview(Layout(STAGES, sources).begin(), TOTAL, sources).parts
    assert parts[0].abandoned == parts[1].abandoned == {}
    left_out = [tokens for part in parts[2:] for tokens in part.abandoned.values()]
    assert left_out and all(0 < tokens <= 240 for tokens in left_out)


@pytest.mark.parametrize("exhausted", ["stop", "renormalise"])
def test_where_data_run_out_is_told(opened, exhausted):
    sources = opened(code=1.5)
    stages = [Stage(16 * 8 * 100, {"web": 1, "code": 2}, 8, 16)]
    found = overview(Layout(stages, sources, exhausted).begin(), 16 * 8 * 100, sources)
    after = next(part for part in found.parts if part.used_up)
    assert after.used_up == ("code",)
    assert after.segment.kind == ("end" if exhausted == "stop" else "exhausted")
    assert (found.tokens < 16 * 8 * 100) == (exhausted == "stop")
    if exhausted == "renormalise":
        assert after.read.keys() == {"web"} and after.examples
    number = found.parts.index(after)
    assert 1.45 < found.parts[number - 1].epochs["code"] <= 1.5
    assert sum(part.read.get("code", 0) for part in found.parts[number:]) == 0


def test_data_that_run_out_where_the_length_changes_end_the_run_as_well(opened):
    """What the change leaves out was the rest of it."""
    sources = opened(code=1.5)
    found = overview(Layout(STAGES, sources).begin(), TOTAL, sources)
    assert found.parts[-1].segment.kind == "end" and found.tokens == sum(stage.tokens for stage in STAGES[:3])


def test_the_run_ends_where_nothing_is_left(opened):
    sources = opened(web=1, code=1)
    found = overview(Layout(STAGES, sources, "renormalise").begin(), TOTAL, sources)
    assert found.parts[-1].segment.kind == "end" and found.parts[-1].used_up and found.tokens < TOTAL
    assert found.steps == found.parts[-1].segment.first_step


def test_what_a_rewind_undid_is_counted_apart(opened):
    sources = opened()
    layout = Layout(STAGES, sources)
    plain = layout.begin()
    back = layout.rewind(plain, Point(4, plain.point(4).tokens, plain.point(20).example))
    found = overview(back, TOTAL, sources)
    assert sum(part.undone for part in found.parts) == plain.point(20).example - plain.point(4).example
    assert found.tokens == overview(plain, TOTAL, sources).tokens
    counted = Counter()
    for step in range(found.steps):
        counted[back.span(step).shape] += back.span(step).examples
    shapes = Counter()
    for part in found.parts:
        shapes[part.segment.shape] += part.examples
    assert shapes == counted


@pytest.mark.parametrize("total", [16 * 8, 700, 16 * 8 * 5 + 16 * 3, 3000])
def test_a_run_that_ends_before_its_stages_has_no_more_parts(opened, total):
    sources = opened()
    schedule = Layout(STAGES, sources).begin()
    found = overview(schedule, total, sources)
    spans = [schedule.span(step) for step in range(schedule.steps(total))]
    assert found.tokens == sum(span.tokens for span in spans)
    assert sum(part.examples for part in found.parts) == sum(span.examples for span in spans)
    assert sum(part.empty for part in found.parts) == sum(span.batch_size - span.examples for span in spans)


def test_without_data_stages_and_tokens_are_the_same_and_nothing_is_said_of_epochs(opened):
    sources, stand_ins = opened(), {"web": Endless(), "code": Endless()}
    known = overview(Layout(STAGES, sources).begin(), TOTAL, sources)
    unknown = overview(Layout(STAGES, stand_ins).begin(), TOTAL, stand_ins, ["web", "code"])
    assert (unknown.steps, unknown.tokens_by_source) == (known.steps, known.tokens_by_source)
    for one, other in zip(known.parts, unknown.parts, strict=True):
        assert (one.read, one.examples, one.empty, one.last_step) == (
            other.read,
            other.examples,
            other.empty,
            other.last_step,
        )
        assert other.epochs == other.abandoned == {} and other.used_up == ()


def test_data_that_are_not_here_stand_many_changes_of_length():
    stages = [Stage(10**12, {"web": 1}, 64, 4096 * (1 + number % 2)) for number in range(40)]
    found = overview(Layout(stages, {"web": Endless()}).begin(), 40 * 10**12, {"web": Endless()}, ["web"])
    assert len(found.parts) == 40 and found.tokens >= 40 * 10**12


def test_shares_of_equal_spans_follow_the_weights(opened):
    sources = opened()
    stages = [Stage(16 * 8 * 30, {"web": 3, "code": 1}, 8, 16), Stage(16 * 8 * 10, {"code": 1}, 8, 16)]
    found = overview(Layout(stages, sources).begin(), 16 * 8 * 40, sources)
    assert list(found.tokens_by_source) == ["web", "code"]
    shares = found.shares(8)
    assert shares == pytest.approx(np.array([[0.75, 0.25]] * 6 + [[0, 1]] * 2), abs=1e-8)
    assert found.shares(1) == pytest.approx(np.array([[0.75 * 0.75, 1 - 0.75 * 0.75]]), abs=1e-8)
