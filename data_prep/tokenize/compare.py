"""What tokenizers make of held-out text: how long it becomes, how much of the vocabulary it takes, what it loses.

bytes per token   of UTF-8, begin and end of text aside
fertility         tokens per word, where words are those of text/words.py, signs included (as in Rust et al. 2021,
                  arXiv:2012.15613, section 3.2); in Chinese, which has no spaces, tokens per Han character
vocabulary used   share of the ids, special tokens aside, that occur
byte tokens       share of the tokens that are bytes of a character, as its language has no piece for it, and share of
                  the documents that have one

Memory: a row group of text and its tokens, and one byte for each id, source and language.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numba
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Column, Table

from data_prep.config.languages import CHINESE, base
from data_prep.console import right
from data_prep.documents import SAMPLE_SALT, Part, chosen, held_out, iterate
from data_prep.engine import Task, advance
from data_prep.funnel import share
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.stages import Run
from data_prep.text import characters, words
from data_prep.text.characters import SCRIPTS
from data_prep.text.texts import Texts, decode
from data_prep.tokenize.encode import Encoder, Fast
from data_prep.tokenize.lossless import probes
from data_prep.tokenize.tokenizer import describe, find_file, kind_of
from maxlm.data.shards import TokenizerEntry, file_entry
from maxlm.data.tokenizer import Tokenizer

VERSION = 1
# Names in the table: those that a configuration gives have no blank.
STAGE, OWN, BEFORE = "comparison", "this one", "before extension"
FILE = "tokenizers.json"
# Text that is measured, in bytes over all sources, each of which has the same share.
MEASURED_BYTES = 2**25
CHECKED_DOCUMENTS = 256
SHOWN = 20


@dataclass
class Counts:
    """What a tokenizer made of the documents of one source and language; `used` is bool [vocab_size]."""

    used: np.ndarray
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    words: int = 0
    byte_tokens: int = 0
    byte_documents: int = 0
    lost: int = 0

    def row(self, name: str, source: str, language: str | None, pieces: int) -> dict[str, Any]:
        counts = {key: value for key, value in vars(self).items() if key != "used"}
        return (
            {"tokenizer": name, "source": source, "language": language}
            | counts
            | {
                "bytes_per_token": self.bytes / max(1, self.tokens),
                "fertility": self.tokens / max(1, self.words),
                "vocabulary_used": int(self.used.sum()) / pieces,
            }
        )


@dataclass
class Measured:
    """A tokenizer that is measured; `difference` is what became of the first text that it lost."""

    name: str
    tokenizer: Tokenizer
    encoder: Encoder
    partial: np.ndarray
    counts: dict[tuple[str, str | None], Counts] = field(default_factory=dict)
    difference: str | None = None

    @property
    def pieces(self) -> int:
        return max(1, self.tokenizer.vocab_size - len(self.tokenizer.special_tokens()))

    def add(self, source: str, languages: Sequence[str | None], texts: Texts, lengths: np.ndarray) -> None:
        """Count documents, of which `lengths`, int64 [documents], are the words."""
        ids, counts = self.encoder.encode(texts)
        edges, sizes = np.cumsum([0, *counts]), np.diff(texts.bounds)
        partial = np.add.reduceat(np.append(self.partial[ids], False).astype(np.int64), edges[:-1]) * (counts > 0)
        lost = list(self.encoder.lost(texts, ids, counts))
        self.difference = self.difference or next((text for _, text in lost), None)
        for number, language in enumerate(languages):
            found = self.counts.setdefault((source, language), Counts(np.zeros(self.tokenizer.vocab_size, bool)))
            found.used[ids[edges[number] : edges[number + 1]]] = True
            found.documents += 1
            found.bytes += int(sizes[number])
            found.tokens += int(counts[number])
            found.words += int(lengths[number])
            found.byte_tokens += int(partial[number])
            found.byte_documents += int(partial[number] > 0)
        for number, _ in lost:
            self.counts[source, languages[number]].lost += 1


def run(this: Run, directory: Path, entry: TokenizerEntry, parts: Sequence[Part]) -> Record:
    """Measure the pipeline's tokenizer beside those it is compared with; prints, and publishes tokenizers.json."""
    config, fraction = this.config.tokenizer, this.config.validation_fraction
    others = ({BEFORE: config.path} if config.extend else {}) | config.compare
    tokenizers, identity = [(OWN, directory, entry.model_dump_json())], [[OWN, entry.model_dump()]]
    for name, path in others.items():
        file, _ = find_file(path)
        found = describe(file, kind_of(file), None, None)
        tokenizers.append((name, file, found.model_dump_json()))
        identity.append([name, file_entry(file).sha256])
    key = make_key(STAGE, VERSION, identity, fraction, words.version("unicode"), [part.key for part in parts])
    total = min(MEASURED_BYTES, int((fraction or 1.0) * sum(part.bytes for part in parts)))
    (record,) = this.tasks(STAGE, [Task(key, measure, (tokenizers, parts, fraction), total)], "comparisons")
    this.publish(this.folder(STAGE).file(key, FILE), this.config.work / FILE)
    rows = record.values["rows"]
    if rows:
        _print(this.console, rows)
    text = "held-out documents" if fraction else "documents"
    if not sum(row["lost"] for row in rows if row["tokenizer"] == OWN) and record.values["difference"] is None:
        this.say(STAGE, f"every probe and all {record.values['documents']:,} {text} that were measured come back")
    return record


def measure(
    folder: Folder, key: str, tokenizers: Sequence[tuple[str, Path, str]], parts: Sequence[Part], fraction: float
) -> Record:
    """Measure tokenizers, each a name, its directory or file and its entry in JSON; the first is the pipeline's.

    `values` has the `rows` of tokenizers.json; of the first tokenizer the `difference` of the first held-out document
    that it loses (null: none), how many `documents` were tried, and whether gigatoken gives the same ids (`fast`).
    """
    samples = [*probes(), *islice((text for *_, text in _strings(parts, fraction)), CHECKED_DOCUMENTS)]
    measured = [_open(name, path, entry, samples) for name, path, entry in tokenizers]
    for source, languages, texts in _held_out(parts, fraction):
        lengths = _lengths(texts, languages)
        for one in measured:
            one.add(source, languages, texts, lengths)
        advance(int(texts.bounds[-1] - texts.bounds[0]))
    rows = [
        counts.row(one.name, source, language, one.pieces)
        for one in measured
        for (source, language), counts in one.counts.items()
    ]
    with writing(folder.file(key, FILE)) as temporary:
        temporary.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    own = measured[0]
    values = {
        "rows": rows,
        "difference": own.difference,
        "documents": sum(counts.documents for counts in own.counts.values()),
        "fast": own.encoder.fast,
    }
    return folder.commit(key, [FILE], values)


def _open(name: str, path: Path, entry: str, samples: Sequence[str]) -> Measured:
    tokenizer = Tokenizer(path, TokenizerEntry.model_validate_json(entry))
    fast = Fast.load(tokenizer) if Encoder.agrees(tokenizer, samples) else None
    return Measured(name, tokenizer, Encoder(tokenizer, fast, False), tokenizer.partial())


def _held_out(parts: Sequence[Part], fraction: float) -> Iterator[tuple[str, list[str | None], Texts]]:
    """Source, languages and texts of a sample of the held-out documents, of all documents where none are."""
    import pyarrow as pa

    sources = dict.fromkeys(part.source for part in parts)
    for source in sources:
        own = [part for part in parts if part.source == source]
        wanted = MEASURED_BYTES / len(sources) / max(1, (fraction or 1.0) * sum(part.bytes for part in own))
        # Some of the shards have enough: a corpus is not read for a sample of 32 MB.
        some = own[:: max(1, int(1 / (4 * wanted)))]
        wanted *= len(own) / len(some)
        for part in some:
            for table in iterate(part, [*dict.fromkeys(("id_hash", "text", "language", part.split_by))]):
                rows = held_out(table[part.split_by].to_numpy(), fraction or 1.0)
                if wanted < 1:
                    rows &= chosen(table["id_hash"].to_numpy(), SAMPLE_SALT, wanted)
                table = table.filter(pa.array(rows))
                languages, column = table["language"].to_pylist(), Texts.of(table["text"])
                for start, texts in column.batches():
                    yield source, languages[start : start + len(texts)], texts


def _strings(parts: Sequence[Part], fraction: float) -> Iterator[tuple[str, str | None, str]]:
    for source, languages, texts in _held_out(parts, fraction):
        for language, text in zip(languages, texts.strings(), strict=True):
            yield source, language, text


def _lengths(texts: Texts, languages: Sequence[str | None]) -> np.ndarray:
    """The words of every document, or in Chinese its Han characters; int64 [documents]."""
    lengths = np.diff(words.split(texts).bounds)
    chinese = np.array([language is not None and base(language) in CHINESE for language in languages])
    if chinese.any():
        lengths[chinese] = _count_han(texts.data, texts.bounds, _han())[chinese]
    return lengths


def _han() -> np.ndarray:
    return np.isin(characters.scripts(), [SCRIPTS.index(name) for name in ("Hans", "Hant", "Hani")])


@numba.njit(cache=True)
def _count_han(data, bounds, han):
    result = np.zeros(len(bounds) - 1, np.int64)
    for document in range(len(bounds) - 1):
        position = bounds[document]
        while position < bounds[document + 1]:
            code, position = decode(data, position)
            result[document] += han[code]
    return result


def _print(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """A table with the tokenizers side by side for the sources and languages that have most of the text."""
    own = [row for row in rows if row["tokenizer"] == OWN]
    largest = sorted(own, key=lambda row: -row["bytes"])[:SHOWN]
    names = ("bytes/token", "fertility", "vocabulary\nused", "byte\ntokens", "lost")
    table = Table(
        Column("held-out text", overflow="fold"), *map(right, names), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for where in [(row["source"], row["language"]) for row in largest]:
        found = [row for row in rows if (row["source"], row["language"]) == where]
        place = ", ".join(filter(None, where))
        table.add_row(f"{place}: {found[0]['documents']:,} documents", style="bold")
        for row in found:
            table.add_row(
                f"  {row['tokenizer']}",
                f"{row['bytes_per_token']:.3f}",
                f"{row['fertility']:.3f}",
                f"{row['vocabulary_used']:.1%}",
                share(row["byte_tokens"], row["tokens"]),
                f"{row['lost']:,}",
            )
    console.print(table)
