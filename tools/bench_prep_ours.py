"""One row of bench_prep.py with our own stages: the pipeline runs as always, with a clock around its workers.

Called by bench_prep.py with a specification in JSON; prints a line of JSON.
"""

import json
import os
import resource
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RULES = {"profiles": {"en": "en", "zh": "zh", "default": "default"}}
FUZZY = {"exact": False, "fuzzy": {}}
WHOLE_DEDUP = {"exact": True, "fuzzy": {}}
TRAINING_BYTES = 40_000_000


class Bench:
    """Runs pipelines below a folder and keeps how long each stage's tasks took."""

    def __init__(self, spec: dict):
        self.inputs, self.runs, self.cores = spec["inputs"], spec["runs"], spec["cores"]
        self.vocab_size = spec["vocab_size"]
        self.work = Path(self.inputs["work"]) / "ours" / spec["row"]

        self.work.mkdir(parents=True, exist_ok=True)

    def config(self, name: str, sources: dict[str, dict], **sections: Any) -> Any:
        """A pipeline; with several workers its shards of text are so small that all have work to the end."""
        from data_prep.config import Pipeline
        from maxlm.config import validate

        values = {
            "name": name,
            "output": str(self.work / name),
            "workers": len(self.cores),
            "ingest": {"sources": sources, "shard_bytes": self.shard_bytes(sources)},
            "tokenizer": {"algorithm": "byte_bpe", "vocab_size": self.vocab_size, "max_bytes": TRAINING_BYTES},
        }
        return validate(values | sections, Pipeline, "the bench")

    def shard_bytes(self, sources: dict[str, dict]) -> int:
        if len(self.cores) == 1:
            return 2**28
        paths = (Path(source["path"]) for source in sources.values())
        files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
        return -(-sum(file.stat().st_size for file in files) // (4 * len(self.cores)))

    def run(self, config: Any, until: str) -> tuple[Counter, float, list[dict]]:
        """Seconds by stage, seconds in all, and the funnel."""
        from rich.console import Console

        from data_prep.engine.local import Processes
        from data_prep.pipeline import FUNNEL, run

        seconds: Counter = Counter()

        class Timed(Processes):
            def make(self, folder, tasks, progress):
                with clock(seconds, folder.path.name):
                    return super().make(folder, tasks, progress)

            def run_here(self, folder, task, progress):
                with clock(seconds, folder.path.name):
                    return super().run_here(folder, task, progress)

        start = time.perf_counter()
        with open(self.work / "run.log", "a") as log:
            run(config, Console(file=log, width=150), Timed(config.workers), until)
        whole = time.perf_counter() - start
        return seconds, whole, json.loads((config.work / FUNNEL).read_text())

    def repeat(self, config: Any, until: str, stages: Sequence[str], outputs: Sequence[str] = ()) -> list[tuple]:
        """Run up to a stage that is done anew each time, the stages before it only once."""
        from data_prep.tokenize.encode import open_libraries

        found = []
        for _ in range(self.runs):
            # With the words that it remembers, a second run over the same text would be what no corpus sees.
            open_libraries.cache_clear()
            for stage in stages:
                shutil.rmtree(config.work / stage, ignore_errors=True)
            for output in outputs:
                shutil.rmtree(Path(config.output) / output, ignore_errors=True)
            found.append(self.run(config, until))
        return found

    def documents(self, name: str, language: str) -> dict[str, dict]:
        return {language: {"kind": "jsonl", "path": self.inputs[name], "id_field": "id", "language": language}}


@contextmanager
def clock(seconds: Counter, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start


def result(size: int, seconds: Sequence[float], **others: Any) -> dict:
    """A row: MB/s at the median."""
    return {
        "mb": size / 1e6,
        "seconds": list(seconds),
        "mb_per_second": size / 1e6 / statistics.median(seconds),
        "peak_worker_mb": _peak() / 1e6,
    } | others


def _peak() -> int:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * (1 if sys.platform == "darwin" else 1024)


def extract(bench: Bench) -> dict:
    bench.run(bench.config("warm", {"web": {"kind": "warc", "path": bench.inputs["warc-warm"]}}), "ingest")
    config = bench.config("extract", {"web": {"kind": "warc", "path": bench.inputs["warc"]}})
    found = bench.repeat(config, "ingest", ["ingest"])
    seconds = [by_stage["ingest"] for by_stage, *_ in found]
    pages, html = html_of(bench.inputs["warc"])
    text = found[-1][2][-1]["after"]["bytes"]
    rates = {
        "text_mb_per_second": text / 1e6 / statistics.median(seconds),
        "pages_per_second": pages / statistics.median(seconds),
    }
    return result(html, seconds, pages=pages, text_mb=text / 1e6, **rates)


def html_of(directory: str) -> tuple[int, int]:
    """Pages of a folder of WARC files, and the bytes of their HTML."""
    from fastwarc.warc import ArchiveIterator

    pages = size = 0
    for path in sorted(Path(directory).iterdir()):
        with open(path, "rb") as file:
            for record in ArchiveIterator(file, parse_http=True):
                pages, size = pages + 1, size + len(record.reader.read())
    return pages, size


def rules(bench: Bench, language: str) -> dict:
    bench.run(bench.config("warm", bench.documents("warm", language), rules=RULES), "rules")
    config = bench.config("rules", bench.documents(language, language), rules=RULES)
    found = bench.repeat(config, "rules", ["annotate", "rules"])
    before, after = found[-1][2][0]["after"], found[-1][2][-1]["after"]
    seconds = [by_stage["annotate"] + by_stage["rules"] for by_stage, *_ in found]
    return result(before["bytes"], seconds, documents=before["documents"], kept=after["documents"])


def fuzzy(bench: Bench) -> dict:
    from data_prep import pipeline

    bench.run(bench.config("warm", bench.documents("warm", "en"), dedup=FUZZY), "fuzzy")
    config = bench.config("fuzzy", bench.documents("near", "en"), dedup=FUZZY)
    stage, parts = pipeline.SELECTING["fuzzy"], []

    def keep(this: Any, before: list) -> list:
        parts[:] = stage(this, before)
        return list(parts)

    pipeline.SELECTING = dict(pipeline.SELECTING) | {"fuzzy": keep}
    found = bench.repeat(config, "fuzzy", ["fuzzy"])
    left = [name.removeprefix("en/") for name in _ids(parts)]
    before = found[-1][2][0]["after"]
    seconds = [by_stage["fuzzy"] for by_stage, *_ in found]
    return result(
        before["bytes"], seconds, documents=before["documents"], removed=before["documents"] - len(left), left=left
    )


def _ids(parts: Sequence[Any]) -> list[str]:
    from data_prep.documents import iterate

    return [name for part in parts for table in iterate(part, ("id",)) for name in table["id"].to_pylist()]


def tokens(bench: Bench) -> dict:
    bench.run(bench.config("warm", bench.documents("warm", "en")), "shards")
    config = bench.config("tokens", bench.documents("en", "en"))
    bench.run(config, "tokenizer")
    found = bench.repeat(config, "shards", ["tokenize", "shuffle", "output"], ["en"])
    # All of the run: what earlier stages take to find that they are done, and the directory that is assembled.
    seconds = [whole for _, whole, _ in found]
    stages = {name: statistics.median(by_stage[name] for by_stage, *_ in found) for name in ("tokenize", "shuffle")}
    size = found[-1][2][-1]["after"]["bytes"]
    return result(size, seconds, stages=stages, **compare_ids(Path(config.output) / "en", bench.inputs["en-first"]))


def compare_ids(directory: Path, path: str) -> dict[str, int]:
    """Documents of the final shards whose ids are those of `tokenizers` for their text, of those in a file."""
    import pyarrow.parquet as pq

    from maxlm.data.shards import Shards, documents_name
    from maxlm.data.tokenizer import Tokenizer

    shards = Shards(directory)
    tokenizer = Tokenizer(shards.local_tokenizer(), shards.manifest.tokenizer)
    with open(path) as file:
        texts = {f"en/{document['id']}": document["text"] for document in map(json.loads, file)}
    compared = same = 0
    for number in range(len(shards.manifest.shards)):
        names = pq.read_table(directory / documents_name(number), columns=["id"])["id"].to_pylist()
        for row, name in enumerate(names):
            if name in texts:
                found = shards.read(*shards.span(number, row)).tolist()
                compared += 1
                same += found == [tokenizer.bos_id, *tokenizer.encode(texts[name]), tokenizer.eos_id]
    return {"compared_with_tokenizers": compared, "same_ids": same}


def whole(bench: Bench) -> dict:
    sections = {"language": {}, "rules": RULES, "dedup": WHOLE_DEDUP}
    bench.run(
        bench.config("warm", {"web": {"kind": "warc", "path": bench.inputs["warc-warm"]}}, **sections), "language"
    )
    config = bench.config("whole", {"web": {"kind": "warc", "path": bench.inputs["warc"]}}, **sections)
    pages, html = html_of(bench.inputs["warc"])
    shares, seconds, funnel = [], [], []
    for _ in range(bench.runs):
        shutil.rmtree(config.output, ignore_errors=True)
        by_stage, all_of_it, funnel = bench.run(config, "shards")
        seconds.append(all_of_it)
        shares.append(by_stage | Counter({"other": all_of_it - sum(by_stage.values())}))
    share = {
        name: round(statistics.median(one[name] / total for one, total in zip(shares, seconds, strict=True)), 3)
        for name in sorted(shares[-1], key=lambda name: -shares[-1][name])
    }
    text = funnel[-1]["after"]
    return result(
        html, seconds, pages=pages, share_of_time=share, text_mb=text["bytes"] / 1e6, documents=text["documents"]
    )


ROWS: dict[str, Callable[[Bench], dict]] = {
    "extract": extract,
    "rules-en": lambda bench: rules(bench, "en"),
    "rules-zh": lambda bench: rules(bench, "zh"),
    "fuzzy": fuzzy,
    "tokens": tokens,
    "whole": whole,
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    # Before anything starts threads, which keep the processors that they began with.
    os.sched_setaffinity(0, spec["cores"])
    print(json.dumps(ROWS[spec["row"]](Bench(spec))))


if __name__ == "__main__":
    main()
