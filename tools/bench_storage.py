"""How fast one process reads a source from an object store, with and without reading ahead.

    python tools/bench_storage.py --latency 0.05

Serves synthetic shards on loopback from a process of its own (`object_server.py`) that waits before every answer and
sends no faster than --bandwidth on a connection. A reader takes the windows of each block of 2^24 tokens in a random
order, as training does, and then sleeps as long as a step computes. Prints a line of JSON for each way: the disk
itself, the store with an empty cache without and with reading ahead, and the store with a full cache.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_open import memory_mib, write
from object_server import in_a_process

from maxlm.config import CacheConfig
from maxlm.data.read_ahead import ReadAhead, Span
from maxlm.data.shards import Shards

BLOCK = 2**24  # tokens, as in maxlm/data/order.py


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write(source, args.shards, args.tokens // args.shards, 0)
        with in_a_process(Path(folder), args.latency, args.bandwidth) as url:
            cold = [CacheConfig(directory=f"{folder}/cache{ahead}", read_ahead=ahead, **settings(args))
                    for ahead in (0, args.read_ahead)]  # fmt: skip
            report("disk", Shards(source), cold[0], args)
            report("store", Shards(f"{url}/source", cold[0]), cold[0], args)
            report("store, reading ahead", Shards(f"{url}/source", cold[1]), cold[1], args)
            report("store, full cache", Shards(f"{url}/source", cold[1]), cold[0], args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Tokens per second from a store.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before every answer of the store")
    parser.add_argument("--bandwidth", type=float, default=100, help="MiB a second of one connection")
    parser.add_argument("--step-seconds", type=float, default=0.05, help="how long a step computes")
    parser.add_argument("--steps", type=int, default=300, help="steps of a run")
    parser.add_argument("--tokens", type=int, default=2**27, help="tokens of the source")
    parser.add_argument("--shards", type=int, default=4, help="shard files of the source")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens of an example")
    parser.add_argument("--batch-size", type=int, default=64, help="examples of a step")
    parser.add_argument("--chunk-mib", type=int, default=8, help="data.cache.chunk_mib")
    parser.add_argument("--read-ahead", type=int, default=16, help="data.cache.read_ahead")
    parser.add_argument("--threads", type=int, default=8, help="data.cache.threads")
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict:
    return {"chunk_mib": args.chunk_mib, "threads": args.threads, "gib": 4.0}


def report(way: str, shards: Shards, cache: CacheConfig, args: argparse.Namespace) -> None:
    waits, began = [], time.perf_counter()
    ahead = ReadAhead(lambda step: spans(shards, step, args), args.steps, cache) if cache.read_ahead else None
    for step in range(args.steps):
        asked = time.perf_counter()
        if ahead:
            ahead.at(step)
        for _, start, stop in spans(shards, step, args):
            shards.read(start, stop).sum()
            shards.ends(start, stop)
        waits.append(time.perf_counter() - asked)
        time.sleep(args.step_seconds)
    seconds = time.perf_counter() - began
    if ahead:
        ahead.close()
    line = {
        "way": way,
        "tokens_per_second": round(args.steps * args.batch_size * args.seq_len / seconds),
        "data_wait_seconds": round(sum(waits), 2),
        "longest_wait": round(max(waits), 3),
        "first_wait": round(waits[0], 3),
        "steps_that_waited": sum(wait > 0.02 for wait in waits),
        "anonymous_mib": round(memory_mib()),
    }
    print(json.dumps(line | vars(args)), flush=True)


def spans(shards: Shards, step: int, args: argparse.Namespace) -> list[Span]:
    """The windows of a step, in an order that is random within each block of the source."""
    per_block = BLOCK // args.seq_len
    first = step * args.batch_size
    block, offset = divmod(first, per_block)
    block %= len(shards) // BLOCK
    order = np.random.default_rng(block).permutation(per_block)[offset : offset + args.batch_size]
    starts = block * BLOCK + order * args.seq_len
    return [(shards, start, min(start + args.seq_len + 1, len(shards))) for start in starts.tolist()]


if __name__ == "__main__":
    main()
