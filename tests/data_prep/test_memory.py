"""Memory is that of a shard and of a range of keys, not of the input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
# Runs the command, and prints the largest resident memory of it and of its workers, in MiB.
MEASURED = """
import resource, sys
from data_prep.cli import main
try:
    main()
finally:
    peaks = [resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print("peaks", *peaks, file=sys.stderr)
"""


def write_text(path, megabytes):
    """Documents of about 2 kB of words, every one of its own; a twentieth of them twice."""
    generator = np.random.default_rng(0)
    words = np.array([f"w{number:x}" for number in range(4096)], object)
    with open(path, "w") as file:
        for number in range(megabytes * 500):
            text = " ".join(words[generator.integers(0, 4096, 400)])
            for copy in range(2 if number % 20 == 0 else 1):
                file.write(json.dumps({"id": f"{number}-{copy}", "text": text}) + "\n")


def prepare(tmp_path, megabytes):
    """Peaks of a run over so much text, in MiB: of the command, and of its workers."""
    directory = tmp_path / str(megabytes)
    directory.mkdir()
    write_text(directory / "text.jsonl", megabytes)
    source = {"kind": "jsonl", "path": str(directory / "text.jsonl"), "id_field": "id"}
    pipeline = {
        "name": "memory",
        "output": str(directory / "out"),
        "workers": 2,
        "ingest": {"sources": {"web": source}, "shard_bytes": 8_000_000},
        "dedup": {"exact": True, "fuzzy": {}},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 600, "max_bytes": 1_000_000},
        "shards": {"shard_tokens": 4_000_000},
    }
    (directory / "p.yaml").write_text(yaml.safe_dump(pipeline))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "run", str(directory / "p.yaml")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-2000:]
    return [int(word) for word in done.stderr.split("peaks ")[1].split()]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path):
    small, large = prepare(tmp_path, 16), prepare(tmp_path, 160)
    # A range of keys, four million at most, and the buffers of workers fill up with the first ones: 110 MiB measured.
    assert all(after < before + 144 for before, after in zip(small, large, strict=True)), (small, large)
