"""Small corpora, pipelines over them, and what the prepared shards say when they are read back."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_prep.config import Pipeline, QualityModel
from data_prep.documents import iterate
from data_prep.engine import open_workers
from data_prep.ingest.stage import run as read_sources
from data_prep.pipeline import SELECTING, run, train_model
from data_prep.stages import Run
from maxlm.config import validate
from maxlm.data.shards import Manifest, Shards, documents_name
from maxlm.data.tokenizer import Tokenizer

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "sha", "the", "ing", "str", "mo"]
RARE = [
    "12345",
    "naïve",
    "日本語",
    "данные",
    "👩\u200d👩\u200d👧",
    "\0",
    "\r\n\tif x",
    "3.14",
    "<|end_of_text|>",
    "\u2581",
]


def make_text(number: int) -> str:
    """Words of two or three syllables, and now and then what tokenizers lose."""
    generator = random.Random(number)
    words = [
        generator.choice(RARE) if generator.random() < 0.1 else "".join(generator.choices(SYLLABLES, k=2 + i % 2))
        for i in range(generator.randint(1, 150))
    ]
    return f"{number}: " + " ".join(words)


@pytest.fixture
def texts() -> list[str]:
    """120 different documents with every kind of character that tokenizers lose."""
    return [make_text(number) for number in range(120)]


@pytest.fixture
def tree(tmp_path: Path, texts: list[str]) -> Path:
    """The texts as files a/0.txt, b/1.txt, c/2.txt, a/3.txt, ..."""
    root = tmp_path / "raw"
    for number, text in enumerate(texts):
        path = root / "abc"[number % 3] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


@pytest.fixture
def pipeline(tmp_path: Path, tree: Path) -> Callable[..., Pipeline]:
    """A pipeline over the tree, its sections replaced by keyword arguments."""

    def make(**sections: object) -> Pipeline:
        values = {
            "name": "test",
            "output": str(tmp_path / "out"),
            "workers": 1,
            "ingest": {"sources": {"web": {"kind": "tree", "path": str(tree)}}},
            "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
        }
        return validate(values | sections, Pipeline, "test")

    return make


@pytest.fixture(scope="session")
def quality_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a classifier that tells texts of `make_text` from those with other words."""
    folder = tmp_path_factory.mktemp("quality")
    for name, extra in (("prose", " and so it was"), ("mail", " wrote: > buy now")):
        lines = [json.dumps({"id": str(i), "text": make_text(5000 + i) + extra * (i % 7)}) for i in range(160)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    sources = {
        name: {"kind": "jsonl", "path": str(folder / f"{name}.jsonl"), "id_field": "id"} for name in ("prose", "mail")
    }
    training = {"labels": {"prose": ["prose"], "mail": ["mail"]}, "buckets": 1024, "held_out": 0.4}
    values = {"name": "model", "output": str(folder), "ingest": {"sources": sources}, "classifier": training}
    with open(os.devnull, "w") as sink:
        return train_model(validate(values | {"workers": 1}, QualityModel, "test"), Console(file=sink))


class Selected:
    """What is left of texts, {source: {id: text}}, after one stage between ingest and tokenizer."""

    def __init__(self, directory: Path, stage: str, sources: dict[str, dict[str, str]], **sections: object):
        ingest = {"sources": {}, "shard_bytes": sections.pop("shard_bytes", 2**28)}
        directory.mkdir(parents=True, exist_ok=True)
        for name, texts in sources.items():
            path = directory / f"{name}.jsonl"
            lines = "".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items())
            if not path.exists() or path.read_text() != lines:
                path.write_text(lines)
            ingest["sources"][name] = {"kind": "jsonl", "path": str(path), "id_field": "id"}
        tokenizer = {"algorithm": "byte_bpe", "vocab_size": 300}
        values = {"name": "test", "output": str(directory), "workers": 1, "ingest": ingest, "tokenizer": tokenizer}
        config = validate(values | sections, Pipeline, "test")
        with open(os.devnull, "w") as sink, open_workers("native", config.workers) as workers:
            console = Console(record=True, width=200, file=sink)
            run = Run(config, console, workers)
            self.before = read_sources(run)
            self.parts = SELECTING[stage](run, self.before)
        self.printed, self.funnel = console.export_text(), run.funnel
        tables = [table for part in self.parts for table in iterate(part, ("id", "text", "bytes"))]
        self.texts = {row["id"]: row["text"] for table in tables for row in table.to_pylist()}
        sizes = [size for table in tables for size in table["bytes"].to_pylist()]
        assert sizes == [len(text.encode()) for text in self.texts.values()]
        assert sum(sizes) == sum(part.bytes for part in self.parts)
        assert len(sizes) == sum(part.documents for part in self.parts)


@pytest.fixture
def select(tmp_path: Path) -> Callable[..., Selected]:
    """Each call in a directory of its own, unless it is named."""
    numbers = itertools.count()

    def call(stage: str, sources: dict[str, dict[str, str]], directory: str | None = None, **sections) -> Selected:
        return Selected(tmp_path / (directory or f"selected{next(numbers)}"), stage, sources, **sections)

    return call


@pytest.fixture
def every_stage(tmp_path: Path, tree: Path, texts: list[str], quality_model: Path) -> dict[str, object]:
    """Sections in which every stage finds something, on several shards and splits.

    What must hold for all stages, such as an end with the same bytes after any interruption, is tested on them.
    """
    longest, second, third = sorted(texts, key=len)[-3:]
    line = "a line that stands at the end of very many pages of this site"
    extra = [
        texts[3],
        longest + " sha",
        *(f"{make_text(1000 + i)}\n{line}" for i in range(9)),
        *(f"{make_text(2000 + i)} {second} {make_text(3000 + i)}" for i in range(2)),
        "臺灣與香港的學校教漢語的歷史,這裡是關於語言學習的書籍。" * 4,
        "too few words",
        f"{make_text(4000)} somebody@fensolket.example {make_text(4001)}",
    ]
    for number, text in enumerate(extra):
        (tree / f"extra{number}.txt").write_bytes(text.encode())
    (tmp_path / "benchmark.txt").write_text(" ".join(third.split()[20:60]))
    matches = {"expect_matches": True}
    return {
        "ingest": {"sources": {"web": {"kind": "tree", "path": str(tree), "max_bytes": 50_000}}, "shard_bytes": 12000},
        "language": {"fold_han": "simplified"} | matches,
        "rules": {"profiles": {"default": {"gopher": {"min_words": 5}}}} | matches,
        "dedup": {
            "exact": True,
            "fuzzy": {"ngram": 2} | matches,
            "lines": {"min_characters": 20} | matches,
            "substrings": {"min_bytes": 100} | matches,
        }
        | matches,
        "decontaminate": {"files": [{"name": "questions", "path": str(tmp_path / "benchmark.txt")}], "margin": 0}
        | matches,
        "quality": {
            "models": {"prose": {"path": str(quality_model)}},
            "select": [{"score": "prose_rank", "min": 0.02}],
        }
        | matches,
        "privacy": {"placeholder": "<{type}>"} | matches,
        "validation": {"fraction": 0.2},
        "mix": {
            "tokens": 20_000,
            "weights": {"web": 1},
            "max_epochs": {"web": 2},
            "upsample": {"web": {"by": "cluster_size", "buckets": [{"min": 0, "copies": 1}, {"min": 2, "copies": 2}]}},
        },
        "shards": {"shard_tokens": 4000},
    }


class Prepared:
    """The output of a run: manifests by name of directory, and the lines that were printed."""

    def __init__(self, config: Pipeline):
        with open(os.devnull, "w") as sink:
            console = Console(record=True, width=200, file=sink)
            outputs = run(config, console)
        self.printed = console.export_text()
        self.manifests: dict[str, Manifest] = {Path(path).name: manifest for path, manifest in outputs.items()}
        self.directories = {Path(path).name: Path(path) for path in outputs}

    def documents(self, name: str) -> list[dict]:
        """The rows of the document tables, in order, with the text that the tokens decode to."""
        shards = Shards(self.directories[name])
        shards.verify("checksums")
        manifest = shards.manifest
        tokenizer = Tokenizer(shards.directory / "tokenizer", manifest.tokenizer)
        tables = [pq.read_table(shards.directory / documents_name(i)) for i in range(len(manifest.shards))]
        rows = [row for table in tables for row in table.to_pylist()]
        ends = shards.ends(0, len(shards))
        for row, start, end in zip(rows, [0, *ends[:-1]], ends, strict=True):
            tokens = shards.read(int(start), int(end))
            assert tokens[-1] == manifest.tokenizer.eos_id
            assert manifest.tokenizer.bos_id is None or tokens[0] == manifest.tokenizer.bos_id
            assert np.count_nonzero(tokens == manifest.tokenizer.eos_id) == 1
            row["text"] = tokenizer.decode(tokens)
        return rows


@pytest.fixture
def prepare(pipeline: Callable[..., Pipeline]) -> Callable[..., Prepared]:
    return lambda **sections: Prepared(pipeline(**sections))


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """All outputs below a directory, the intermediate results aside, by relative name."""
    return lambda directory: {name: data for name, data in files_of(directory).items() if not name.startswith(".work")}


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """`maxlm-prep` in a process of its own."""

    def call(*arguments: object, **options: object) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "data_prep", *map(str, arguments)]
        root = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": root, "COLUMNS": "200"}
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, **options)

    return call
