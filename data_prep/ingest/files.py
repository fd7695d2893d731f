"""The raw files of a source: where they are, and their names, which enter the documents' ids."""

import fnmatch
import glob
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from data_prep.config import SourceConfig
from data_prep.config.urls import is_url, redact
from data_prep.ingest.remote import BLOCK_BYTES, Missing, Place, RemoteStream
from maxlm.errors import ConfigError, DataError

# By kind, the patterns of the files that are read where a source does not say them.
DEFAULT_INCLUDE = {
    "tree": ["*"],
    "jsonl": [f"*.{name}" for name in ("jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "json.gz", "json.zst")],
    "parquet": ["*.parquet"],
    "code": ["*"],
    "warc": ["*.warc", "*.warc.gz", "*.warc.zst"],
    "wet": ["*.wet", "*.wet.gz", "*.wet.zst"],
    "html": ["*.html", "*.htm", "*.xhtml"],
    "shards": ["tokens-*.bin"],
    "synthetic": ["documents-*.jsonl"],
    "wiki": ["*.xml", "*.xml.bz2", "*.xml.gz", "*.xml.zst"],
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
READ_BYTES = 2**20


@dataclass(frozen=True)
class RawFile:
    """A file of a source; `name` is its path below the source's path, in UTF-8, and enters the documents' ids.

    `path` is for messages, without what a URL keeps secret. `version` changes when the content does: the time of
    modification in nanoseconds, or what a store says (an ETag, a hash of the content, a time). `place` and `key` are
    the store and the path in it of a file that is not on this machine.

    With a `stop` it is a part of the file: the records that begin at the bytes start..stop. `first` is the number of
    the first of them, where the format does not say it. `beside` are files that say something about it: licences.
    """

    path: str
    name: str
    size: int
    version: str
    place: Place | None = field(default=None, repr=False)
    key: str = field(default="", repr=False)
    start: int = 0
    stop: int | None = None
    first: int = 1
    beside: tuple["RawFile", ...] = ()

    @property
    def suffix(self) -> str:
        """The last ending of its name, with the dot, in small letters."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def fingerprint(self) -> list:
        """What stands for its content in the keys of results."""
        part = [self.start, self.stop] if self.stop is not None else []
        return [self.name, self.size, self.version, *part, *(other.fingerprint for other in self.beside)]

    @property
    def work(self) -> int:
        """Bytes that are read of it."""
        return self.size if self.stop is None else self.stop - self.start

    def read(self) -> bytes:
        """All of it."""
        if self.place is not None:
            return self.place.read(self.key, 0, self.size)
        with open(self.path, "rb", buffering=0) as file:
            return file.read()

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes start..stop of it, and no more of its store or disk; fewer where a file of this machine ends before."""
        if self.place is not None:
            return self.place.read(self.key, start, stop)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(start)
            return file.read(stop - start)

    def open(self) -> BinaryIO:
        """A stream that can be sought in; it reads blocks of `READ_BYTES` from disk, of `BLOCK_BYTES` from a store."""
        if self.place is not None:
            return io.BufferedReader(RemoteStream(self.place, self.key, self.size), BLOCK_BYTES)
        return open(self.path, "rb", buffering=READ_BYTES)

    def open_anywhere(self) -> tuple[io.IOBase, int]:
        """A stream for reads in any order, of which each is a request of its own, and how large they should be."""
        if self.place is not None:
            return RemoteStream(self.place, self.key, self.size), BLOCK_BYTES
        return open(self.path, "rb"), READ_BYTES


def open_decompressed(file: RawFile) -> BinaryIO:
    """A file's content, decompressed as its name says; several streams one after the other are one."""
    compression = COMPRESSIONS.get(file.suffix)
    if compression is None:
        return file.open()
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(file.open(), compression), READ_BYTES)


def find_files(source: str, config: SourceConfig) -> list[RawFile]:
    """The files of a source, sorted by name; raises `DataError` naming a path that is missing or gives no file."""
    include = config.include or DEFAULT_INCLUDE[config.kind]
    files: dict[str, RawFile] = {}
    for path in config.paths:
        for file in _expand(source, path, include, config.exclude):
            same = files.setdefault(file.name, file)
            if (same.path, same.key) != (file.path, file.key):
                raise DataError(
                    f"source '{source}': {same.path} and {file.path} have the same relative name; give them a common "
                    "parent as path, or a source each"
                )
    if not files:
        raise DataError(
            f"source '{source}': empty corpus: no file in {', '.join(map(redact, config.paths))} matches include "
            f"{include}" + (f" without exclude {config.exclude}" if config.exclude else "")
        )
    return [files[name] for name in sorted(files)]


def _expand(source: str, path: str, include: Sequence[str], exclude: Sequence[str]) -> Iterator[RawFile]:
    if is_url(path) and urlsplit(path).scheme.lower() != "file":
        yield from _expand_remote(source, Place(path), include, exclude)
        return
    local = unquote(urlsplit(path).path) if is_url(path) else path
    for found, name in _expand_local(source, local, include, exclude):
        stat = found.stat()
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        yield RawFile(str(found), name, stat.st_size, str(stat.st_mtime_ns))


# --- on this machine --------------------------------------------------------------------------------------------------


def _expand_local(
    source: str, pattern: str, include: Sequence[str], exclude: Sequence[str]
) -> Iterator[tuple[Path, str]]:
    """Files and their names below a path: a file, a directory, or a glob of either."""
    path = Path(pattern).expanduser()
    if path.is_file():
        yield path, path.name
    elif path.is_dir():
        yield from _walk(path, "", include, exclude)
    elif glob.has_magic(pattern):
        fixed = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
        root = Path(*fixed)
        for match in sorted(map(Path, glob.glob(str(path), recursive=True))):
            name = match.relative_to(root).as_posix()
            if match.is_file() and not matches(name, exclude):
                yield match, name
            elif match.is_dir() and "**" not in pattern and not matches(name, exclude):
                yield from _walk(match, f"{name}/", include, exclude)
    else:
        raise DataError(f"source '{source}': {pattern}: no such file or directory; set ingest.sources.{source}.path")


def _walk(directory: Path, prefix: str, include: Sequence[str], exclude: Sequence[str]) -> Iterator[tuple[Path, str]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{directory}: cannot be read ({error.strerror})") from None
    for entry in entries:
        name = prefix + entry.name
        if matches(name, exclude):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/", include, exclude)
        elif entry.is_file() and matches(name, include):
            yield Path(entry.path), name


# --- elsewhere --------------------------------------------------------------------------------------------------------


def _expand_remote(source: str, place: Place, include: Sequence[str], exclude: Sequence[str]) -> Iterator[RawFile]:
    """Files of a store by the same rules as files of this machine."""
    if place.protocol in ("http", "https") and glob.has_magic(urlsplit(place.url).path):
        raise ConfigError(
            f"source '{source}': {place.shown}: a web server lists no files; expected the URL of each file"
        )
    try:
        for file in place.find():
            if (not file.walked or matches(file.name, include)) and not _is_excluded(file.name, exclude):
                name = unquote(file.name) if place.protocol in ("http", "https") else file.name
                yield RawFile(place.where(file.path), name, file.size, file.version, place, file.path)
    except Missing as error:
        raise DataError(f"source '{source}': {error}; set ingest.sources.{source}.path") from None


def _is_excluded(name: str, exclude: Sequence[str]) -> bool:
    """Whether a pattern matches a file or one of the directories that it is in."""
    parents = [str(parent) for parent in PurePosixPath(name).parents][:-1]
    return any(matches(one, exclude) for one in (name, *parents))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a relative name matches a pattern: by its last part, or as a whole where the pattern has a slash."""
    last = name.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name if "/" in pattern else last, pattern) for pattern in patterns)
