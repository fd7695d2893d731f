"""Large files become several tasks: ranges of bytes, of which each takes the records that begin there.

Lines of a plain .jsonl begin behind a line end, row groups of a parquet file at their first page; a compressed file of
lines cannot be entered in the middle and stays one task, read as a stream. A record is numbered as in the whole file,
so that its id does not depend on where the file was cut: a parquet file says the rows of its row groups, the lines
before a range are counted first, by a task per range that only looks for line ends (3 GB/s from memory; a file in
a store is fetched twice).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from data_prep.engine import Task, advance
from data_prep.ingest.files import READ_BYTES, RawFile
from data_prep.ingest.jsonl import is_plain
from data_prep.manifest import Folder, Record, make_key

VERSION = 1
SPLITTABLE: Mapping[str, Callable[[RawFile], bool]] = {"jsonl": is_plain, "parquet": lambda file: True}


def split(files: Sequence[RawFile], kind: str, shard_bytes: int) -> list[RawFile]:
    """The files, those larger than a shard in ranges of about `shard_bytes`."""
    ranges = []
    for file in files:
        count = -(-file.size // shard_bytes) if kind in SPLITTABLE and SPLITTABLE[kind](file) else 1
        if count < 2:
            ranges.append(file)
            continue
        edges = [file.size * edge // count for edge in range(count + 1)]
        ranges += [replace(file, start=start, stop=stop) for start, stop in zip(edges, edges[1:], strict=False)]
    return ranges


def number_lines(
    files: Sequence[RawFile], kind: str, run: Callable[[Sequence[Task]], Sequence[Record]]
) -> list[RawFile]:
    """The ranges of files of lines with the number of their first line; `run` makes the tasks that count."""
    counted = [file for file in files if kind == "jsonl" and file.stop is not None]
    tasks = [
        Task(make_key("lines", VERSION, file.fingerprint), count_lines, (file,), file.stop - file.start)
        for file in counted
    ]
    records = run(tasks) if tasks else []
    counts = {(file.name, file.start): record.values["lines"] for file, record in zip(counted, records, strict=True)}
    numbered, first = [], 1
    for file in files:
        first = 1 if file.start == 0 else first
        numbered.append(replace(file, first=first))
        first += counts.get((file.name, file.start), 0)
    return numbered


def count_lines(folder: Folder, key: str, file: RawFile) -> Record:
    """`values` has how many lines begin in a range."""
    # A line begins behind the line end at start - 1, so the line ends are those of a range that is one byte earlier.
    start, lines = (file.start - 1, 0) if file.start else (0, 1)
    with file.open() as stream:
        stream.seek(start)
        left = file.stop - 1 - start
        while left and (block := stream.read(min(left, READ_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
            advance(len(block))
    return folder.commit(key, (), {"lines": lines})
