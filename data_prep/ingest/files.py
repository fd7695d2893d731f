"""The raw files of a source: where they are, and their names, which enter the documents' ids."""

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from data_prep.config import SourceConfig
from maxlm.errors import DataError

# By kind, the patterns of the files that are read where a source does not say them.
DEFAULT_INCLUDE = {
    "tree": ["*"],
    "jsonl": ["*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.json.gz", "*.json.zst"],
    "parquet": ["*.parquet"],
}
READ_BYTES = 2**20


@dataclass(frozen=True)
class RawFile:
    """A file of a source; `name` is its path below the source's path, in UTF-8, and enters the documents' ids.

    `path` is for messages, `version` changes when the content does.
    """

    path: str
    name: str
    size: int
    version: str

    @property
    def suffix(self) -> str:
        """The last ending of its name, with the dot, in small letters."""
        return PurePosixPath(self.name).suffix.lower()

    def read(self) -> bytes:
        """All of it."""
        with open(self.path, "rb", buffering=0) as file:
            return file.read()

    def open(self) -> BinaryIO:
        return open(self.path, "rb", buffering=READ_BYTES)


def find_files(source: str, config: SourceConfig) -> list[RawFile]:
    """The files of a source, sorted by name; raises `DataError` naming a path that is missing or gives no file."""
    include = config.include or DEFAULT_INCLUDE[config.kind]
    files: dict[str, RawFile] = {}
    for pattern in config.paths:
        for path, name in _expand(source, pattern, include, config.exclude):
            name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if name in files and files[name].path != str(path):
                raise DataError(
                    f"source '{source}': {files[name].path} and {path} have the same relative name; give them a common "
                    "parent as path, or a source each"
                )
            stat = path.stat()
            files[name] = RawFile(str(path), name, stat.st_size, str(stat.st_mtime_ns))
    if not files:
        raise DataError(
            f"source '{source}': empty corpus: no file in {', '.join(config.paths)} matches include {include}"
            + (f" without exclude {config.exclude}" if config.exclude else "")
        )
    return [files[name] for name in sorted(files)]


def _expand(source: str, pattern: str, include: Sequence[str], exclude: Sequence[str]) -> Iterator[tuple[Path, str]]:
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
            if match.is_file() and not _matches(name, exclude):
                yield match, name
            elif match.is_dir() and "**" not in pattern and not _matches(name, exclude):
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
        if _matches(name, exclude):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/", include, exclude)
        elif entry.is_file() and _matches(name, include):
            yield Path(entry.path), name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a relative name matches a pattern: by its last part, or as a whole where the pattern has a slash."""
    last = name.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name if "/" in pattern else last, pattern) for pattern in patterns)
