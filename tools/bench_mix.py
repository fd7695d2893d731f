"""What shares, epochs and orders cost after tokenizing, on fetched corpora.

    python tools/fetch_corpora.py CORPORA
    python tools/bench_mix.py CORPORA DIRECTORY

Prepares English and modern Chinese once, then with one setting changed after the other, and prints for each the seconds
of the whole run, of its parts, and the shares that came out. DIRECTORY keeps what was prepared: a second call measures
the settings alone.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa

ORDER = {"by": "chance_rank", "buckets": 16}
SETTINGS = {
    "all documents, shuffled": {},
    "2:8 of 20 M tokens": {"mix": {"tokens": 20_000_000, "weights": {"zh": 2, "en": 8}}},
    "3:7 of 20 M tokens": {"mix": {"tokens": 20_000_000, "weights": {"zh": 3, "en": 7}}},
    "1:1 of 40 M tokens, zh up to 4 times": {
        "mix": {"tokens": 40_000_000, "weights": {"zh": 1, "en": 1}, "max_epochs": {"zh": 4, "en": 4}}
    },
    "all documents, ordered": {"shards": {"shard_tokens": 2**22, "order": ORDER}},
    "3:7 of 20 M tokens, ordered": {
        "mix": {"tokens": 20_000_000, "weights": {"zh": 3, "en": 7}},
        "shards": {"shard_tokens": 2**22, "order": ORDER},
    },
}
# Runs the pipeline of argument 1 with the stages' seconds on the last line.
TIMED = """
import collections, json, sys, time
from rich.console import Console
from data_prep import pipeline, stages
from data_prep.config import Pipeline
from maxlm.config import load

seconds = collections.Counter()
def timed(name, call):
    def inner(self, stage, *arguments):
        start = time.perf_counter()
        try:
            return call(self, stage, *arguments)
        finally:
            seconds[stage] += time.perf_counter() - start
    return inner
for name in ("tasks", "query"):
    setattr(stages.Run, name, timed(name, getattr(stages.Run, name)))
pipeline.run(load(sys.argv[1], [], Pipeline), Console(width=150))
print(json.dumps(seconds))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    files = {"zh": arguments.corpora / "zh/modern.jsonl.zst", "en": arguments.corpora / "en/all.jsonl.zst"}
    scores = write_scores(files, arguments.directory / "scores.jsonl")
    base = {
        "name": "mix",
        "output": str(arguments.directory / "out"),
        "workers": 1,
        "ingest": {
            "sources": {name: {"kind": "jsonl", "path": str(file), "id_field": "id"} for name, file in files.items()},
            "shard_bytes": 2**24,
        },
        "quality": {"join": {"chance": {"path": str(scores)}}},
        "validation": {"fraction": 0.01},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 32768, "max_bytes": 2**25},
        "shards": {"shard_tokens": 2**22},
    }
    print(f"prepared: {run(base, arguments.directory)}", flush=True)
    for name, sections in SETTINGS.items():
        # Nothing of the same setting from an earlier call; the runs of tokens stay.
        for stage in ("mix", "shuffle", "output"):
            shutil.rmtree(arguments.directory / "out" / ".work" / "mix" / stage, ignore_errors=True)
        print(f"\n{name}: {run(base | sections, arguments.directory)}", flush=True)


def write_scores(files: dict[str, Path], path: Path) -> Path:
    """A number for every document, which stands for what a model would find."""
    if not path.exists():
        with open(path, "w") as out:
            for source, file in files.items():
                with pa.input_stream(str(file), compression="zstd") as lines:
                    for number, line in enumerate(lines.read().splitlines()):
                        name = f"{source}/{json.loads(line)['id']}"
                        out.write(json.dumps({"id": name, "score": number * 0.618 % 1}) + "\n")
    return path


def run(values: dict, directory: Path) -> str:
    """Seconds of the whole, of tokenizing, of the mixture and of the shuffle, and the largest process; the shares."""
    path = directory / "pipeline.json"
    path.write_text(json.dumps(values))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", TIMED, str(path)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    whole, seconds = time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    parts = ", ".join(f"{stage} {seconds.get(stage, 0):.2f}" for stage in ("tokenize", "mix", "shuffle"))
    table = re.findall(r"^ (?:zh|en|all) +[\d.]+ [MK].*$", done.stdout, re.M)
    return "\n".join([f"{whole:.1f} s, of which {parts}; largest process so far {memory:.2f} GiB", *table])


if __name__ == "__main__":
    main()
