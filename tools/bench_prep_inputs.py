"""What the rows of bench_prep.py read: beginnings of corpora, planted near copies, WARC files cut in pieces."""

import argparse
import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Document = dict[str, str]
Pair = tuple[str, str, float]
WORD = re.compile(r"\w+")
SHINGLE = 5
# One document in so many gets a near copy, of those long enough for a similarity to be set with some precision.
PLANTED_EVERY, PLANTED_WORDS = 10, 200
WARC_FILES = 8


@dataclass(frozen=True)
class Inputs:
    """`paths` are what the scripts are given; pairs are planted: id, id of the copy, true Jaccard similarity."""

    work: Path
    paths: dict[str, str]
    pairs: list[Pair]
    first_pairs: list[Pair]


def prepare(corpora: Path, work: Path, args: argparse.Namespace) -> Inputs:
    """Write the inputs that the rows need; `first` ones are for datatrove."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    paths = {"work": str(work)}
    english, chinese = (beginning(read(corpora / f"{name}.jsonl.zst"), args.mb) for name in ("en/all", "zh/modern"))
    en_mb, zh_mb = args.datatrove_mb
    near, pairs = plant(english)
    for name, documents in {
        "en": english,
        "zh": chinese,
        "en-first": beginning(english, en_mb),
        "zh-first": beginning(chinese, zh_mb),
        "near": near,
        "near-first": beginning(near, en_mb),
        "warm": beginning(english, 0.3) + beginning(chinese, 0.3),
    }.items():
        # Plain lines in folders of their own, as datatrove reads folders.
        paths[name] = str(write(work / "inputs" / name / "documents.jsonl", documents))
    kept = {document["id"] for document in beginning(near, en_mb)}
    first_pairs = [pair for pair in pairs if {pair[0], pair[1]} <= kept]
    limit = None if args.mb is None else max(WARC_FILES, int(5 * args.mb))
    for name, count, files in (
        ("warc", limit, WARC_FILES),
        ("warc-first", args.datatrove_pages, 2),
        ("warc-warm", 20, 1),
    ):
        paths[name] = str(cut(corpora / "html.warc.gz", work / "inputs" / name, count, files))
    return Inputs(work, paths, pairs, first_pairs)


def read(path: Path) -> Iterator[Document]:
    import io

    import pyarrow as pa

    with pa.CompressedInputStream(str(path), "zstd") as stream:
        for line in io.BufferedReader(stream, 2**20):
            yield json.loads(line)


def write(path: Path, documents: Iterable[Document]) -> Path:
    path.parent.mkdir(parents=True)
    with open(path, "w") as file:
        file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    return path


def beginning(documents: Iterable[Document], mb: float | None) -> list[Document]:
    """The first documents that have so many MB of text together; all without a number."""
    found, size = [], 0
    for document in documents:
        if mb is not None and size >= mb * 1e6:
            break
        found.append(document)
        size += len(document["text"].encode())
    return found


def plant(documents: list[Document]) -> tuple[list[Document], list[Pair]]:
    """The documents with near copies of some, each right behind its original, and how similar they are.

    Words are replaced by words of the same document, so many that similarities from 0.5 to 1 occur alike.
    """
    generator = random.Random(0)
    planted, pairs = [], []
    for number, document in enumerate(documents):
        planted.append(document)
        spans = [match.span() for match in WORD.finditer(document["text"])]
        if number % PLANTED_EVERY or len(spans) < PLANTED_WORDS:
            continue
        wanted = generator.uniform(0.5, 1.0)
        # Every replaced word takes up to five shingles: J = (n - 5 k) / (n + 5 k).
        count = round(len(spans) * (1 - wanted) / (1 + wanted) / SHINGLE)
        chosen = set(generator.sample(range(len(spans)), count))
        text, last = [], 0
        for place, (start, stop) in enumerate(spans):
            if place in chosen:
                other = spans[generator.randrange(len(spans))]
                text += [document["text"][last:start], document["text"][other[0] : other[1]]]
                last = stop
        copy = "".join([*text, document["text"][last:]]) + " ."
        planted.append(document | {"id": f"{document['id']}#near", "text": copy})
        pairs.append((document["id"], f"{document['id']}#near", jaccard(document["text"], copy)))
    return planted, pairs


def jaccard(one: str, other: str) -> float:
    """Similarity of two texts as sets of shingles of five words, in lower case."""
    first, second = (shingles(text) for text in (one, other))
    return len(first & second) / len(first | second)


def shingles(text: str) -> set[bytes]:
    words = WORD.findall(text.lower())
    grams = (" ".join(words[place : place + SHINGLE]) for place in range(max(1, len(words) - SHINGLE + 1)))
    return {hashlib.blake2b(gram.encode(), digest_size=8).digest() for gram in grams}


def cut(source: Path, directory: Path, pages: int | None, files: int) -> Path:
    """Copy the first records of a WARC file, a gzip member each, into some files in turns; the folder of them."""
    from fastwarc.warc import ArchiveIterator

    directory.mkdir(parents=True)
    with open(source, "rb") as file:
        offsets = [record.stream_pos for record in ArchiveIterator(file, parse_http=False)] + [source.stat().st_size]
    pages = min(len(offsets) - 1, pages or len(offsets))
    with open(source, "rb") as file:
        for number in range(files):
            with open(directory / f"{number:02d}.warc.gz", "wb") as target:
                for page in range(number, pages, files):
                    file.seek(offsets[page])
                    target.write(file.read(offsets[page + 1] - offsets[page]))
    return directory
