"""The map: order of results, errors and deaths of workers. The queries: which rows are repeated."""

import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.engine import Processes, Task, advance, queries
from data_prep.manifest import Folder
from maxlm.errors import DataError, MaxlmError


def double(folder, key, value):
    advance(10)
    return folder.commit(key, (), {"value": 2 * value, "process": os.getpid()})


def refuse(folder, key, value):
    raise DataError(f"no {value}")


def exhaust(folder, key, value):
    np.zeros(2**62, np.uint8)


def die(folder, key, value):
    os.kill(os.getpid(), signal.SIGKILL)


def tasks_of(function, count):
    return [Task(f"key{i}", function, (i,), 10) for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_made_once(tmp_path, workers):
    seen = []
    with Processes(workers) as pool:
        records, made = pool.run(Folder(tmp_path), tasks_of(double, 6), seen.append)
        assert [record.values["value"] for record in records] == [0, 2, 4, 6, 8, 10] and made == 6
        assert seen[-1] == 60
        again, made = pool.run(Folder(tmp_path), tasks_of(double, 8), seen.append)
    assert again[:6] == records and made == 2
    processes = {record.values["process"] for record in again}
    assert (processes == {os.getpid()}) == (workers == 1)


def test_nobody_is_told_of_work_after_the_tasks(tmp_path):
    seen = []
    with Processes(1) as pool:
        pool.run(Folder(tmp_path), tasks_of(double, 2), seen.append)
        with pytest.raises(DataError):
            pool.run(Folder(tmp_path), [Task("other", refuse, (1,), 1)], seen.append)
    advance(5)
    assert seen == [10, 20]


def test_many_tasks_are_in_flight_a_few_at_a_time(tmp_path):
    """What waits is not copied for the processes: 100,000 tasks would fill the memory of this one."""
    taken = []

    class Watched(tuple):
        def __iter__(self):
            taken.append(len(list(tmp_path.glob("key*/record.json"))))
            return super().__iter__()

    tasks = [Task(f"key{i}", double, Watched((i,)), 10) for i in range(60)]
    with Processes(2) as pool:
        records, _ = pool.run(Folder(tmp_path), tasks, lambda done: None)
    assert [record.values["value"] for record in records] == [2 * i for i in range(60)]
    assert all(number - finished <= 9 for number, finished in enumerate(taken)) and len(taken) == 60


def test_an_error_of_a_task_is_raised_and_finished_tasks_stay(tmp_path):
    folder = Folder(tmp_path)
    with Processes(2) as pool:
        pool.run(folder, tasks_of(double, 3), lambda done: None)
    with pytest.raises(DataError, match="no 7"), Processes(2) as pool:
        pool.run(
            folder, [*tasks_of(double, 3), Task("a", refuse, (7,), 1), Task("b", refuse, (7,), 1)], lambda done: None
        )
    assert all(folder.find(f"key{i}") for i in range(3))


@pytest.mark.parametrize("workers", [1, 2])
def test_want_of_memory_names_the_stage_and_what_to_lower(tmp_path, workers):
    message = "stage: there is not enough memory; use fewer workers or a smaller ingest.shard_bytes"
    with pytest.raises(MaxlmError, match=message), Processes(workers) as pool:
        pool.run(Folder(tmp_path / "stage"), tasks_of(exhaust, 2), lambda done: None)
    with pytest.raises(MaxlmError, match=message), Processes(workers) as pool:
        pool.run_here(Folder(tmp_path / "stage"), tasks_of(exhaust, 1)[0], lambda done: None)


def test_a_killed_worker_is_an_error_and_not_a_hang(tmp_path):
    with pytest.raises(MaxlmError, match="worker process was killed.*fewer workers"), Processes(2) as pool:
        pool.run(Folder(tmp_path), tasks_of(die, 2), lambda done: None)


def test_queries_find_shared_keys_range_by_range(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "RANGE_ROWS", 100)
    generator = np.random.default_rng(0)
    keys = generator.choice(generator.integers(0, 2**64, 500, np.uint64), 900)
    places = generator.permutation(900).astype(np.uint64)
    for number in range(3):
        table = pa.table({"key": keys[number::3], "place": places[number::3]}).sort_by("key")
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=50)
    found, table = [], queries.Sorted(sorted(tmp_path.iterdir()), ["key", "place"], "key")
    for low, high in queries.ranges(900):
        rows = queries.collect(queries.shared(table.between(low, high), ["key"], "place"), ["place"]).to_pylist()
        assert rows == sorted(rows, key=lambda row: row["place"])
        found += rows
    assert len(list(queries.ranges(900))) == 9 and list(queries.ranges(900))[-1][1] == 2**64 - 1
    first = {key: places[keys == key].min() for key in keys}
    expected = {(first[key], place) for key, place in zip(keys, places, strict=True) if place != first[key]}
    assert {(row["first"], row["place"]) for row in found} == expected and len(found) == len(expected)
