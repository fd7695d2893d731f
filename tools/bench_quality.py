"""Real texts to train models of quality on, of what tools/fetch_corpora.py made, and the speed of the stage `quality`.

    python tools/bench_quality.py inputs CORPORA prepared/quality-inputs
    taskset -c 0 python tools/bench_quality.py speed CORPORA prepared/models/prose prepared/models/topics --rounds 5

`inputs` writes a file for each source of the corpora (OUT/en/NAME.jsonl.zst, OUT/zh/NAME.jsonl.zst), and of each HTML
page what resiliparse takes for its main content (OUT/pages/content.jsonl.zst) and the lines that it leaves out, menus
and navigation (OUT/pages/boilerplate.jsonl.zst).

`speed` measures, in MB of UTF-8 text per second of one core, the pass that scores documents by one model and by all of
them, and ranks and selection in documents per second: medians of rounds over one shard. Compilation is not counted.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from data_prep.config import Pipeline, ScoreLimit
from data_prep.documents import Part, iterate
from data_prep.engine import open_workers
from data_prep.engine.tasks import report_to
from data_prep.ingest import stage as ingest
from data_prep.manifest import Folder, Record
from data_prep.quality import models, ranks, scores, select
from data_prep.quality.scores import Scorer
from data_prep.stages import Run
from maxlm.config import validate

CORPORA = {"en": "en/all.jsonl.zst", "zh": "zh/modern.jsonl.zst"}
# Less says nothing of a page.
LEAST_CHARACTERS = 100


def write_inputs(corpora: Path, out: Path, pages: int) -> None:
    with contextlib.ExitStack() as stack:
        files: dict[str, pa.CompressedOutputStream] = {}

        def write(name: str, document: dict) -> None:
            path = out / f"{name}.jsonl.zst"
            if name not in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                files[name] = stack.enter_context(pa.CompressedOutputStream(str(path), "zstd"))
            files[name].write(json.dumps(document, ensure_ascii=False).encode() + b"\n")

        for language, name in CORPORA.items():
            with pa.CompressedInputStream(str(corpora / name), "zstd") as file:
                for line in io.BufferedReader(file):
                    document = json.loads(line)
                    write(f"{language}/{document['source'].removesuffix('.json')}", document)
        for url, content, boilerplate in read_pages(corpora / "html.warc.gz", pages):
            for name, text in (("content", content), ("boilerplate", boilerplate)):
                if len(text) >= LEAST_CHARACTERS:
                    write(f"pages/{name}", {"id": url.removeprefix("http://"), "text": text})


def read_pages(path: Path, count: int) -> Iterator[tuple[str, str, str]]:
    """Address, main content and the other lines of pages."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    for number, record in enumerate(ArchiveIterator(str(path), record_types=WarcRecordType.response)):
        if number == count:
            return
        tree = HTMLTree.parse_from_bytes(record.reader.read(), "utf-8")
        content, whole = (extract_plain_text(tree, main_content=main, alt_texts=False) for main in (True, False))
        lines = {line.strip() for line in content.splitlines()}
        others = [line.strip() for line in whole.splitlines() if line.strip() and line.strip() not in lines]
        yield record.headers["WARC-Target-URI"], content, "\n".join(others)


def measure_speed(corpora: Path, directories: list[Path], rounds: int, max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for language, name in CORPORA.items():
            print(f"{language}:")
            _measure(_ingested(corpora / name, language, Path(folder) / language, max_bytes), directories, rounds)


def _ingested(path: Path, language: str, folder: Path, max_bytes: int) -> Part:
    source = {"kind": "jsonl", "path": str(path.resolve()), "id_field": "id", "language": language}
    values = {
        "name": "bench",
        "output": str(folder),
        "ingest": {"sources": {"web": source}, "shard_bytes": max_bytes},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    with open(os.devnull, "w") as sink:
        return ingest.run(Run(validate(values, Pipeline, "bench"), Console(file=sink), open_workers("native", 1)))[0]


def _measure(part: Part, directories: list[Path], rounds: int) -> None:
    report_to(None)
    scorers = [Scorer(path.name.replace("-", "_"), models.find(path.resolve()), None) for path in directories]
    out = part.path.parents[2]
    print(f"  {part.documents:,} documents, {part.bytes / 1e6:.1f} MB")

    def scored(chosen: list[Scorer]) -> Record:
        folder = Folder(out / scores.STAGE)
        shutil.rmtree(folder.path, ignore_errors=True)
        return scores.score(folder, "pass", part, chosen)

    reading = _seconds(lambda: list(iterate(part, ("row", "language", "text"))), rounds)
    print(f"  reading alone: {part.bytes / 1e6 / reading:.0f} MB/s")
    for chosen in [[scorer] for scorer in scorers] + ([scorers] if len(scorers) > 1 else []):
        seconds = _seconds(lambda chosen=chosen: scored(chosen), rounds)
        print(f"  scores by {' and '.join(one.name for one in chosen)}: {part.bytes / 1e6 / seconds:.1f} MB/s")
    numeric = next(scorer for scorer in scorers if not scorer.model.is_topic)
    path = Folder(out / scores.STAGE).file(numeric.key(part), scores.FILE)
    part = part.with_columns(path, numeric.written, "scored")
    folder, table = Folder(out / ranks.STAGE), Folder(out / ranks.STAGE).file("table", ranks.TABLE)
    limits = [ScoreLimit(score=numeric.name, min=0.5)]
    steps: dict[str, Callable[[], object]] = {
        "table of ranks": lambda: ranks.tabulate(folder, "table", [part], numeric.order),
        "ranks": lambda: ranks.rank(folder, "ranks", part, numeric.name, numeric.order, table),
        "selection": lambda: select.select(Folder(out / "quality"), "select", part, limits),
    }
    for name, step in steps.items():
        print(f"  {name}: {part.documents / _seconds(step, rounds):,.0f} documents/s")


def _seconds(step: Callable[[], object], rounds: int) -> float:
    """Median of the processor's time; other processes of the machine do not count."""
    step()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    inputs, speed = commands.add_parser("inputs"), commands.add_parser("speed")
    for command in (inputs, speed):
        command.add_argument("corpora", type=Path, metavar="CORPORA", help="what tools/fetch_corpora.py made")
    inputs.add_argument("out", type=Path, metavar="OUT")
    inputs.add_argument("--pages", type=int, default=8000, help="HTML pages that are read, at most")
    speed.add_argument("models", type=Path, nargs="+", metavar="DIR", help="a classifier of two labels, and others")
    speed.add_argument("--rounds", type=int, default=5)
    speed.add_argument("--max-bytes", type=int, default=40_000_000, help="text of a language")
    args = parser.parse_args()
    if args.command == "inputs":
        write_inputs(args.corpora, args.out, args.pages)
    else:
        measure_speed(args.corpora, args.models, args.rounds, args.max_bytes)


if __name__ == "__main__":
    main()
