"""Speed of rules on one core, in MB of UTF-8 text per second, step by step and whole: the task `annotate` of a part.

    taskset -c 0 python tools/bench_rules.py --en 'corpora/en/*.jsonl' --zh 'corpora/zh/*.jsonl' --rounds 5

The whole reads parquet, splits words, measures, removes lines, and writes statistics and lists; steps are medians of
rounds over the same text. Compilation is not counted. `filter` is the task that applies thresholds to the statistics.
"""

import argparse
import json
import os
import statistics as numbers
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from compare_filters import LANGUAGES, load
from rich.console import Console

from data_prep.config import Pipeline
from data_prep.documents import Part, iterate
from data_prep.engine import open_workers
from data_prep.engine.tasks import report_to
from data_prep.ingest import stage as ingest
from data_prep.manifest import Folder
from data_prep.rules import filter, lines, statistics
from data_prep.rules.annotate import FILE, Measure, annotate, settings_of
from data_prep.stages import Run
from data_prep.text import words
from data_prep.text.texts import Texts
from maxlm.config import validate


def ingested(texts: list[str], language: str, folder: Path) -> tuple[Pipeline, list[Part]]:
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = {"kind": "jsonl", "path": str(raw), "language": language}
    values = {
        "name": "bench",
        "output": str(folder / "out"),
        "ingest": {"sources": {"web": source}},
        "rules": {"profiles": {language: language, "default": None}},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    config = validate(values, Pipeline, "bench")
    with open(os.devnull, "w") as sink:
        parts = ingest.run(Run(config, Console(file=sink), open_workers("native", 1)))
    report_to(lambda count: None)
    return config, parts


class Clock:
    """Processor seconds of each step, by name and round: other processes of the machine do not count."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, function: Callable, *arguments: object) -> object:
        start = time.process_time()
        result = function(*arguments)
        self.seconds.setdefault(name, []).append(time.process_time() - start)
        return result


def steps(clock: Clock, measure: Measure, parts: list[Part]) -> None:
    columns = ("row", "bytes", "language", "text")
    tables = clock.time("read", lambda: [table for part in parts for table in iterate(part, columns)])
    batches = [batch for table in tables for _, batch in Texts.of(table["text"]).batches()]
    found = clock.time("words", lambda: [words.split(batch, measure.splitter) for batch in batches])

    def measured() -> list[np.ndarray]:
        return [
            statistics.measure(batch, split, measure.traits, measure.stop_words)
            for batch, split in zip(batches, found, strict=True)
        ]

    rows = clock.time("statistics", measured)

    def left() -> None:
        for batch, split, row in zip(batches, found, rows, strict=True):
            lines.apply_rules(batch, split, measure.traits, measure.lines, row)

    if measure.lines.at_work:
        clock.time("lines", left)


def bench(language: str, texts: list[str], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        config, parts = ingested(texts, language, Path(name))
        profiles = config.rules.profiles
        settings = {key: profile and settings_of(profile) for key, profile in profiles.items()}
        size = sum(part.bytes for part in parts)
        clock = Clock()
        for number in range(rounds + 1):
            if number == 1:
                clock.seconds.clear()  # the first one compiled
            folder = Folder(Path(name, f"round{number}"))
            steps(clock, Measure(settings[language]), parts)

            def whole(folder: Folder = folder) -> None:
                for part in parts:
                    annotate(folder, part.name, part, settings)

            def drop(folder: Folder = folder) -> None:
                for part in parts:
                    path = folder.file(part.name, FILE)
                    filter.drop(folder, f"{part.name}-drop", part, path, profiles)

            clock.time("whole", whole)
            clock.time("filter", drop)
    print(f"{language}: {len(texts):,} documents, {size / 1e6:.1f} MB")
    for step, seconds in clock.seconds.items():
        print(f"  {step:12} {size / 1e6 / numbers.median(seconds):8.1f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for language in LANGUAGES:
        parser.add_argument(f"--{language}", nargs="*", default=[], metavar="GLOB", help="Files of texts.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for language in LANGUAGES:
        if texts := load(getattr(options, language), 10**9):
            bench(language, texts, options.rounds)


if __name__ == "__main__":
    main()
