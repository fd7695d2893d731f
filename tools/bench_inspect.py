"""How long `maxlm inspect` takes in a run of a trillion tokens.

    python tools/bench_inspect.py --segments 10000

Makes two sources of 10^12 and 10^11 tokens and a checkpoint half way through a run of 10^12, then asks for steps,
slots, documents and the mixture, each in a process of its own, and prints a line of JSON with the medians: `seconds`
from the end of the imports to the last line printed and `cpu` of them at work, `command` of the whole process.

What is made up: the shards of a source are all hard links to one shard of random tokens, documents and rows, so there
is one to fill the page cache with. `documents.hash` is as long as it has to be (16 bytes for each of 2 x 10^9
documents), but holes where no search for the documents asked for ever looks. Everything else is what a run of that
size has.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maxlm.config import Config, to_yaml, validate
from maxlm.data import shards as layout
from maxlm.data.sources import open_present
from maxlm.saved import FORMAT_VERSION
from maxlm.train.position import Position
from maxlm.train.position import layout as stages_of

SHARD_TOKENS, DOCUMENT_TOKENS, VOCABULARY = 2**29, 500, 128_000
SOURCES = {"web": 10**12, "code": 10**11}
FIRST = "web-0-17"  # a document that is asked for: the row 17 of the first shard
TIMED = """
import sys, time
from maxlm.config import load
import maxlm.errors, maxlm.inspection.command, tokenizers, rich.table
from pathlib import Path
began, busy = time.perf_counter(), time.process_time()
try:
    maxlm.inspection.command.inspect_command(Path(sys.argv[1]), [], **eval(sys.argv[2]))
except maxlm.errors.DataError:
    pass
sys.stdout.flush()
print(time.perf_counter() - began, time.process_time() - busy, file=sys.stderr)
"""
NOTHING = dict.fromkeys(("step", "example", "tokens", "document", "source", "limit"), None)
NOTHING |= dict.fromkeys(("show_mixture", "full", "as_json"), False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench-inspect"), help="about 3 GB; made anew")
    parser.add_argument("--segments", type=int, default=1, help="segments of the schedule, by online weights")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each question; the median counts")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    for name, tokens in SOURCES.items():
        write_source(args.folder, name, tokens)
    run_dir, steps = write_run(args.folder, args.segments)
    questions = {
        "--step 1": {"step": 1},
        f"--step {steps // 2}": {"step": steps // 2},
        f"--step {steps}": {"step": steps},
        f"--step {steps // 2} --example 500": {"step": steps // 2, "example": 500},
        f"--step {steps // 2} --json": {"step": steps // 2, "as_json": True},
        "--tokens 7e11:7.00000001e11": {"tokens": "7e11:7.00000001e11"},
        f"--document {FIRST}": {"document": FIRST},
        "--document no-such-document": {"document": "no-such-document"},
        "--mixture": {"show_mixture": True},
    }
    found = {text: ask(run_dir, text, options, args.runs) for text, options in questions.items()}
    facts = {"steps": steps, "segments": args.segments, "python": platform.python_version(), "cores": os.cpu_count()}
    print(json.dumps(facts | found))


def ask(run_dir: Path, text: str, options: dict, runs: int) -> dict[str, float]:
    inside, busy, whole = [], [], []
    for _ in range(runs + 1):
        command = [sys.executable, "-c", TIMED, str(run_dir), repr(NOTHING | options)]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds, of_cpu = map(float, done.stderr.split()[-2:])
        inside.append(seconds)
        busy.append(of_cpu)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "maxlm.cli", "inspect", str(run_dir), *text.split()], capture_output=True)
        whole.append(time.perf_counter() - began)
    medians = {"seconds": inside, "cpu": busy, "command": whole}
    return {name: round(statistics.median(values[1:]), 3) for name, values in medians.items()}


def write_source(folder: Path, name: str, tokens: int) -> None:
    directory, count = folder / name, -(-tokens // SHARD_TOKENS)
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer" / "tokenizer.json").write_text(tokenizer())
    documents = write_shard(directory, name)
    names = [layout.tokens_name, layout.index_name, layout.documents_name]
    entry = {"tokens": SHARD_TOKENS, "documents": documents, "bytes": 4 * SHARD_TOKENS}
    entries = []
    for number in range(count):
        files = {}
        for file_name in names:
            path = directory / file_name(number)
            if number:
                os.link(directory / file_name(0), path)
            files[path.name] = layout.FileEntry(size=path.stat().st_size, sha256=f"{number:064x}")
        entries.append(layout.ShardEntry(**entry, files=files))
    write_hashes(directory / layout.HASHES, documents * count, {FIRST: (0, 17), "no-such-document": None})
    manifest = layout.Manifest(
        dtype="uint32",
        tokens=SHARD_TOKENS * count,
        documents=documents * count,
        bytes=4 * SHARD_TOKENS * count,
        tokenizer=layout.TokenizerEntry(
            kind="tokenizers",
            vocab_size=VOCABULARY,
            bos_id=None,
            eos_id=0,
            files={"tokenizer.json": layout.file_entry(directory / "tokenizer" / "tokenizer.json")},
        ),
        shards=entries,
        document_hashes=layout.FileEntry(size=16 * documents * count, sha256="0" * 64),
        pipeline={"name": "synthetic", "dedup": {"exact": True}},
    )
    (directory / layout.MANIFEST).write_text(manifest.model_dump_json())


def write_shard(directory: Path, name: str) -> int:
    """Random tokens, documents of geometric lengths, and their rows as they are prepared; returns their number."""
    rng = np.random.default_rng(len(name))
    cuts = np.flatnonzero(rng.random(SHARD_TOKENS - 3) < 1 / DOCUMENT_TOKENS) + 2
    ends = np.append(cuts[np.append(True, np.diff(cuts) > 1)], SHARD_TOKENS).astype("<u8")
    block = rng.integers(1, VOCABULARY, 2**24, np.uint32)
    with open(directory / layout.tokens_name(0), "wb") as file:
        for _ in range(SHARD_TOKENS // len(block)):
            file.write(block.tobytes())
    ends.tofile(directory / layout.index_name(0))
    rows = np.arange(len(ends))
    table = {
        "id": pa.array([f"{name}-0-{row}" for row in rows], pa.large_string()),
        "source": pa.array([name] * len(rows)),
        "url": pa.array([f"https://example.org/{name}/{row * 7919 % len(rows)}" for row in rows]),
        "language": pa.array(["en"] * len(rows)),
        "bytes": pa.array(4 * np.diff(ends.astype(np.int64), prepend=0)),
        "steps": pa.array(
            [[("ingest", f"part-{row % 997}.jsonl:{row}")] for row in rows], pa.map_(pa.string(), pa.string())
        ),
    }
    pq.write_table(pa.table(table), directory / layout.documents_name(0), compression="zstd", row_group_size=2**16)
    return len(rows)


def write_hashes(path: Path, documents: int, known: dict[str, tuple[int, int] | None]) -> None:
    """A sorted table of evenly spread hashes, of which only the pages exist that a search for `known` touches."""
    with open(path, "wb") as file:
        file.truncate(16 * documents)
    table = np.memmap(path, layout.HASH_DTYPE, "r+")
    for document_id, place in known.items():
        key = layout.document_hash(document_id)
        low, high = 0, documents
        while low < high:
            middle = (low + high) // 2
            page = np.arange(middle & ~255, min((middle | 255) + 1, documents))
            table["hash"][page] = [number * 2**64 // documents for number in page.tolist()]
            low, high = (middle + 1, high) if middle * 2**64 // documents < key else (low, middle)
        if place and low < documents:
            table[low] = (key, *place)
    table.flush()


def tokenizer() -> str:
    """A byte-level BPE as large as Llama 3's: each token joins two of those before it."""
    rng, names = np.random.default_rng(0), [chr(256 + byte) for byte in range(256)]
    merges, seen = [], set(names)
    while len(names) < VOCABULARY:
        left, right = (names[int(number)] for number in rng.integers(0, min(len(names), 4000), 2))
        if left + right not in seen and len(left + right) < 12:
            names.append(left + right)
            seen.add(left + right)
            merges.append([left, right])
    model = {"type": "BPE", "vocab": {name: number for number, name in enumerate(names)}, "merges": merges}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": [], **parts, "model": model})


def write_run(folder: Path, segments: int) -> tuple[Path, int]:
    """A checkpoint in the middle of a run, which has changed its weights `segments` - 1 times so far."""
    values = {
        "name": "run",
        "model": {"vocab_size": VOCABULARY, "num_layers": 1, "embed_dim": 8, "num_heads": 1, "num_kv_heads": 1,
                  "head_dim": 8, "mlp_dim": 8},
        "data": {
            "seq_len": 4096,
            "sources": {name: {"path": str(folder / name)} for name in SOURCES},
            "mixture": [{"tokens": 10**12, "weights": {"web": 0.8, "code": 0.2}}],
        },
        "train": {"batch_tokens": 2**22},
        "runs_dir": str(folder),
    }  # fmt: skip
    config = validate(values, Config, "bench")
    sources, _ = open_present(config.data, config.seed)
    stages = stages_of(config, sources)
    schedule = stages.begin()
    steps = schedule.steps(config.total_tokens)
    for number in range(1, segments):
        weights = {"web": 0.8, "code": 0.2 + 0.1 * np.sin(number)}
        schedule = stages.weighted(weights).reweigh(schedule, steps // 2 * number // segments)
    at = schedule.point(steps // 2)
    position = Position(at.step, at.tokens, at.tokens, at.example, schedule)
    manifests = {name: source.shards.manifest.hash for name, source in sources.items()}
    run = {"version": FORMAT_VERSION, "config": config.model_dump(mode="json"), "manifests": manifests}
    path = config.run_dir / "checkpoints" / str(at.step) / "run" / "metadata"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run | position.to_json()))
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    return config.run_dir, steps


if __name__ == "__main__":
    main()
