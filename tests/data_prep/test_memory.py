"""Memory of a run, in every process: it does not grow with the input, and less of it than the input is enough."""

import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MB = 10**6
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
# Allocators reserve addresses far beyond what they use, and the limit counts those; so they are told not to.
PLAIN = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def write_corpus(directory: Path, files: int, words: int, file_bytes: int) -> None:
    """Documents that differ, of about 7 bytes a word, some of whose words are new."""
    generator = random.Random(files)
    common = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(5000)]
    bodies = [" ".join(generator.choices(common, k=words)) for _ in range(50)]
    directory.mkdir()
    number = 0
    for index in range(files):
        with open(directory / f"{index}.jsonl", "w") as file:
            while file.tell() < file_bytes:
                start = generator.randrange(len(common))
                own = " ".join(common[start : start + words // 4])
                file.write(json.dumps({"text": f"{number} {own} {bodies[number % len(bodies)]}"}) + "\n")
                number += 1


@pytest.fixture
def start(tmp_path, prepare):
    """A run over a directory, as a process; the tokenizer is given, as training one is not what is measured."""
    prepare(output=str(tmp_path / "tokenizer"))
    started = []

    def call(corpus: Path, limit: int | None = None, environment: dict | None = None, **sections) -> subprocess.Popen:
        source, shard_bytes = {"kind": "jsonl", "path": str(corpus)}, sections.pop("shard_bytes")
        config = {
            "name": "test",
            "output": str(tmp_path / f"out-{corpus.name}"),
            "workers": 2,
            "ingest": {"sources": {"web": source}, "shard_bytes": shard_bytes},
            "tokenizer": {"path": str(tmp_path / "tokenizer" / "web")},
        }
        path = tmp_path / f"{corpus.name}.yaml"
        path.write_text(yaml.safe_dump(config | sections))

        def prepare_process() -> None:
            # Threads take memory, and there are as many as processors.
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        process = subprocess.Popen(
            [sys.executable, "-m", "data_prep", "run", str(path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=prepare_process,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()


def peaks(process: subprocess.Popen) -> tuple[dict[str, int], dict[str, int]]:
    """The most memory of the process and of any of its workers: resident (its own account), and not of files."""
    own, workers = {}, {}
    while process.poll() is None:
        for pid, found in [(process.pid, own), *((child, workers) for child in children(process.pid))]:
            for name, value in memory(pid):
                found[name] = max(found.get(name, 0), value)
        time.sleep(0.01)
    assert process.returncode == 0, process.stdout.read()
    return own, workers


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def memory(pid: int) -> Iterator[tuple[str, int]]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssAnon"):
            yield name, int(value.split()[0]) * 1024


def test_twenty_times_the_input_takes_no_more_memory(tmp_path, start):
    """All stages; of the workers also without mapped files, which the system takes back when it needs to.

    A worker that kept the text it reads would take 60 MB more of 220; repeated runs differ by up to 35.
    """
    (tmp_path / "questions.txt").write_text("of what is asked here nothing will be found in any text of the corpus")
    sections = {
        "shard_bytes": 1_500_000,
        "language": {},
        "rules": {"profiles": {"default": {"gopher": {"min_words": 5}}}},
        "dedup": {"exact": True, "fuzzy": {}, "lines": {}, "substrings": {}},
        "decontaminate": {"files": [{"name": "questions", "path": str(tmp_path / "questions.txt")}]},
        "validation": {"fraction": 0.1},
        "shards": {"shard_tokens": 500_000},
    }
    found = []
    for files in (6, 120):
        write_corpus(tmp_path / f"corpus{files}", files, 200, MB)
        found.append(peaks(start(tmp_path / f"corpus{files}", **sections)))
    (own, workers), (more_own, more_workers) = found
    shown = {name: (own[name], more_own[name], workers[name], more_workers[name]) for name in own}
    assert more_own["VmHWM"] < 1.15 * own["VmHWM"], shown
    assert more_workers["VmHWM"] < 1.15 * workers["VmHWM"], shown
    assert more_workers["RssAnon"] < 1.2 * workers["RssAnon"], shown


def test_copies_are_found_in_the_memory_of_a_range_of_keys(tmp_path, start):
    """A range of keys, at most four million, and the buffers of workers fill up with the first ones: 110 MB."""
    found = []
    for files in (16, 160):
        write_corpus(tmp_path / f"corpus{files}", files, 200, MB)
        sections = {"shard_bytes": 8 * MB, "dedup": {"exact": True, "fuzzy": {}}, "shards": {"shard_tokens": 4 * MB}}
        found.append(peaks(start(tmp_path / f"corpus{files}", **sections)))
    for less, more in zip(*found, strict=True):
        assert more["VmHWM"] < less["VmHWM"] + 144 * 2**20, found


def test_a_run_completes_in_less_memory_than_its_input(tmp_path, start):
    """A limit for each process on its data: of it, 300 MB are Python and its libraries."""
    write_corpus(tmp_path / "corpus", 48, 1500, 10 * MB)
    process = start(
        tmp_path / "corpus",
        limit=420 * MB,
        environment=PLAIN,
        shard_bytes=10 * MB,
        dedup={"exact": True},
        shards={"shard_tokens": 20 * MB},
    )
    # Daft spins for ever where it finds no memory at all.
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "kept of all" in printed, printed
