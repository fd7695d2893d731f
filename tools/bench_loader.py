"""How many tokens per second one process reads through the path that training uses, beside plain Grain.

    python tools/bench_loader.py --sources 10 --stages 3

Writes synthetic shards into a temporary folder, reads them once to warm the page cache, then times, in turns, runs of
`loader.batches` and of Grain's own `MapDataset.mix` over the same shards, and prints one line of JSON with the medians.
Grain's mixes windows of tokens alone: no documents, no positions, no stages. No accelerator takes part.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tokenizers

from maxlm.config import SourceConfig
from maxlm.data import bestfit, loader
from maxlm.data.schedule import Layout, Stage
from maxlm.data.shards import (
    HASH_DTYPE,
    HASHES,
    MANIFEST,
    Manifest,
    ShardEntry,
    Shards,
    TokenizerEntry,
    file_entry,
    index_name,
    tokens_name,
)
from maxlm.data.sources import Source


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            sources, args.sources = {path: Shards(path) for path in args.data}, len(args.data)
        else:
            names = [f"source{number}" for number in range(args.sources)]
            sources = {name: write(Path(folder) / name, args, seed) for seed, name in enumerate(names)}
        measure(sources, args, 0)  # warms the cache
        pairs = [(measure(sources, args, seed), measure_grain(sources, args, seed)) for seed in range(args.runs)]
    runs, plain = zip(*pairs, strict=True)
    line = {
        "tokens_per_second": round(statistics.median(runs)),
        "lowest": round(min(runs)),
        "highest": round(max(runs)),
        "grain_mix_tokens_per_second": round(statistics.median(plain)),
        "ratio": round(statistics.median(ours / grain for ours, grain in pairs), 2),
        **vars(args),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "grain": version("grain"),
    }
    print(json.dumps(line))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Tokens per second of the data loader.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2**26, help="tokens of each source")
    parser.add_argument("--document-tokens", type=int, default=500, help="mean length of a document, in tokens")
    parser.add_argument("--shards", type=int, default=4, help="shard files of each source")
    parser.add_argument("--sources", type=int, default=1, help="sources, with weights 1, 1/2, 1/3, ...")
    parser.add_argument("--stages", type=int, default=1, help="stages of the run, each with the weights turned by one")
    parser.add_argument("--packing", choices=["concat", "bestfit"], default="concat", help="how documents fill windows")
    parser.add_argument("--fim", choices=["token", "character"], help="rearrange every document at this level")
    parser.add_argument("--data", nargs="+", help="read these prepared directories instead; --fim character")
    parser.add_argument("--dtype", choices=["uint16", "uint32"], default="uint16", help="type of the token files")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens of an example")
    parser.add_argument("--batch-size", type=int, default=64, help="examples of a step")
    parser.add_argument("--steps", type=int, default=500, help="steps of a run")
    parser.add_argument("--runs", type=int, default=7, help="timed runs; the median counts")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 reads in a thread")
    parser.add_argument("--prefetch", type=int, default=4, help="batches read ahead")
    parser.add_argument("--no-mask-documents", dest="mask_documents", action="store_false", help="one text per window")
    return parser.parse_args()


def weights(args: argparse.Namespace, turn: int) -> list[float]:
    return [1 / (1 + (number + turn) % args.sources) for number in range(args.sources)]


def measure(shards: dict[str, Shards], args: argparse.Namespace, seed: int) -> float:
    """Tokens per second from the second batch to the last: starting threads or processes is not counted."""
    pack = partial(bestfit.open_index, overlong="split") if args.packing == "bestfit" else None
    config = SourceConfig(path="", fim={"rate": 1, "level": args.fim} if args.fim else None)
    sources = {name: Source(name, one, config, seed, pack) for name, one in shards.items()}
    tokens = args.steps * args.batch_size * args.seq_len // args.stages
    stages = [
        Stage(tokens, dict(zip(shards, weights(args, turn), strict=True)), args.batch_size, args.seq_len)
        for turn in range(args.stages)
    ]
    source = loader.Batches(
        sources,
        Layout(stages, sources).begin(),
        rows={args.batch_size: range(args.batch_size)},
        num_steps=args.steps,
        mask_documents=args.mask_documents,
    )
    with closing(loader.batches(source, workers=args.workers, prefetch=args.prefetch)) as reader:
        return rate(batch["tokens"].size for batch in reader)


class Windows:
    """Windows of a source as a random-access source of Grain."""

    def __init__(self, shards: Shards, seq_len: int):
        self._shards, self._seq_len = shards, seq_len

    def __len__(self) -> int:
        return (len(self._shards) - 1) // self._seq_len

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        text = self._shards.read(number * self._seq_len, (number + 1) * self._seq_len + 1)
        return {"tokens": text[:-1].astype(np.int32), "targets": text[1:].astype(np.int32)}


def measure_grain(shards: dict[str, Shards], args: argparse.Namespace, seed: int) -> float:
    """The same with Grain alone: every source shuffled, mixed by the weights of the first stage, batched."""
    import grain

    parts = [grain.MapDataset.source(Windows(one, args.seq_len)).shuffle(seed).repeat() for one in shards.values()]
    mixed = grain.MapDataset.mix(parts, weights(args, 0)).batch(args.batch_size)[: args.steps]
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=args.prefetch)
    iterator = iter(mixed.to_iter_dataset(options))
    iterator.start_prefetch()
    with closing(iterator) as reader:
        return rate(batch["tokens"].size for batch in reader)


def rate(sizes: Iterator[int]) -> float:
    next(sizes)
    begin = time.perf_counter()
    return sum(sizes) / (time.perf_counter() - begin)


def write(directory: Path, args: argparse.Namespace, seed: int) -> Shards:
    """Shards of random tokens and geometric document lengths; without texts, so without documents' tables."""
    (directory / "tokenizer").mkdir(parents=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 0}, "</s>"))
    tokenizer.add_special_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    tokenizer.save(str(directory / "tokenizer" / "tokenizer.json"))
    rng = np.random.default_rng(seed)
    entries = []
    for number in range(args.shards):
        size = args.tokens // args.shards
        tokens = rng.integers(1, 2**15, size, np.uint16).astype(args.dtype)
        cuts = np.flatnonzero(rng.random(size - 3) < 1 / args.document_tokens) + 2
        ends = np.append(cuts[np.append(True, np.diff(cuts) > 1)], size).astype("<u8")
        tokens[ends - 1] = 0
        paths = [directory / tokens_name(number), directory / index_name(number)]
        tokens.tofile(paths[0])
        ends.tofile(paths[1])
        files = {path.name: file_entry(path) for path in paths}
        entries.append(ShardEntry(tokens=size, documents=len(ends), bytes=4 * size, files=files))
    np.empty(0, HASH_DTYPE).tofile(directory / HASHES)
    manifest = Manifest(
        dtype=args.dtype,
        tokens=sum(entry.tokens for entry in entries),
        documents=sum(entry.documents for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        tokenizer=TokenizerEntry(kind="tokenizers", vocab_size=2**15, bos_id=None, eos_id=0, files={}),
        shards=entries,
        document_hashes=file_entry(directory / HASHES),
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    return Shards(directory)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
