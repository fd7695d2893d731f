"""Readers may come and go: the global batch of a step does not depend on who reads which of its rows."""

import json
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import documents_of_lengths, documents_of_random_lengths, write_directory

from maxlm.config import SourceConfig
from maxlm.data import loader, order
from maxlm.data.schedule import Layout, Schedule, Stage
from maxlm.data.sources import Source
from maxlm.train.position import Position

SEED, BLOCK, BLOCK_TOKENS = 3, 256, order.BLOCK_TOKENS
# Batches of 1,200 rows; then others, and other lengths, in which batches have to be filled up.
STAGES = [
    (4 * 1200 * 5, {"web": 0.7, "code": 0.3}, 1200, 4),
    (8 * 1024 * 2 + 70, {"web": 0.2, "code": 0.8}, 1024, 8),
    (8 * 64 * 6, {"web": 0.5, "code": 0.5, "odd": 1e-2}, 64, 8),
    (16 * 48 * 8, {"code": 1}, 48, 16),
]


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Sources of several blocks and epochs, though they are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK_TOKENS", BLOCK)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Source]:
    """Of 3 shards, one of a huge document between two short ones, and one; far fewer than hosts."""
    directory = tmp_path_factory.mktemp("sources")
    shards = {
        "web": write_directory(directory / "web", documents_of_random_lengths(0, 300), shards=3),
        "odd": write_directory(directory / "odd", documents_of_lengths([2, 5000, 3], first=20_000), shards=3),
        "code": write_directory(directory / "code", documents_of_random_lengths(1, 90, first=40_000)),
    }
    return {name: Source(name, one, SourceConfig(path=""), SEED) for name, one in shards.items()}


@pytest.fixture(scope="module")
def schedule(sources) -> Schedule:
    return Layout([Stage(*stage) for stage in STAGES], sources).begin()


@pytest.fixture(scope="module")
def whole(sources, schedule) -> list[dict]:
    """Every global batch of the run, read by one reader."""
    everything = reader(sources, schedule, {size: range(size) for size in SIZES})
    return [everything[step] for step in range(len(everything))]


TOTAL_TOKENS = sum(tokens for tokens, *_ in STAGES)
SIZES = [size for _, _, size, _ in STAGES]


def reader(sources, schedule: Schedule, rows: dict) -> loader.Batches:
    return loader.Batches(sources, schedule, rows=rows, num_steps=schedule.steps(TOTAL_TOKENS))


def rows_of(host: int, hosts: int) -> dict:
    """Consecutive rows of every batch; where there are more hosts than rows, several read the same one."""
    return {n: range(n * host // hosts, max(n * (host + 1) // hosts, n * host // hosts + 1)) for n in SIZES}


def assert_rows(found: dict, batch: dict, rows) -> None:
    assert found.keys() == batch.keys()
    for name, array in found.items():
        assert array.dtype == batch[name].dtype
        np.testing.assert_array_equal(array, batch[name][list(rows)], err_msg=name)


def test_the_run_comes_to_every_stage_and_fills_up_its_batches(schedule, whole):
    shapes = [batch["tokens"].shape for batch in whole]
    assert [shapes.count(shape) for shape in dict.fromkeys(shapes)] == [5, 3, 6, 8]
    filled = [int((~batch["weights"].any(1)).sum()) for batch in whole]
    assert [(step, rows) for step, rows in enumerate(filled) if rows] == [(7, 1024 - 9)]
    assert schedule.steps(TOTAL_TOKENS) == len(whole) == 22


def test_every_row_holds_the_text_that_the_schedule_says(sources, schedule, whole):
    streams = {}
    for name, source in sources.items():
        files = sorted(source.shards.directory.glob("tokens-*.bin"))
        streams[name] = np.concatenate([np.fromfile(path, np.uint16) for path in files])
    names, read = list(sources), {name: set() for name in sources}
    for step, batch in enumerate(whole):
        span = schedule.span(step)
        index, position = schedule.locate(np.arange(span.first_example, span.first_example + span.examples), names)
        assert np.array_equal(batch["sources"][: span.examples], index)
        for row, (name, place) in enumerate(zip(np.array(names)[index], position, strict=True)):
            one = sources[name].order(span.seq_len)
            (block,), (window,) = order.window_order([one], np.array([0]), place[None])
            first = block * BLOCK + window * span.seq_len
            text = streams[name][first : min(first + span.seq_len, (block + 1) * BLOCK, len(streams[name]) - 1) + 1]
            assert batch["tokens"][row, : len(text) - 1].tolist() == text[:-1].tolist()
            assert batch["targets"][row, : len(text) - 1].tolist() == text[1:].tolist()
            assert not batch["segment_ids"][row, len(text) - 1 :].any()
            read[name].add(span.seq_len)
    assert read == {"web": {4, 8}, "odd": {8}, "code": {4, 8, 16}}


@pytest.mark.parametrize("hosts", [1, 2, 3, 8, 64, 1024])
def test_any_number_of_hosts_reads_the_global_batches_of_one(sources, schedule, whole, hosts):
    steps = (4, 7, 8, 21) if hosts == 1024 else range(len(whole))
    seen = {step: set() for step in steps}
    for host in range(hosts):
        rows = rows_of(host, hosts)
        batches = reader(sources, schedule, rows)
        for step in steps:
            own = rows[len(whole[step]["tokens"])]
            assert_rows(batches[step], whole[step], own)
            seen[step].update(own)
    assert all(rows == set(range(len(whole[step]["tokens"]))) for step, rows in seen.items())


@given(st.data())
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_rows_may_be_split_in_any_way(sources, schedule, whole, data):
    """Unevenly, out of order, and with rows that several read."""
    step = data.draw(st.integers(0, len(whole) - 1))
    size = len(whole[step]["tokens"])
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    cuts = np.sort(random.choice(size - 1, data.draw(st.integers(0, 20)), replace=False)) + 1
    for part in np.split(random.permutation(size), cuts):
        also = random.integers(0, size, data.draw(st.integers(0, 3)))
        rows = [*part.tolist(), *also.tolist()]
        assert_rows(reader(sources, schedule, {size: rows})[step], whole[step], rows)


def test_hosts_that_change_with_every_step_lose_and_repeat_nothing(sources, schedule, whole):
    """Each step is read by other hosts, which know no more than what the checkpoint before it holds."""
    position, random = Position(0, 0, 0, 0, schedule), np.random.default_rng(0)
    for step, batch in enumerate(whole):
        position = Position.from_json(json.loads(json.dumps(position.to_json())))
        assert position.step == step and not position.finished(TOTAL_TOKENS)
        hosts = int(random.integers(1, 12))
        for host in range(hosts):
            rows = rows_of(host, hosts)
            with closing(loader.batches(reader(sources, position.schedule, rows), start_step=step, prefetch=1)) as read:
                assert_rows(next(read), batch, rows[len(batch["tokens"])])
        position = position.advanced()
    assert position.finished(TOTAL_TOKENS)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_threads_and_worker_processes_read_across_changes_of_shape(sources, workers, started, monkeypatch):
    monkeypatch.setattr(order, "BLOCK_TOKENS", BLOCK_TOKENS)  # worker processes know no other size
    sources = {name: Source(name, source.shards, source.config, SEED) for name, source in sources.items()}
    schedule = Layout([Stage(*stage) for stage in STAGES], sources).begin()
    rows = {size: [size - 1, *range(0, size, 7)] for size in SIZES}
    source = reader(sources, schedule, rows)
    with closing(loader.batches(source, start_step=3, workers=workers, prefetch=3)) as read:
        found = list(read)
    assert len({batch["tokens"].shape for batch in found}) == len(STAGES)
    assert len(found) == len(source) - 3
    for step, batch in enumerate(found, 3):
        assert_rows(batch, source[step], range(len(batch["tokens"])))
    assert not started()
