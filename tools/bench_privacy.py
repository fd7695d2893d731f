"""Speed of the rules for personal data on one core, and what other rules find on the labelled sample.

    taskset -c 0 python tools/bench_privacy.py CORPORA [--rounds 5] [--datatrove DIRECTORY]

CORPORA is what tools/fetch_corpora.py made; code is Python's own library. MB are 10^6 bytes of UTF-8 text, seconds are
the processor's, medians of rounds. `leads` is the scan alone, `check` with the rules' checks, `find` the whole task
from a text shard to the file of spans, `mask` the task that decides by it. datatrove's formatter comes from a directory
that `pip install --target DIRECTORY datatrove==0.10.1` made; Dolma's rules are written here from their description.
"""

import argparse
import ipaddress
import json
import re
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from privacy_sample import print_scores, sample, score
from rich.console import Console

from data_prep.config import Pipeline
from data_prep.documents import Part
from data_prep.engine import open_workers
from data_prep.ingest import stage as ingest
from data_prep.manifest import Folder
from data_prep.privacy import find, mask
from data_prep.stages import Run
from data_prep.text.texts import Texts
from maxlm.config import validate

CORPORA = {"en": "en/all.jsonl.zst", "zh": "zh/modern.jsonl.zst", "verse": "zh/poetry.jsonl.zst"}
REGIONS = ("CN", "US")
# Dolma's taggers/pii.py, from its description.
DOLMA = {
    "email": r"[.\s@,?!;:)(]*([^\s@]+@[^\s@,?!;:)(]+?)[.\s@,?!;:)(]?[\s\n\r]",
    "phone": r"\s+\(?(\d{3})\)?[-\. ]*(\d{3})[-. ]?(\d{4})",
    "ipv4": r"(?:(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]{1,2})\.){3}(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]{1,2})",
}


def load(path: Path) -> list[str]:
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as file:
        return [json.loads(line)["text"] for line in file.read().splitlines()]


def load_code() -> list[str]:
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            text = path.read_bytes().decode("utf-8", "replace")
            found += [text] if text.strip() else []
    return found


def ingested(texts: Sequence[str], folder: Path) -> list[Part]:
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    values = {
        "name": "bench",
        "output": str(folder / "out"),
        "ingest": {"sources": {"web": {"kind": "jsonl", "path": str(raw)}}},
        "privacy": {},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    config = validate(values, Pipeline, "bench")
    with open_workers("native", 1) as workers:
        return ingest.run(Run(config, Console(quiet=True), workers))


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def bench(name: str, texts: list[str], rounds: int, others: dict[str, Callable[[str], object]]) -> None:
    groups = [Texts.from_strings(texts[first : first + 4096]) for first in range(0, len(texts), 4096)]
    size, scan = sum(len(group.data) for group in groups) / 1e6, find.scanner(REGIONS)
    part_text = texts[:: max(1, round(size / 10))]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        parts = ingested(texts, Path(directory))
        privacy = validate({}, mask.PrivacyConfig, "bench")
        for number in range(rounds):
            folder = Folder(Path(directory, f"round{number}"))
            steps = {
                "leads": lambda: [sum(1 for _ in scan.leads.finditer(group.data.tobytes())) for group in groups],
                "check": lambda: [find.in_texts(scan, group) for group in groups],
                "find": lambda folder=folder: [find.find(folder, part.name, part, REGIONS, ()) for part in parts],
                "mask": lambda folder=folder: [
                    mask.mask(folder, f"{part.name}m", part, folder.file(part.name, find.FILE), privacy)
                    for part in parts
                ],
            }
            for step, function in steps.items():
                times.setdefault(step, []).append(size / seconds(function))
            for step, function in others.items():
                share = sum(len(text.encode()) for text in part_text) / 1e6
                times.setdefault(step, []).append(
                    share / seconds(lambda function=function: [function(text) for text in part_text])
                )
    figures = ", ".join(f"{step} {statistics.median(values):,.1f}" for step, values in times.items())
    print(f"{name}: {len(texts):,} documents, {size:.1f} MB; MB/s: {figures}", flush=True)


Found = list[list[tuple[str, int, int]]]


def by_patterns(patterns: dict[str, tuple[re.Pattern, Callable[[str, re.Match], bool]]]) -> Callable[..., Found]:
    """A finder whose spans are whole matches that their check accepts."""

    def spans(text: str) -> Iterator[tuple[str, int, int]]:
        for kind, (pattern, check) in patterns.items():
            for match in pattern.finditer(text):
                first = 1 if kind == "email" and match.re.groups else 0
                if check(text, match):
                    start, stop = (len(text[:place].encode()) for place in match.span(first))
                    stripped = len(text[match.start(first) : match.end(first)]) - len(match[first].lstrip())
                    yield kind, start + stripped, stop

    return lambda texts: [list(spans(text)) for text in texts]


def dolma(text: str, match: re.Match) -> bool:
    """Its post-rules: what stands before says that it is a number of another kind."""
    head = text[max(0, match.start() - 20) : match.start() + 1].lower()
    return not any(word in head for word in ("isbn", "doi", "#"))


def is_global(_: str, match: re.Match) -> bool:
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, metavar="CORPORA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--datatrove", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    patterns = {kind: (re.compile(pattern), dolma) for kind, pattern in DOLMA.items()}
    finders, others = {"ours": find.find_all, "Dolma's rules": by_patterns(patterns)}, {}
    if options.datatrove:
        sys.path.append(str(options.datatrove))
        from datatrove.pipeline.formatters.pii import PIIFormatter

        formatter = PIIFormatter()
        others["datatrove"] = formatter.format
        expressions = {"email": formatter.emails_replacer.regex, "ipv4": formatter.ip_replacer.regex}
        checks = {"email": lambda text, match: True, "ipv4": is_global}
        finders["datatrove's"] = by_patterns({kind: (expressions[kind], checks[kind]) for kind in expressions})
    cases = list(sample(0, options.cases))
    for name, finder in finders.items():
        print(f"\n{name}, labelled sample of {len(cases):,} cases")
        print_scores(score(cases, finder)[0])
    print()
    bench("code", load_code(), options.rounds, others)
    for name, path in CORPORA.items():
        bench(name, load(options.corpora / path), options.rounds, others)


if __name__ == "__main__":
    main()
