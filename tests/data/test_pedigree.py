"""From steps to documents and back, for runs whose stages, lengths, weights and rewinds are all mixed."""

from collections import defaultdict
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import pytest
from shard_files import documents_of_random_lengths
from tiny import STAGES

from maxlm.config import SourceConfig
from maxlm.data import bestfit, order
from maxlm.data.loader import Batches
from maxlm.data.pedigree import Readings, examples_of, fragments
from maxlm.data.schedule import Layout, Point, Schedule
from maxlm.data.sources import Source

DOCUMENTS = {"web": documents_of_random_lengths(0, 120), "code": documents_of_random_lengths(1, 50, first=10_000)}
SHARDS = {"web": 3, "code": 1}
TOTAL = sum(stage.tokens for stage in STAGES)


@pytest.fixture
def sources(two_sources, monkeypatch):
    monkeypatch.setattr(order, "BLOCK_TOKENS", 240)
    return {name: Source(name, shards, SourceConfig(path=""), seed=5) for name, shards in two_sources.items()}


@pytest.fixture
def layout(sources):
    return Layout(STAGES, sources)


def plain(layout: Layout) -> Schedule:
    return layout.begin()


def rewound(layout: Layout) -> Schedule:
    """Back from step 9 to 6, on to step 20 in another length, and from there to 4: behind the first rewind."""
    schedule = layout.begin()
    for start, back in ((9, 6), (20, 4)):
        schedule = layout.rewind(schedule, Point(back, schedule.point(back).tokens, schedule.point(start).example))
    return schedule


def online(layout: Layout) -> Schedule:
    schedule = layout.begin()
    for step in range(3, 60, 4):
        now = replace(layout, stages=layout.stages[-1:]).weighted({"web": 1 + step % 3, "code": step % 5})
        schedule = now.reweigh(schedule, step)
    return schedule


SCHEDULES = pytest.mark.parametrize("make", [plain, rewound, online])


def test_the_rewound_schedule_is_what_its_name_says(layout):
    schedule = rewound(layout)
    kinds = [segment.kind for segment in schedule.segments]
    assert kinds.count("rewind") == 2 and {segment.seq_len for segment in schedule.segments} == {16, 24}
    first, second = (segment for segment in schedule.segments if segment.kind == "rewind")
    assert (first.first_step, second.first_step) == (6, 4)


@SCHEDULES
def test_documents_of_a_step_are_the_tokens_of_its_batch(layout, sources, make):
    schedule = make(layout)
    rows = {size: range(size) for size in (8, 4)}
    steps = schedule.steps(TOTAL)
    batches = Batches(sources, schedule, rows=rows, num_steps=steps)
    several = 0
    for step in range(steps):
        batch, span = batches[step], schedule.span(step)
        for example in examples_of(sources, schedule, step, range(span.examples)):
            row = example.row
            found = fragments(sources[example.source], span.seq_len, example.block, example.window)
            texts = [part_of(example.source, fragment) for fragment in found]
            inside = batch["segment_ids"][row] > 0
            assert list(batches.names).index(example.source) == batch["sources"][row]
            assert sum(texts, []) == batch["tokens"][row][inside].tolist()
            assert [fragment.slot for fragment in found] == np.flatnonzero(
                inside & (batch["positions"][row] == 0)
            ).tolist()
            assert batch["segment_ids"][row].max() == len(found)
            several += len(found) > 1
        assert not batch["segment_ids"][span.examples :].any()
    assert several > steps


def part_of(source: str, fragment) -> list[int]:
    """The fragment's tokens, from the documents that the shards were written from."""
    count, shards = len(DOCUMENTS[source]), SHARDS[source]
    document = DOCUMENTS[source][count * fragment.shard // shards + fragment.row]
    assert len(document) == fragment.document_tokens
    return document[fragment.first : fragment.first + fragment.length]


@pytest.mark.parametrize(("make", "done_steps"), [(plain, 0), (plain, 10**6), (rewound, 30), (online, 30)])
def test_steps_of_a_document_are_those_that_hold_its_tokens(layout, sources, make, done_steps):
    schedule = make(layout)
    steps = schedule.steps(TOTAL)
    last, done_steps = schedule.span(steps - 1), min(done_steps, steps)
    end = last.first_example + last.examples
    done = schedule.span(done_steps).first_example if done_steps < steps else end
    expected = all_readings(schedule, sources, steps, end, done)
    states = set()
    for name, source in sources.items():
        for shard, entry in enumerate(source.shards.manifest.shards):
            for row in range(entry.documents):
                readings = Readings(source, schedule, (shard, row), done, end)
                found = [(one.example, one.step, one.row, one.epoch, one.seq_len, one.state) for one in readings]
                assert found == expected[name, shard, row]
                listed = [state for *_, state in found]
                assert readings.counts() == {state: listed.count(state) for state in ("read", "undone", "to come")}
                states.update(listed)
    assert {epoch for entries in expected.values() for _, _, _, epoch, *_ in entries} >= {0, 1, 2}
    wanted = {"undone"} if make is rewound else set()
    assert states == wanted | ({"read"} if done else set()) | ({"to come"} if done < end else set())


def all_readings(schedule, sources, steps, end, done):
    """What every example holds, looked at one after the other, by document."""
    claimed = {}  # example -> step and row that count
    for step in range(steps):
        span = schedule.span(step)
        claimed |= {span.first_example + row: (step, row) for row in range(span.examples)}
    names, found = list(sources), defaultdict(list)
    for example in range(end):
        segment = schedule.owner(example)
        (index,), (position,) = schedule.locate(np.array([example]), names)
        source = sources[names[index]]
        of_length = source.order(segment.seq_len)
        places = order.window_order([of_length], [0], [position])
        block, window = (int(part[0]) for part in places)
        inside = example - segment.first_example + segment.lead
        step, row = segment.first_step + inside // segment.batch_size, inside % segment.batch_size
        assert claimed.get(example, (step, row)) == (step, row)
        state = "undone" if example not in claimed else "read" if example < done else "to come"
        entry = example, step, row, position // of_length.windows, segment.seq_len, state
        for fragment in fragments(source, segment.seq_len, block, window):
            found[names[index], fragment.shard, fragment.row].append(entry)
    return found


@pytest.mark.parametrize("seq_len", [7, 16, 240])
def test_windows_of_a_span_are_those_that_have_its_tokens_as_inputs(sources, seq_len):
    source = sources["code"]
    owner = {}
    for block, size in enumerate(source.order(seq_len).sizes.tolist()):
        for window in range(size):
            for piece in source.pieces(seq_len, block, window):
                assert piece.slot == 0 and 0 < piece.length <= seq_len
                text = source.window(seq_len, block, window).tokens
                assert (
                    text[: piece.length].tolist()
                    == source.shards.read(piece.first, piece.first + piece.length).tolist()
                )
                owner |= dict.fromkeys(range(piece.first, piece.first + piece.length), (block, window))
    tokens = len(source.shards)
    assert sorted(owner) == list(range(tokens - 1))  # the last is a target alone
    for first in range(0, tokens, 11):
        for length in (1, 2, 16, 500):
            held = [owner[token] for token in range(first, min(first + length, tokens - 1))]
            assert source.windows_of(seq_len, first, length) == list(dict.fromkeys(held))


def test_documents_of_a_span_are_named_across_shards(two_sources):
    shards = two_sources["web"]
    bounds = list(pairwise(accumulate(map(len, DOCUMENTS["web"]), initial=0)))
    places = [(shard, row) for shard in range(3) for row in range(40)]
    assert [shards.span(*place) for place in places] == bounds
    for start, stop in [
        (0, 1),
        (0, len(shards)),
        (len(shards) - 1, len(shards)),
        *((at, at + 90) for at in range(0, 2300, 7)),
    ]:
        touched = [
            (*place, *bound)
            for place, bound in zip(places, bounds, strict=True)
            if bound[1] > start and bound[0] < stop
        ]
        assert shards.documents(start, stop).tolist() == [list(row) for row in touched]


@SCHEDULES
def test_every_slot_of_the_run_belongs_to_the_step_that_counts_it(layout, make):
    schedule = make(layout)
    for step in range(schedule.steps(TOTAL)):
        span = schedule.span(step)
        for slot in {span.first_tokens, span.first_tokens + span.tokens - 1}:
            assert schedule.step_at(slot) == step


def test_a_source_that_joins_later_has_no_readings_before(sources):
    begun = Layout([replace(STAGES[0], weights={"web": 1})], {"web": sources["web"]}).begin()
    both = Layout([replace(STAGES[0], weights={"web": 1, "code": 1})], sources)
    schedule = both.edit(begun, begun.point(3))
    readings = [Readings(sources["code"], schedule, (0, row), 0, 400) for row in range(50)]
    steps = {one.step for document in readings for one in document}
    assert min(steps) == 3 and schedule.segments[0].weights.keys() == {"web"}


@pytest.mark.parametrize("overlong", ["split", "drop"])
def test_documents_that_are_packed_whole_are_found_in_both_directions(two_sources, overlong):
    pack = partial(bestfit.open_index, overlong=overlong)
    source = Source("web", two_sources["web"], SourceConfig(path=""), 0, pack)
    forward = defaultdict(list)
    for block, size in enumerate(source.order(24).sizes.tolist()):
        for window in range(size):
            text = source.window(24, block, window)
            for fragment in fragments(source, 24, block, window):
                forward[fragment.shard, fragment.row].append((fragment.first, block, window))
                whole = source.shards.read(*source.shards.span(fragment.shard, fragment.row))
                found = text.tokens[fragment.slot : fragment.slot + fragment.length]
                assert found.tolist() == whole[fragment.first : fragment.first + fragment.length].tolist()
    dropped = 0
    for shard in range(3):
        for row in range(40):
            first, stop = source.shards.span(shard, row)
            places = [place for _, *place in sorted(forward[shard, row])]
            assert [list(place) for place in source.windows_of(24, first, stop - first)] == places
            assert len(places) == (-(-(stop - first) // 24) if overlong == "split" or stop - first <= 24 else 0)
            dropped += not places
    assert bool(dropped) == (overlong == "drop")
