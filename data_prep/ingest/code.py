"""Kind `code`: one document per file of repositories, with its language and licence.

A file's licence is what its SPDX-License-Identifier says, else that of the licence files in the nearest directory above
it, up to the root of its repository. Memory holds one file, and what the licence files say.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePosixPath

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest import files as found_files
from data_prep.ingest.files import DEFAULT_INCLUDE, RawFile, matches
from data_prep.ingest.languages import language_of
from data_prep.ingest.licenses import NONE, UNKNOWN, is_allowed, license_in_header, license_of_text
from data_prep.ingest.records import Document, Rejected, clean
from maxlm.errors import DataError

VENDORED, GENERATED, BINARY, TOO_LARGE, LICENSE = "vendored", "generated", "binary", "over max_file_bytes", "license"
# What version control and tools keep beside the sources.
NO_SOURCES = [".git", ".hg", ".svn", ".bzr", "CVS", "__pycache__", ".tox", ".venv", ".mypy_cache", ".pytest_cache"]
LICENSE_FILE = re.compile(r"(un)?licen[sc]e([-._ ].*)?|copying([-._ ].*)?", re.IGNORECASE)
PROSE = {None, "text", "markdown", "restructuredtext", "asciidoc", "org", "latex", "html"}
# Directories of other people's code.
VENDOR_FOLDERS = {
    "vendor", "vendors", "vendored", "_vendor", "node_modules", "bower_components", "jspm_packages", "third_party",
    "third-party", "thirdparty", "3rdparty", "3rd_party", "3rd-party", "godeps", "pods", "carthage", "site-packages",
    "dist-packages", ".yarn", ".bundle",
}  # fmt: skip
GENERATED_NAME = re.compile(
    r".*\.(min\.(js|css|mjs)|map|pb\.(go|cc|h)|g\.dart|designer\.cs|lock)|.*_pb2(_grpc)?\.pyi?|package-lock\.json"
    r"|npm-shrinkwrap\.json|packages\.lock\.json|pnpm-lock\.yaml|go\.sum|gradle\.lockfile|\.terraform\.lock\.hcl",
    re.IGNORECASE,
)
GENERATED_HEADER = re.compile(
    rb"\bdo not edit\b|@generated\b|\bauto-?generated\b|\b(code|automatically|file is|file was) generated\b"
    rb"|\bgenerated (automatically |from .* )?by\b",
    re.IGNORECASE,
)
HEADER_LINES, HEADER_BYTES = 8, 2048
# Nobody writes lines like these by hand: minified programs and data. Lines of prose may be paragraphs.
LONG_LINE, LONG_MEAN = 1000, 200


def find_files(source: str, config: SourceConfig) -> list[RawFile]:
    """The files to read, each with the licence files that are about it, whether those are read themselves or not."""
    everything = config.model_copy(update={"include": ["*"], "exclude": [*config.exclude, *NO_SOURCES]})
    files = found_files.find_files(source, everything)
    include = config.include or DEFAULT_INCLUDE[config.kind]
    wanted = [file for file in files if matches(file.name, include)]
    if not wanted:
        raise DataError(f"source '{source}': empty corpus: no file matches include {include}")
    licenses: dict[str, list[RawFile]] = {}
    for file in files:
        if LICENSE_FILE.fullmatch(PurePosixPath(file.name).name) and language_of(file.name, b"") in PROSE:
            licenses.setdefault(_folder(file.name), []).append(file)
    return [replace(file, beside=tuple(_nearest(file.name, licenses, config.repositories))) for file in wanted]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _nearest(name: str, licenses: dict[str, list[RawFile]], repositories: str) -> Sequence[RawFile]:
    """The licence files in the nearest directory above a file, up to the root of its repository."""
    folder = _folder(name)
    while folder not in licenses and "/" in folder:
        folder = _folder(folder)
    if folder not in licenses and repositories == "single":
        folder = ""
    return licenses.get(folder, ())


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    vendored = is_vendored(file.name, config.repositories)
    if vendored and config.vendored == "drop":
        yield Rejected(VENDORED)
        return
    if file.size > config.max_file_bytes:
        yield Rejected(TOO_LARGE)
        return
    content = file.read()
    if b"\0" in content:
        yield Rejected(BINARY)
        return
    language = language_of(file.name, content)
    generated = is_generated(file.name, language, content)
    if generated and config.generated == "drop":
        yield Rejected(GENERATED)
        return
    license = license_in_header(content)
    license, shown = (license, license) if license else _license_of_files(file.beside)
    if config.licenses is not None and not is_allowed(license, config.licenses):
        yield Rejected(LICENSE)
        return
    notes = tuple(note for note, holds in ((VENDORED, vendored), (GENERATED, generated)) if holds)
    details = (f"license: {shown}",)
    language = config.language or language
    yield clean(content, file.name, file.name, file.path, ingest, None, language, notes, details)


@lru_cache(4096)
def _license_of_files(files: tuple[RawFile, ...]) -> tuple[str, str]:
    """What the licence files of one directory say together, and how it is shown: all of them hold."""
    if not files:
        return NONE, NONE
    found = {file.name: license_of_text(file.read().decode("utf-8", "replace")) for file in files}
    names = dict.fromkeys(name for one in found.values() for name in one.split(" AND "))
    unknown = ", ".join(name for name, one in found.items() if one == UNKNOWN)
    shown = [f"{name} ({unknown})" if name == UNKNOWN else name for name in names]
    return " AND ".join(names), " AND ".join(shown)


def is_vendored(name: str, repositories: str = "single") -> bool:
    """Whether a file lies in a directory of other people's code, inside of its repository."""
    folders = name.lower().split("/")[:-1]
    return not VENDOR_FOLDERS.isdisjoint(folders[1:] if repositories == "children" else folders)


def is_generated(name: str, language: str | None, content: bytes) -> bool:
    """Whether a program wrote a file, or minified it."""
    if GENERATED_NAME.fullmatch(PurePosixPath(name).name):
        return True
    header = b"\n".join(content[:HEADER_BYTES].split(b"\n", HEADER_LINES)[:HEADER_LINES])
    if GENERATED_HEADER.search(header):
        return True
    if language in PROSE - {"html"}:
        return False
    lengths = [len(line) for line in content.split(b"\n") if line.strip()]
    return bool(lengths) and max(lengths) > LONG_LINE and sum(lengths) > LONG_MEAN * len(lengths)
