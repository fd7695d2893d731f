"""What open sources cost a process: memory, time, file descriptors, after some hundred windows were read.

    python tools/bench_open.py                       # 1 x 10, 10 x 100 and 200 x 50 = 10,000 shards
    python tools/bench_open.py --cases 200x50 --open-files 256
    python tools/bench_open.py --store

Writes small synthetic shards with manifests of the usual size, opens them in a fresh process per case and reads
windows of every source in turn. Memory is RssAnon of Linux: what the process owns, without the pages of files, which
the kernel takes back at will. Prints a line of JSON per case.
"""

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from object_server import in_a_process

from maxlm.config import CacheConfig
from maxlm.data.shards import (
    HASH_DTYPE,
    HASHES,
    MANIFEST,
    FileEntry,
    Manifest,
    ShardEntry,
    Shards,
    TokenizerEntry,
    documents_name,
    file_entry,
    index_name,
    tokens_name,
)

DOCUMENT = 64  # tokens


def main() -> None:
    args = parse()
    if args.case:
        print(json.dumps(measure(*args.case, args)))
        return
    for case in args.cases:
        sources, shards = map(int, case.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            for number in range(sources):
                write(Path(folder, "data", f"source{number}"), shards, args.shard_tokens, number)
            serving = in_a_process(Path(folder, "data")) if args.store else nullcontext(f"{folder}/data")
            with serving as place:
                places = [f"{place}/source{number}" for number in range(sources)]
                Path(folder, "places").write_text("\n".join(places))
                command = [sys.executable, __file__, *sys.argv[1:], "--case", f"{folder}/places", f"{folder}/cache"]
                result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(json.dumps({"sources": sources, "shards": sources * shards} | json.loads(result)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Memory and time of opening sources.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["1x10", "10x100", "200x50"], help="SOURCESxSHARDS of each")
    parser.add_argument("--shard-tokens", type=int, default=16384, help="tokens of a shard")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=600, help="windows that are read, of every source in turn")
    parser.add_argument("--open-files", type=int, default=1024, help="the process's limit of open files (ulimit -n)")
    parser.add_argument("--store", action="store_true", help="read from an object store on loopback")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(places: str, cache: str, args: argparse.Namespace) -> dict:
    resource.setrlimit(resource.RLIMIT_NOFILE, (args.open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before, began = memory_mib(), time.perf_counter()
    sources = [Shards(place, CacheConfig(directory=cache)) for place in Path(places).read_text().split()]
    opened, opened_mib = time.perf_counter(), memory_mib()
    rng, total = np.random.default_rng(0), 0
    for window in range(args.windows):
        shards = sources[window % len(sources)]
        start = int(rng.integers(len(shards) - args.seq_len))
        total += int(shards.read(start, start + args.seq_len).sum()) + len(shards.ends(start, start + args.seq_len))
    read, read_mib = time.perf_counter(), memory_mib()
    pickled = pickle.dumps(sources)
    stored = time.perf_counter()
    pickle.loads(pickled)
    return {
        "windows": args.windows,
        "anonymous_mib_before": round(before, 1),
        "anonymous_mib_opened": round(opened_mib - before, 1),
        "anonymous_mib_read": round(read_mib - before, 1),
        "open_seconds": round(opened - began, 3),
        "read_seconds": round(read - opened, 3),
        "open_files": len(os.listdir("/proc/self/fd")),
        "pickle_kib": round(len(pickled) / 2**10, 1),
        "unpickle_seconds": round(time.perf_counter() - stored, 3),
        "sum": total,  # of what was read: the same whatever reads it
    }


def memory_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon"))


def write(directory: Path, shards: int, shard_tokens: int, seed: int) -> None:
    """Shards of random tokens; the documents' tables stand in the manifest alone, as nothing reads them here."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    entries = []
    for number in range(shards):
        paths = [directory / tokens_name(number), directory / index_name(number)]
        rng.integers(1, 2**15, shard_tokens, np.uint16).tofile(paths[0])
        np.arange(DOCUMENT, shard_tokens + 1, DOCUMENT).astype("<u8").tofile(paths[1])
        files = {path.name: file_entry(path) for path in paths}
        files[documents_name(number)] = FileEntry(size=1, sha256=files[paths[0].name].sha256)
        documents = shard_tokens // DOCUMENT
        entries.append(ShardEntry(tokens=shard_tokens, documents=documents, bytes=4 * shard_tokens, files=files))
    np.empty(0, HASH_DTYPE).tofile(directory / HASHES)
    manifest = Manifest(
        dtype="uint16",
        tokens=shards * shard_tokens,
        documents=sum(entry.documents for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        tokenizer=TokenizerEntry(kind="tokenizers", vocab_size=2**15, bos_id=None, eos_id=0, files={}),
        shards=entries,
        document_hashes=file_entry(directory / HASHES),
        # As many keys as a resolved pipeline has.
        pipeline={f"section{n}": {f"key{k}": f"value {k} of {n}" for k in range(10)} for n in range(8)},
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
