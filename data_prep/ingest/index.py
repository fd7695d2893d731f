"""Selection by an index: CDXJ files, as Common Crawl publishes them, say where the record of each page lies.

    org,example)/page 20240501000000 {"url": ..., "mime": ..., "status": "200", "length": ..., "offset": ...,
                                      "filename": ..., "languages": "eng,fra"}

Each index file is filtered once, in a task of its own, by the rules of the source and by what a page is; the list of
what is left is kept as parquet. Memory: of a filtering worker, `BATCH_LINES` entries; of the process that plans, and of
the tasks together, about 100 bytes per entry that is left.
"""

import gzip
import io
import json
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import IngestConfig, SourceConfig
from data_prep.config.urls import is_url, redact
from data_prep.engine import Task, advance
from data_prep.ingest.files import RawFile, find_files
from data_prep.ingest.pages import CONTENT_TYPES, NOT_HTML, PAGE_STATUS, TRUNCATED
from data_prep.ingest.remote import WEB, Place
from data_prep.ingest.select import Rules, load_rules, rules_key
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.stages import Run
from maxlm.errors import DataError

VERSION = 1
BATCH_LINES = 2**16
BUFFER_BYTES = 2**18
# Of a store that answers after 50 ms, 20 records per second come one by one.
REQUESTS = 16
INCLUDE = ["cdx-*.gz", "*.cdxj", "*.cdxj.gz", "*.cdx", "*.cdx.gz"]
BAD_LINE, NO_FILE, REPEATED = "bad index line", "archive of an index line not found", "repeated index line"
NUMBERS = ("offset", "length")
LINES = "lines"


@dataclass(frozen=True)
class ListedFile(RawFile):
    """An archive of which the byte `ranges` are read: int64 [records, 2], offset and length, ascending.

    `size` is their sum, and `version` depends on them.
    """

    ranges: np.ndarray = field(kw_only=True, compare=False)

    def read_ranges(self) -> Iterator[tuple[int, bytes]]:
        """Each range's offset and bytes, in order; of a file in a store several are on their way at a time."""
        if self.place is None:
            for offset, length in self.ranges.tolist():
                yield offset, self.read_range(offset, offset + length)
            return
        with ThreadPoolExecutor(REQUESTS) as pool:
            asked: deque[tuple[int, Future[bytes]]] = deque()
            try:
                for offset, length in self.ranges.tolist():
                    asked.append((offset, pool.submit(self.read_range, offset, offset + length)))
                    if len(asked) == REQUESTS:
                        first, data = asked.popleft()
                        yield first, data.result()
                for first, data in asked:
                    yield first, data.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Listing:
    """What the index of a source lists: its files, how many lines were read, and the others by reason."""

    files: list[ListedFile]
    lines: int
    dropped: Mapping[str, int]


def read_index(this: Run, source: str, config: SourceConfig) -> Listing:
    """Filter the index of a source and find its archives; raises `DataError` where it lists none that is there."""
    rules = rules_key(config.select)
    load_rules(config.select)
    tasks = []
    place = SourceConfig(kind="tree", path=config.select.index_paths, include=INCLUDE)
    for file in find_files(f"{source}.select.index", place):
        version = [file.name, file.size, file.version]
        key = make_key("index", VERSION, rules, this.config.ingest.on_bad_record, version)
        tasks.append(Task(key, filter_index, (file, config, this.config.ingest), file.size))
    records = this.tasks("index", tasks, "index files")
    lines = sum(record.values["lines"] for record in records)
    dropped = sum((Counter(record.values["dropped"]) for record in records), Counter())
    paths = [this.folder("index").file(record.key, name) for record in records for name in record.files]
    files = _locate(source, config, paths, dropped)
    if not files:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.items())
        raise DataError(
            f"source '{source}': none of the {lines:,} lines of its index is wanted and names an archive in "
            f"{', '.join(map(redact, config.paths))}; {reasons}"
        )
    if dropped[NO_FILE]:
        this.warn(f"source '{source}': {dropped[NO_FILE]:,} lines of its index name archives that are not there")
    return Listing(files, lines, {reason: count for reason, count in dropped.items() if count})


def _locate(source: str, config: SourceConfig, paths: Sequence[Path], dropped: Counter) -> list[ListedFile]:
    """The archives that filtered lists name."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(paths).sort_by("filename")
    ranges = np.stack([table[name].to_numpy() for name in NUMBERS], axis=1)
    groups = pc.run_end_encode(table["filename"].combine_chunks())
    find = _finder(source, config)
    listed: dict[str, tuple[RawFile, list[np.ndarray]]] = {}
    start = 0
    for name, stop in zip(groups.values.to_pylist(), groups.run_ends.to_pylist(), strict=True):
        file = find(name)
        if file is None:
            dropped[NO_FILE] += stop - start
        else:
            listed.setdefault(file.name, (file, []))[1].append(ranges[start:stop])
        start = stop
    return [_with_ranges(file, np.concatenate(found), dropped) for _, (file, found) in sorted(listed.items())]


def _with_ranges(file: RawFile, ranges: np.ndarray, dropped: Counter) -> ListedFile:
    unique = np.unique(ranges, axis=0)
    dropped[REPEATED] += len(ranges) - len(unique)
    version = f"{file.version} {sha256(unique.tobytes()).hexdigest()}"
    size = int(unique[:, 1].sum())
    return ListedFile(file.path, file.name, size, version, file.place, file.key, ranges=unique)


def _finder(source: str, config: SourceConfig) -> Callable[[str], RawFile | None]:
    """What finds the archive of a filename: below a URL every one, and unasked, as a crawl has 90,000 of them; on this
    machine by its path below the source's, else by its name alone."""
    if is_url(config.paths[0]):
        return lambda name: _remote(config.paths[0], name)
    archives = find_files(source, config)
    by_name = {file.name.rpartition("/")[2]: file for file in archives} | {file.name: file for file in archives}
    return lambda name: by_name.get(name) or by_name.get(name.rpartition("/")[2])


def _remote(prefix: str, name: str) -> RawFile:
    url = f"{prefix.rstrip('/')}/{name}"
    place = Place(url)
    key = url if place.protocol in WEB else url.partition("://")[2]
    return RawFile(place.shown, name, 0, "", place, key)


def filter_index(folder: Folder, key: str, file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Record:
    """Write filename, offset and length of the lines that are wanted; `values` has `lines`, and `dropped` by reason."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("filename", pa.string()), *((name, pa.int64()) for name in NUMBERS)])
    counts: Counter = Counter()
    wanted = _wanted(file, load_rules(config.select), ingest, counts)
    with writing(folder.file(key, "lines.parquet")) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while batch := list(islice(wanted, BATCH_LINES)):
            writer.write_table(pa.table([pa.array(column) for column in zip(*batch, strict=True)], schema))
    advance(file.size)
    lines = counts.pop(LINES, 0)
    return folder.commit(key, ["lines.parquet"], {"lines": lines, "dropped": dict(counts)})


def _wanted(file: RawFile, rules: Rules, ingest: IngestConfig, counts: Counter) -> Iterator[tuple[str, int, int]]:
    """Filename, offset and length of the lines that are wanted; the others are counted by reason."""
    for number, line in enumerate(_lines(file), 1):
        counts[LINES] += 1
        try:
            entry = _entry(line)
        except (ValueError, RecursionError) as error:
            if ingest.on_bad_record == "fail":
                raise DataError(
                    f"{file.path}:{number}: not a line of a CDXJ index ({error}); correct it, or set "
                    "ingest.on_bad_record=skip"
                ) from None
            counts[BAD_LINE] += 1
            continue
        if reason := _refuse(entry, rules):
            counts[reason] += 1
        else:
            yield entry["filename"], entry["offset"], entry["length"]


def _lines(file: RawFile) -> Iterator[bytes]:
    """The lines of an index; Common Crawl's are many gzip members one after the other."""
    try:
        with file.open() as stream:
            packed = file.name.endswith(".gz")
            yield from io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER_BYTES) if packed else stream
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.path}: cannot be read ({error}); get the index again") from None


def _entry(line: bytes) -> dict[str, Any]:
    """The values of a line, which is `key timestamp {...}`; raises ValueError saying what is wrong with it."""
    fields = line.split(b" ", 2)
    if len(fields) < 3:
        raise ValueError("expected a key, a timestamp and an object")
    entry = json.loads(fields[2])
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
        raise ValueError("no filename")
    for name in NUMBERS:
        try:
            entry[name] = int(entry[name])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"no {name}") from None
        if not 0 <= entry[name] < 2**63:
            raise ValueError(f"{name} is {entry[name]}")
    return entry


def _refuse(entry: dict[str, Any], rules: Rules) -> str | None:
    """Why a line is not wanted, by the same reasons as records; what it does not say is left to the record."""
    if (status := str(entry.get("status", PAGE_STATUS))) != str(PAGE_STATUS):
        return f"HTTP status {status[:1]}xx"
    if entry.get("mime-detected", entry.get("mime", CONTENT_TYPES[0])) not in CONTENT_TYPES:
        return NOT_HTML
    if entry.get("truncated"):
        return TRUNCATED
    return rules.refuse(entry.get("url")) or rules.refuse_language(entry.get("languages"))
