"""A small corpus in which the stages of preparation find something, and a pipeline over it, to report on."""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from data_prep.config import Pipeline
from data_prep.pipeline import run
from data_prep.report.make import make_report
from maxlm.config import validate
from maxlm.data.shards import Manifest

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "sha", "the", "ing", "str", "mo", "ver", "la", "qui", "zen", "or", "um"]
MENU = "This line stands at the end of every page of the site"
QUESTION = "how many of the seven grey herons near the third lock slept through both floods of that year"
NASTY = "<script>alert('x')</script>\u202egnp.exe\0\x1b[31m & " + "a\u0301\u0302\u0303\u0304\u0305\u0306\u0307"


def page_text(number: int) -> str:
    """Lines that no other page has, in something like English."""
    generator = random.Random(number)
    names = (["".join(generator.choices(SYLLABLES, k=3)) for _ in range(6)] for _ in range(8 + number % 5))
    return "\n".join("The {} of the {} was with {}, and {} have been {} of {}.".format(*line) for line in names)


def make_config(directory: Path, more: Mapping[str, str] | None = None, **sections: object) -> Pipeline:
    """A source of pages and one of notes, with documents for every stage to find; `more` are pages by id."""
    pages = {f"page{number}": f"{page_text(number)}\n{MENU}" for number in range(40)}
    pages |= {"copy": pages["page3"], "near": pages["page4"].replace(" have been ", " had been ", 1)}
    pages["short"] = "Too few words are here."
    pages["asked"] = f"{page_text(50)}\n{QUESTION}\n{page_text(51)}"
    pages['"><img src=x onerror=alert(1)>'] = NASTY
    pages |= more or {}
    notes = {f"note{number}": page_text(100 + number) for number in range(20)} | {
        "page1": "Another one with few words."
    }
    sources = {}
    for name, texts in (("pages", pages), ("notes", notes)):
        path = directory / f"{name}.jsonl"
        lines = (
            json.dumps({"id": key, "text": text, "url": f"http://a.example/?{key}"}) for key, text in texts.items()
        )
        path.write_text("".join(line + "\n" for line in lines))
        sources[name] = {"kind": "jsonl", "path": str(path), "id_field": "id", "url_field": "url"}
    (directory / "benchmark.txt").write_text(QUESTION)
    values = {
        "name": "test",
        "output": str(directory / "out"),
        "workers": 1,
        "ingest": {"sources": sources},
        "language": {"keep": None},
        "rules": {"profiles": {"default": {"gopher": {"min_words": 20}}}},
        "dedup": {"exact": True, "fuzzy": {"ngram": 2}, "lines": {"min_characters": 20}},
        "decontaminate": {"files": [{"name": "herons", "path": str(directory / "benchmark.txt")}], "margin": 0},
        "validation": {"fraction": 0.1},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    return validate(values | sections, Pipeline, "test")


def prepare(config: Pipeline, until: str = "shards") -> dict[str, Manifest]:
    with open(os.devnull, "w") as sink:
        return run(config, Console(file=sink, width=200), until=until)


def report(config: Pipeline, path: Path | None = None) -> tuple[str, dict]:
    """The page and its JSON."""
    with open(os.devnull, "w") as sink:
        path = make_report(config, Console(file=sink), path)
    return path.read_text(), json.loads(path.with_suffix(".json").read_text())
