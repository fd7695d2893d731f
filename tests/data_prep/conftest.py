"""Small corpora, pipelines over them, and what the prepared shards say when they are read back."""

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

from data_prep.config import Pipeline
from data_prep.pipeline import run
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
