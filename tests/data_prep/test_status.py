"""The status of a pipeline is what a run would do, and looking changes nothing."""

import fcntl
import json
import os
import re

import pytest
from rich.console import Console

from data_prep.engine import Processes
from data_prep.pipeline import run
from data_prep.status import look


class Stopping(Processes):
    """Makes a number of results and is stopped then."""

    def __init__(self, left):
        super().__init__(1)
        self.left = left

    def make(self, folder, tasks, progress):
        chosen, self.left = tasks[: self.left], max(0, self.left - len(tasks))
        records = super().make(folder, chosen, progress) if chosen else {}
        if len(chosen) < len(tasks):
            raise KeyboardInterrupt
        return records


def state(root):
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
        for path in root.rglob("*")
    }


def by_stage(status):
    return {entry.stage: entry for entry in status.stages}


def made_by_a_run(config):
    """What a run makes, [stage, number], call by call, as it says itself."""
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        run(config, console)
    lines = re.findall(
        r"^([\w-]+): (?:(\d+) of \d+ \D+ up to date(?:, (\d+) made)?|query (made)?)", console.export_text(), re.M
    )
    return [(stage, int(made or 0) if counted else len(query) // 4) for stage, counted, made, query in lines]


def test_nothing_is_made_where_nothing_is(tmp_path, pipeline, every_stage):
    status = look(pipeline(**every_stage))
    assert status.waits_for == "ingest" and status.problem is None and status.running is None
    ingest = by_stage(status)["ingest"]
    assert ingest.total > 3 and ingest.done == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("results", [0, 12, 30, 70, 108, 134, 146, 156, 164, 175, 186])
def test_what_is_missing_is_what_a_run_makes(tmp_path, pipeline, every_stage, results):
    """Stopped after some results, at every stage, and then looked at and run."""
    config = pipeline(**every_stage)
    with open(os.devnull, "w") as sink, pytest.raises(KeyboardInterrupt):
        run(config, Console(file=sink), Stopping(results))
    for report in (tmp_path / "out").glob("*.json"):
        report.unlink()
    before = state(tmp_path)
    status = look(config)
    assert state(tmp_path) == before
    entry = by_stage(status)[status.waits_for]
    made = [(stage, number) for stage, number in made_by_a_run(config) if number and stage != "output"]
    assert made[0] == (status.waits_for, entry.total - entry.done)
    assert all(entry.done == entry.total for entry in status.stages if entry.total and entry.stage != made[0][0])
    assert not status.outputs or not all(status.outputs.values())


def test_a_finished_pipeline_is_done_and_a_changed_one_leaves_results_of_others(tmp_path, pipeline, every_stage):
    config = pipeline(**every_stage)
    made_by_a_run(config)
    before = state(tmp_path)
    status = look(config)
    assert status.done and set(map(os.path.basename, status.outputs)) == {"web", "web-val"}
    assert all(status.outputs.values()) and not any(entry.others for entry in status.stages)
    changed = look(pipeline(**every_stage, seed=9))
    tokenize = by_stage(changed)["tokenize"]
    folder = tmp_path / "out" / ".work" / "test" / "tokenize"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert changed.waits_for == "tokenize" and tokenize.done == 0 < tokenize.total
    assert (tokenize.others, tokenize.other_bytes) == (tokenize.total, size)
    assert state(tmp_path) == before


def test_an_output_that_is_missing_is_told_even_when_its_shards_are_there(tmp_path, pipeline, every_stage, monkeypatch):
    from data_prep.tokenize import output

    config = pipeline(**every_stage)
    with monkeypatch.context() as patch, open(os.devnull, "w") as sink, pytest.raises(KeyboardInterrupt):
        patch.setattr(output, "assemble", interrupt)
        run(config, Console(file=sink))
    before = state(tmp_path)
    status = look(config)
    assert state(tmp_path) == before and not status.done
    assert by_stage(status)["shuffle"].done == by_stage(status)["shuffle"].total > 1
    assert list(status.outputs.values()) == [False, False]


def interrupt(*_):
    raise KeyboardInterrupt


def test_unfinished_files_and_a_run_at_work_are_told(tmp_path, pipeline, every_stage, command):
    config = pipeline(**every_stage)
    made_by_a_run(config)
    folder = tmp_path / "out" / ".work" / "test"
    result = sorted((folder / "ingest").iterdir())[0]
    (result / "record.json").rename(result / "record.json.77.partial")
    with open(folder / "lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = look(config)
    assert by_stage(status)["ingest"].begun == 1 and f"process {os.getpid()} on" in status.running
    assert look(config).running is None


def test_a_run_waits_for_a_look_that_shares_its_lock(tmp_path, pipeline, every_stage):
    import threading

    config = pipeline(**every_stage)
    made_by_a_run(config)
    with open(tmp_path / "out" / ".work" / "test" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.3, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        assert not any(number for _, number in made_by_a_run(config))


def test_results_of_a_stage_that_is_gone_are_told_and_the_next_run_deletes_them(tmp_path, pipeline, every_stage):
    made_by_a_run(pipeline(**every_stage))
    work = tmp_path / "out" / ".work" / "test"
    (work / "mine" / "notes").mkdir(parents=True)
    (work / "gone" / ("0" * 32)).mkdir(parents=True)
    (work / "gone" / ("0" * 32) / "file").write_text("12345")
    entry = by_stage(look(pipeline(**every_stage)))["gone"]
    assert (entry.total, entry.others, entry.other_bytes) == (None, 1, 5)
    made_by_a_run(pipeline(**every_stage))
    assert not list((work / "gone").iterdir()) and (work / "mine" / "notes").is_dir()


def test_the_command_prints_tables_lines_and_json(tmp_path, pipeline, every_stage, command):
    import yaml

    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(pipeline(**every_stage).model_dump(mode="json")))
    done = command("status", file)
    assert done.returncode == 0 and "waits for ingest" in done.stdout and "no run is at work" in done.stdout
    absent = command("status", file, "ingest.sources.web.path=nowhere")
    assert absent.returncode == 0 and "a run would stop: source 'web': nowhere: no such file" in absent.stdout
    found = json.loads(command("status", file, "--json").stdout)
    assert found["waits_for"] == "ingest" and found["stages"][0]["stage"] == "ingest" and not found["done"]
    assert not (tmp_path / "out").exists()


def test_what_a_late_stage_lacks_is_told_beside_the_work_that_is_done(tmp_path, pipeline, every_stage):
    with open(os.devnull, "w") as sink, pytest.raises(KeyboardInterrupt):
        run(pipeline(**every_stage), Console(file=sink), Stopping(12))
    (tmp_path / "benchmark.txt").unlink()
    status = look(pipeline(**every_stage))
    ingest = by_stage(status)["ingest"]
    assert "benchmark.txt: no such file" in status.problem and ingest.done == ingest.total > 3
