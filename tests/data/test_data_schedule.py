"""What holds for every run, however it is drawn: see tests/drawn_runs.py."""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from drawn_runs import MadeUp, Walk, layouts, located, stages, walks
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data import order
from maxlm.data.mixture import UNITS, quantise
from maxlm.data.schedule import Layout, Segment, Span, Stage

drawn = settings(derandomize=True, deadline=None, max_examples=100)
ENDLESS = 10**9  # tokens, more than any walk reads


def segments_of(walk: Walk) -> Iterator[tuple[Segment, list[str], list[int]]]:
    """Segments that the walk read from, with the source and position of every example that it read of each."""
    read = [segment for segment in walk.schedule.segments if segment.first_example < walk.position.examples]
    ends = [segment.first_example for segment in read[1:]] + [walk.position.examples]
    for segment, end in zip(read, ends, strict=True):
        part = slice(segment.first_example, end)
        yield segment, walk.sources[part], walk.positions[part]


# --- windows ------------------------------------------------------------------------------------------------


@given(walks(limits=True, seq_lens=(3,)))
@drawn
def test_every_source_is_read_in_turn_and_what_was_read_is_never_rewritten(walk):
    read = defaultdict(list)
    for name, position in zip(walk.sources, walk.positions, strict=True):
        read[name].append(position)
    for positions in read.values():
        assert positions == list(range(len(positions)))
    names = sorted(walk.layout.supplies, reverse=True)
    assert located(walk.schedule, names, 0, walk.position.examples) == (walk.sources, walk.positions)


@given(walks(limits=True))
@drawn
def test_every_token_of_an_epoch_is_read_or_abandoned_once(walk):
    """Also where the length of an example changes: what is abandoned then is less than a block per source."""
    used = defaultdict(Counter)  # by source and epoch, how often each input was read or abandoned
    behind, before = Counter(), None
    for segment, sources, positions in segments_of(walk):
        changed = before is not None and before.seq_len != segment.seq_len
        for name, offset in segment.offsets.items():
            left_out = segment.abandoned.get(name, 0)
            assert changed or (offset, left_out) == (behind[name], 0)
            if left_out:
                source = walk.layout.supplies[name]
                (last_read, _), *abandoned = places(source.order(before.seq_len), behind[name] - 1, left_out + 1)
                assert {place for place, _ in abandoned} == {last_read}  # the rest of a block that was begun
                use(used, source, before.seq_len, behind[name], left_out)
        behind = Counter(segment.offsets)
        for name, position in zip(sources, positions, strict=True):
            assert position == behind[name]
            behind[name] += 1
        for name in set(sources):
            source, count = walk.layout.supplies[name], behind[name] - segment.offsets[name]
            assert source.max_epochs is None or behind[name] <= source.limit(segment.seq_len)
            use(used, source, segment.seq_len, segment.offsets[name], count)
        assert segment.read(len(sources)) == {name: behind[name] for name in segment.weights}
        before = segment
    for (name, epoch), inputs in used.items():
        assert max(inputs.values()) == 1
        passed = (name, epoch + 1) in used
        assert len(inputs) == walk.layout.supplies[name].inputs or not passed


def places(one: order.SourceOrder, first: int, count: int) -> list[tuple[tuple[int, int], int]]:
    """Epoch and block of consecutive positions, and the windows of the block that were read before."""
    epoch, block, offset = (part.tolist() for part in one.place(np.arange(first, first + count)))
    return list(zip(zip(epoch, block, strict=True), offset, strict=True))


def use(used: dict, source: MadeUp, seq_len: int, first: int, count: int) -> None:
    for epoch, inputs in source.inputs_of(seq_len, first, count):
        used[source.name, epoch].update(inputs)


@pytest.mark.parametrize("shuffled", [True, False])
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 10**12))
@drawn
def test_position_of_a_window_is_found_again(shuffled, sizes, position):
    one = order.SourceOrder(sizes, 3, order.source_id("web"), shuffled)
    block, window = order.window_order([one], np.array([0]), np.array([position]))
    assert one.position(position // one.windows, int(block[0]), int(window[0])) == position


# --- stages and steps ---------------------------------------------------------------------------------------


def packed(stages: list[Stage], total_tokens: int) -> tuple[list[Span], list[int]]:
    """Spans of the steps and stages of the examples, laid out one example after the other."""
    spans, owners, tokens = [], [], 0
    ends = list(accumulate(stage.tokens for stage in stages))
    while tokens < total_tokens:
        owners.append(min(bisect_right(ends, tokens), len(stages) - 1))
        shape = stages[owners[-1]].batch_size, stages[owners[-1]].seq_len
        if not spans or spans[-1].shape != shape or spans[-1].examples == shape[0]:
            spans.append(Span(len(owners) - 1, 0, *shape, tokens))
        spans[-1] = spans[-1]._replace(examples=spans[-1].examples + 1)
        tokens += shape[1]
    return spans[:-1], owners


@given(layouts(), st.integers(1, 400))
@drawn
def test_stages_end_at_their_example_and_only_a_change_of_shape_fills_a_batch(layout, beyond):
    schedule = layout.begin()
    spans, owners = packed(layout.stages, sum(stage.tokens for stage in layout.stages) + beyond)
    assert [schedule.span(step) for step in range(len(spans))] == spans
    assert [schedule.owner(example).stage for example in range(len(owners))] == owners
    assert [segment.kind for segment in schedule.segments] == ["start"] + ["stage"] * (len(set(owners)) - 1)


@given(walks(limits=True))
@drawn
def test_steps_are_consecutive_and_full_but_before_another_shape_or_the_end(walk):
    read = 0
    for span, following in zip(walk.spans, walk.following, strict=True):
        assert span.first_example == read and 0 < span.examples <= span.batch_size
        assert span.examples == span.batch_size or following.shape != span.shape or not following.examples
        read += span.examples
    for span, beginning in zip(walk.spans, walk.beginning, strict=True):
        own = range(span.first_example, span.first_example + span.examples)
        assert beginning == [segment for segment in walk.schedule.segments if segment.first_example in own]


@given(layouts(limits=True))
@drawn
def test_the_schedule_of_a_run_says_what_walking_it_finds(layout):
    walk = Walk(layout)
    walk.steps(80)
    schedule, ended = walk.schedule, walk.position.finished(ENDLESS)
    for step, span in enumerate(walk.spans):
        own = range(span.first_example, span.first_example + span.examples)
        assert {schedule.step_of(example) for example in own} == {step}
        assert {schedule.owner(example).shape for example in own} == {span.shape}
        assert schedule.point(step) == (step, span.first_tokens, span.first_example)
        slots = span.first_tokens, span.first_tokens + span.tokens - 1
        assert {schedule.step_at(slot) for slot in slots} == {step}
    after = list(accumulate(span.tokens for span in walk.spans))
    for total in {tokens + more for tokens in after for more in (-1, 0, 1)} - {0, after[-1] + 1}:
        assert schedule.steps(total) == bisect_left(after, total) + 1
        assert schedule.tokens(total) == total
    if ended:
        assert schedule.steps(ENDLESS) == len(after) and schedule.tokens(ENDLESS) == after[-1]
        assert [segment.kind for segment in schedule.beginning(len(after))] == ["end"]
    for step in (0, len(after) // 2, len(after) - 1):
        shapes = dict.fromkeys(span.shape for span in walk.spans[step:])
        assert list(dict.fromkeys(segment.shape for segment in schedule.following(step)))[: len(shapes)] == list(shapes)


# --- shares -------------------------------------------------------------------------------------------------


@given(walks(limits=True), st.lists(st.integers(0, 10**12), max_size=5))
@drawn
def test_shares_keep_to_the_weights_at_every_prefix_of_a_stage(walk, far):
    for number, (segment, sources, _) in enumerate(segments_of(walk)):
        levels = (len(segment.weights) - 1).bit_length()
        bound = levels if number else Fraction(levels, 2)
        units, names = np.array(list(segment.weights.values())), np.array(list(segment.weights))
        found = np.cumsum(np.array(sources)[:, None] == names, axis=0)
        error = found * UNITS - np.arange(1, len(sources) + 1)[:, None] * units
        assert np.abs(error).max() <= bound * UNITS
        assert not found[-1][units == 0].any()
        for prefix in far:
            for name, count in segment.read(prefix).items():
                count -= segment.offsets[name]
                assert abs(count - Fraction(prefix * segment.weights[name], UNITS)) <= bound
                assert segment.weights[name] or not count


@pytest.mark.parametrize("sources", [2, 3, 17, 100])
def test_a_weight_of_a_millionth_appears_in_every_stage_and_a_weight_of_0_never(sources):
    rare, *others = (f"source{number}" for number in range(sources))
    common = dict.fromkeys(others, (1 - 1e-6) / len(others))
    weights = [common, dict(zip(others, range(1, sources), strict=True)), common]
    weights = [{rare: 1e-6 * sum(one.values()) / (1 - 1e-6), "never": 0} | one for one in weights]
    length, supplies = 10**7, {name: MadeUp(name, 1000) for name in [rare, *others, "never"]}
    schedule = Layout([Stage(length, one, 64, 1) for one in weights], supplies).begin()
    for segment in schedule.segments:
        read = segment.read(length)[rare] - segment.offsets[rare]
        assert abs(read - 10) <= sources.bit_length() + 1  # a unit of a share is a thousandth of the rare one
        assert read > 0 and segment.read(10**12)["never"] == 0


# --- seeking ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> Layout:
    """More than 10^12 examples of several shapes, of sources of up to 10^12 tokens, read in whole and in part."""
    supplies = {
        "web": MadeUp("web", 10**12, block=order.BLOCK_TOKENS),
        "code": MadeUp("code", 3 * 10**10, block=order.BLOCK_TOKENS),
        "books": MadeUp("books", 10**9 + 7, shuffled=False, block=order.BLOCK_TOKENS),
        "papers": MadeUp("papers", 5 * 10**9, max_epochs=4.5, block=order.BLOCK_TOKENS),
    }
    weights = {"web": 0.7, "code": 0.2, "books": 1e-6, "papers": 0.1}
    shapes = [(10**10, 512, 2048), (10**14 + 1, 1000, 2048), (10**15, 600, 4096), (1, 1000, 2048)]
    return Layout([Stage(tokens, weights, *shape) for tokens, *shape in shapes], supplies, "renormalise")


far = given(example=st.one_of(st.integers(0, 10**8), st.integers(0, 10**12)))


@far
@settings(drawn, max_examples=150)
def test_seeking_to_an_example_finds_what_running_to_it_reads(large, example):
    schedule, names = large.begin(), list(large.supplies)
    segment = schedule.owner(example)
    first = max(segment.first_example, example - 200)
    following = segment.read(first - segment.first_example)
    sources, positions = located(schedule, names, first, example + 1 - first)
    for name, position in zip(sources, positions, strict=True):
        assert position == following[name]
        following[name] += 1
    assert located(schedule, names, example, 1) == (sources[-1:], positions[-1:])


@far
@settings(drawn, max_examples=150)
def test_an_example_is_found_again_by_its_step_and_by_its_window(large, example):
    schedule, names = large.begin(), list(large.supplies)
    step, segment = schedule.step_of(example), schedule.owner(example)
    span, following = schedule.span(step), schedule.span(step + 1)
    assert span.first_example <= example < span.first_example + span.examples == following.first_example
    assert span.shape == segment.shape and span.first_tokens + span.tokens == following.first_tokens
    (name,), (position,) = located(schedule, names, example, 1)
    one = large.supplies[name].order(segment.seq_len)
    block, window = order.window_order([one], np.array([0]), np.array([position]))
    found = int(one.position(position // one.windows, int(block[0]), int(window[0])))
    number = list(segment.weights).index(name)
    assert segment.first_example + segment.shares.example_of(number, found - segment.offsets[name]) == example


# --- edits --------------------------------------------------------------------------------------------------


@given(layouts(), st.data())
@drawn
def test_an_edit_counts_from_the_current_token_on(layout, data):
    walk = Walk(layout)
    walk.steps(data.draw(st.integers(0, 30)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    supplies = layout.supplies | {"another": MadeUp("another", 77)}
    edited = Layout(data.draw(stages(sorted(supplies), random)), supplies)
    point = walk.position.point
    walk.edit(edited)
    assert walk.position.point == point
    walk.steps(20)
    assert located(walk.schedule, sorted(supplies), 0, len(walk.sources)) == (walk.sources, walk.positions)
    ends = list(accumulate(stage.tokens for stage in edited.stages))
    for span in walk.spans[point.step :]:
        for number in range(span.examples):
            tokens = span.first_tokens + number * span.seq_len
            stage = edited.stages[min(bisect_right(ends, tokens), len(ends) - 1)]
            segment = walk.schedule.owner(span.first_example + number)
            assert segment.weights == quantise(dict.fromkeys(supplies, 0) | stage.weights)
            assert segment.shape == (stage.batch_size, stage.seq_len)


def layout_of(*stages: tuple[int, dict, int, int], exhausted="stop", **limits: float | None) -> Layout:
    """Stages (tokens, weights, batch size, seq_len) over sources of 100 inputs that are read so often."""
    supplies = {name: MadeUp(name, 101, limit) for name, limit in limits.items()}
    return Layout([Stage(*stage) for stage in stages], supplies, exhausted)


def test_a_batch_that_was_filled_up_stays_so_when_the_next_stage_is_edited_away():
    planned = layout_of((30, {"web": 1}, 8, 2), (100, {"web": 1}, 4, 4), web=None)
    walk = Walk(planned)
    walk.steps(2)
    assert walk.spans[1] == Span(8, 7, 8, 2, 16)  # 15 examples make 30 tokens
    walk.edit(layout_of((30, {"web": 1}, 8, 2), (100, {"web": 1}, 8, 2), web=None))
    walk.steps(2)
    assert [span.first_example for span in walk.spans] == [0, 8, 15, 23]
    assert [walk.schedule.span(step) for step in range(4)] == walk.spans


def test_a_run_whose_data_ended_in_a_batch_goes_on_behind_it_when_more_may_be_read():
    walk = Walk(layout_of((1000, {"web": 1}, 8, 2), web=0.5))
    walk.steps(99)
    assert walk.spans[-1] == Span(24, 1, 8, 2, 48)  # an epoch has 50 windows
    walk.edit(layout_of((1000, {"web": 1}, 8, 2), web=1))
    walk.steps(99)
    assert sorted(walk.positions) == list(range(50))
    assert [walk.schedule.span(step) for step in range(len(walk.spans))] == walk.spans


def test_what_begins_with_a_step_after_a_rewind_is_the_rewind():
    walk = Walk(layout_of((32, {"web": 1}, 8, 2), (1000, {"web": 1, "code": 1}, 8, 2), web=None, code=None))
    walk.steps(6)
    assert [segment.kind for segment in walk.schedule.beginning(2)] == ["stage"]
    walk.rewind(4)
    assert walk.position.step == 2
    assert [segment.kind for segment in walk.schedule.beginning(2)] == ["rewind"]


def test_shares_that_are_set_for_a_step_behind_the_end_do_not_bring_the_run_back():
    layout = layout_of((1000, {"web": 1, "code": 1}, 8, 2), web=1, code=None)
    schedule, other = layout.begin(), layout.weighted({"web": 1, "code": 3})
    end = schedule.steps(ENDLESS)
    for step in range(end, end + 9):
        assert other.reweigh(schedule, step) == schedule
    assert other.reweigh(schedule, end - 1).segments[-2].kind == "online"


# --- sources that end ---------------------------------------------------------------------------------------


@given(layouts(limits=True, seq_lens=(3,)))
@drawn
def test_a_source_is_read_as_often_as_it_may_be_and_no_window_more(layout):
    walk = Walk(layout)
    walk.steps(1000)
    read = Counter(walk.sources)
    limits = {name: source.limit(3) for name, source in layout.supplies.items() if source.max_epochs}
    assert all(read[name] <= limit for name, limit in limits.items())
    used_up = {name for name, limit in limits.items() if read[name] == limit}
    if not walk.position.finished(ENDLESS):
        return
    ends = list(accumulate(stage.tokens for stage in layout.stages))
    stage = layout.stages[min(bisect_right(ends, walk.position.tokens), len(ends) - 1)]
    wanted = {name for name, weight in stage.weights.items() if weight}
    if layout.exhausted == "renormalise":
        assert wanted <= used_up
    else:  # right behind the last window of a source, or before a stage that wants one
        assert walk.sources[-1] in used_up or wanted & used_up


@given(layouts(limits=True, seq_lens=(3,)))
@drawn
def test_sources_that_are_left_keep_their_ratio(layout):
    layout = replace(layout, exhausted="renormalise")
    walk = Walk(layout)
    walk.steps(200)
    read = Counter()
    for segment, sources, _ in segments_of(walk):
        over = {name for name, source in layout.supplies.items() if read[name] == source.limit(3)}
        assert segment.kind != "exhausted" or walk.sources[segment.first_example - 1] in over
        weights = layout.stages[segment.stage].weights
        left = {name: Fraction(weight) for name, weight in weights.items() if weight and name not in over}
        assert {name for name, units in segment.weights.items() if units} == set(left)
        for name, weight in left.items():
            assert abs(segment.weights[name] - weight / sum(left.values()) * UNITS) <= len(left)
        read.update(sources)


@pytest.mark.parametrize("shuffled", [True, False])
def test_one_epoch_of_every_source_is_each_window_once(shuffled):
    supplies = {name: MadeUp(name, 40 + 30 * number, 1, shuffled) for number, name in enumerate("abcd")}
    walk = Walk(Layout([Stage(10, dict.fromkeys("abcd", 1), 9, 3)], supplies, "renormalise"))
    walk.steps(1000)
    windows = {
        name: sum(-(-min(24, source.inputs - first) // 3) for first in range(0, source.inputs, 24))
        for name, source in supplies.items()
    }
    assert Counter(walk.sources) == windows
    assert walk.spans[-1].examples == sum(windows.values()) % 9 > 0
    assert walk.schedule.tokens(ENDLESS) == 3 * sum(windows.values())


@pytest.mark.parametrize("exhausted", ["stop", "renormalise"])
def test_a_limit_that_no_run_comes_to_is_none(exhausted):
    stages = [(10**13, {"web": 1, "rare": 1e-9}, 8, 2), (10**13, {"rare": 1}, 8, 2)]
    limited = layout_of(*stages, web=1e300, rare=1e300, exhausted=exhausted)
    assert limited.begin() == layout_of(*stages, web=None, rare=None).begin()
