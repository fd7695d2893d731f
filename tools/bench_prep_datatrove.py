"""One row of bench_prep.py with datatrove's own blocks, in the environment of datatrove: nothing of ours is imported.

Called by bench_prep.py with a specification in JSON; prints a line of JSON.
"""

import gzip
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

# FineWeb-2's thresholds for cmn_Hani; with the English ones nine in ten documents would be dropped by the first filter.
STOP_WORDS = list("的是在不了有和人这中大为上个国我以要他时来用")
CHINESE_STOPS = ("。", "！", "？", "…", "”", "；", ".", "!", "?")


def filters(language: str) -> list:
    from datatrove.pipeline import filters

    if language == "en":
        return [
            filters.GopherRepetitionFilter(),
            filters.GopherQualityFilter(),
            filters.C4QualityFilter(filter_no_terminal_punct=False),
            filters.FineWebQualityFilter(),
        ]
    return [
        filters.GopherRepetitionFilter(
            dup_line_frac=0.287,
            top_n_grams=((2, 0.256), (3, 0.201), (4, 0.171)),
            dup_n_grams=((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127)),
            language="cmn",
        ),
        filters.GopherQualityFilter(
            min_avg_word_length=1,
            max_avg_word_length=5,
            max_non_alpha_words_ratio=0.735,
            stop_words=STOP_WORDS,
            language="cmn",
        ),
        filters.C4QualityFilter(filter_no_terminal_punct=False, language="cmn"),
        filters.FineWebQualityFilter(
            line_punct_thr=0.106,
            new_line_ratio=0.178,
            char_duplicates_ratio=0.1,
            stop_chars=CHINESE_STOPS,
            language="cmn",
        ),
    ]


class Bench:
    def __init__(self, spec: dict):
        self.inputs, self.runs, self.cores = spec["inputs"], spec["runs"], spec["cores"]
        self.work = Path(self.inputs["work"]) / "datatrove" / spec["row"]

    def clean(self) -> Path:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        return self.work

    def documents(self, name: str) -> list:
        return list(self.lines(name).run())

    def lines(self, name: str) -> object:
        from datatrove.pipeline.readers import JsonlReader

        return JsonlReader(str(Path(self.inputs[name]).parent))

    def pages(self, name: str) -> object:
        from datatrove.pipeline.readers import WarcReader

        return WarcReader(self.inputs[name])

    def execute(self, pipeline: list, name: str, tasks: int) -> None:
        """Run a pipeline in processes; a run that left a task undone is an error."""
        from datatrove.executor import LocalPipelineExecutor

        LocalPipelineExecutor(pipeline, tasks, len(self.cores), str(self.work / "logs" / name)).run()
        done = list((self.work / "logs" / name / "completions").iterdir())
        assert len(done) == tasks, f"{name}: {len(done)} of {tasks} tasks were completed"


@contextmanager
def clock(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def result(size: int, seconds: list[float], **others: object) -> dict:
    rate = size / 1e6 / statistics.median(seconds)
    return {"mb": size / 1e6, "seconds": seconds, "mb_per_second": rate} | others


def size_of(documents: Iterable) -> int:
    return sum(len(document.text.encode()) for document in documents)


def chain(documents: Iterable, blocks: Iterable) -> Iterable:
    for block in blocks:
        documents = block.run(documents)
    return documents


def extractor() -> object:
    """With more than its second for a page, which a busy machine takes for nothing."""
    from datatrove.pipeline.extractors import Trafilatura

    return Trafilatura(timeout=10)


def extract(bench: Bench) -> dict:
    list(extractor().run(islice(bench.pages("warc-warm").run(), 3)))
    html = list(bench.pages("warc-first").run())
    seconds, found = [], []
    for _ in range(bench.runs):
        with clock(seconds):
            found = list(extractor().run(bench.pages("warc-first").run()))
        assert 2 * len(found) > len(html), (
            f"{len(found)} of {len(html)} pages gave text: trafilatura does not work here"
        )
    middle = statistics.median(seconds)
    return result(
        size_of(html),
        seconds,
        pages=len(html),
        text_mb=size_of(found) / 1e6,
        text_mb_per_second=size_of(found) / 1e6 / middle,
        pages_per_second=len(html) / middle,
    )


def rules(bench: Bench, language: str) -> dict:
    list(chain(bench.documents("warm"), filters(language)))
    seconds, kept, documents = [], [], []
    for _ in range(bench.runs):
        documents = bench.documents(f"{language}-first")
        size = size_of(documents)
        blocks = filters(language)
        with clock(seconds):
            kept = list(chain(documents, blocks))
    return result(size, seconds, documents=len(documents), kept=len(kept))


def minhash(bench: Bench, read: object, tasks: int, write: object) -> None:
    """Its four stages, from documents that are read twice to the ones that are left."""
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )

    config, work = MinhashConfig(), bench.work / "minhash"
    signatures, buckets, removed = (str(work / name) for name in ("signatures", "buckets", "removed"))
    bench.execute([read, MinhashDedupSignature(signatures, config)], "signatures", tasks)
    bench.execute([MinhashDedupBuckets(signatures, buckets, config=config)], "buckets", config.num_buckets)
    bench.execute([MinhashDedupCluster(buckets, removed, config)], "cluster", 1)
    bench.execute([read, MinhashDedupFilter(removed), write], "filter", tasks)


def lines_of(folder: Path) -> list[dict]:
    found = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            found += map(json.loads, file)
    return found


def split(bench: Bench, name: str) -> None:
    """The lines of a file in as many files as there are cores: a file is one task."""
    source = Path(bench.inputs[name])
    lines = source.read_bytes().splitlines(keepends=True)
    for number, _ in enumerate(bench.cores):
        source.with_name(f"part{number}.jsonl").write_bytes(b"".join(lines[number :: len(bench.cores)]))
    source.unlink()


def fuzzy(bench: Bench) -> dict:
    from datatrove.pipeline.writers import JsonlWriter

    documents = bench.documents("near-first")
    split(bench, "near-first")
    seconds, left = [], []
    for _ in range(bench.runs):
        folder = bench.clean() / "left"
        read = bench.lines("near-first")
        with clock(seconds):
            minhash(bench, read, len(bench.cores), JsonlWriter(str(folder)))
        left = [document["id"] for document in lines_of(folder)]
    count = len(documents)
    return result(size_of(documents), seconds, documents=count, removed=count - len(left), left=left)


def tokenizer_of(bench: Bench, row: str, name: str) -> str:
    """The tokenizer that ours trained for a row."""
    found = sorted((Path(bench.inputs["work"]) / "ours" / row).glob(f"{name}/*/tokenizer/tokenizer.json"))
    assert found, f"no tokenizer of ours: the row {row} of ours comes first"
    return str(found[0])


def tokens(bench: Bench) -> dict:
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = tokenizer_of(bench, "tokens", "tokens")
    documents, seconds = bench.documents("en-first"), []
    for run in range(-1, bench.runs):
        folder = bench.clean()
        block = DocumentTokenizer(str(folder), tokenizer, eos_token="<|end_of_text|>", seed=0)
        with clock(seconds):
            list(block.run(iter(bench.documents("warm") if run < 0 else documents), 0, 1) or ())
    return result(size_of(documents), seconds[1:], documents=len(documents))


def whole(bench: Bench) -> dict:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    tokenizer = tokenizer_of(bench, "whole", "whole")
    html = list(bench.pages("warc-first").run())
    extracting, comparing, encoding = [], [], []
    for _ in range(bench.runs):
        work, tasks = bench.clean(), len(bench.cores)
        extracted, kept, final = (str(work / name) for name in ("extracted", "left", "tokens"))
        blocks = [bench.pages("warc-first"), extractor(), *filters("en"), JsonlWriter(extracted)]
        with clock(extracting):
            bench.execute(blocks, "extract", tasks)
        with clock(comparing):
            minhash(bench, JsonlReader(extracted), tasks, JsonlWriter(kept))
        encode = DocumentTokenizer(final, tokenizer, eos_token="<|end_of_text|>", seed=0)
        with clock(encoding):
            bench.execute([JsonlReader(kept), encode], "tokens", tasks)
    seconds = [sum(parts) for parts in zip(extracting, comparing, encoding, strict=True)]
    parts = {"extract and rules": extracting, "fuzzy": comparing, "tokens": encoding}
    share = {name: round(statistics.median(part) / statistics.median(seconds), 3) for name, part in parts.items()}
    left = lines_of(bench.work / "left")
    text = sum(len(document["text"].encode()) for document in left)
    return result(size_of(html), seconds, pages=len(html), share_of_time=share, text_mb=text / 1e6, documents=len(left))


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
    os.sched_setaffinity(0, spec["cores"])
    print(json.dumps(ROWS[spec["row"]](Bench(spec))))


if __name__ == "__main__":
    main()
