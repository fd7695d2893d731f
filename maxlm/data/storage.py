"""Where a directory of shards lies: a folder of this machine, whose files are mapped as they are, or a URL of an object
store, whose files come in chunks by way of a cache on a local disk.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from maxlm.config import CacheConfig
from maxlm.data.cache import Cache
from maxlm.data.store import Missing, Store, is_url
from maxlm.errors import DataError

MIB = 2**20


class File(NamedTuple):
    """A file as a manifest lists it."""

    name: str
    size: int
    sha256: str


class Range(NamedTuple):
    """Bytes start..stop of a file, which are fetched and mapped together."""

    folder: "LocalFolder | RemoteFolder"
    file: File
    start: int
    stop: int

    def open(self) -> BinaryIO:
        """An open local file that holds these bytes and nothing else; waits for the store where need be."""
        return self.folder.open(self)


class LocalFolder:
    """A folder of this machine: every range is the whole file."""

    remote = False
    chunk = 2**62  # bytes: no file is longer

    def __init__(self, directory: Path):
        self.location = directory

    def where(self, name: str) -> str:
        return str(self.location / name)

    def read(self, name: str) -> bytes:
        if not (self.location / name).is_file():
            raise Missing(f"{self.location / name}: missing")
        return (self.location / name).read_bytes()

    def open(self, part: Range) -> BinaryIO:
        return open(self.location / part.file.name, "rb", buffering=0)

    def local_file(self, file: File) -> Path:
        return self.location / file.name

    def local_copies(self, folder: str, files: Sequence[File], key: str) -> Path:
        return self.location / folder

    def sizes(self, files: Sequence[File]) -> dict[str, int]:
        paths = ((file.name, self.location / file.name) for file in files)
        return {name: path.stat().st_size for name, path in paths if path.is_file()}

    def digests(self, files: Sequence[File]) -> Iterator[str]:
        for file in files:
            yield sha256_of(self.location / file.name)


class RemoteFolder:
    """A folder of an object store."""

    remote = True

    def __init__(self, url: str, config: CacheConfig):
        self._config, self._store = config, Store(url, config)
        # In a folder of its own: packing indexes lie beside it, and everything in it may be deleted.
        self._cache = Cache(Path(config.directory).expanduser() / "parts", int(config.gib * 2**30))
        # Whoever signs a URL signs it anew for every run: the address alone names what is in the cache.
        self._key = hashlib.sha256(self._store.shown.encode()).hexdigest()[:16]
        self.location, self.where, self.read = self._store.shown, self._store.where, self._store.read
        self.chunk = config.chunk_mib * MIB

    def open(self, part: Range) -> BinaryIO:
        name = self._name(part)
        while (file := self._cache.open(name, part.stop - part.start)) is None:
            self.fetch(part)
        return file

    def fetch(self, part: Range, ahead: bool = False) -> None:
        """Bring a range into the cache; with `ahead` it stays there until `release` (see `Cache.fetch`)."""
        self._cache.fetch(self._name(part), part.stop - part.start, lambda: self._stream(part), ahead)

    def release(self, part: Range) -> None:
        self._cache.release(self._name(part))

    def local_file(self, file: File) -> Path:
        """A copy of a whole file on this machine, which stays until the cache needs its room."""
        part = Range(self, file, 0, file.size)
        part.open().close()
        return self._cache.directory / self._name(part)

    def local_copies(self, folder: str, files: Sequence[File], key: str) -> Path:
        """A local folder with these files of a folder, by their own names; `key` stands for their contents."""
        copies = f"{self._key}/{folder}-{key[:16]}"
        for file in files:
            part = Range(self, file, 0, file.size)
            name = f"{copies}/{file.name.removeprefix(f'{folder}/')}"
            while (copy := self._cache.open(name, file.size)) is None:
                self._cache.fetch(name, file.size, lambda part=part: self._stream(part))
            copy.close()
        return self._cache.directory / copies

    def sizes(self, files: Sequence[File]) -> dict[str, int]:
        return self._store.sizes([file.name for file in files])

    def digests(self, files: Sequence[File]) -> Iterator[str]:
        """SHA-256 of every file as the store has it now: streamed, some files at a time."""
        with ThreadPoolExecutor(self._config.threads) as pool:
            yield from pool.map(self._digest, files)

    def _digest(self, file: File) -> str:
        digest = hashlib.sha256()
        for data in self._chunks(Range(self, file, 0, file.size)):
            digest.update(data)
        return digest.hexdigest()

    def _name(self, part: Range) -> str:
        """The checksum is part of the name, so that data prepared anew in the same place is fetched anew."""
        return f"{self._key}/{part.file.name}.{part.file.sha256[:16]}.{part.start}-{part.stop}"

    def _stream(self, part: Range) -> Iterator[bytes]:
        """The bytes of a range; those of a whole file are compared with its checksum."""
        digest = hashlib.sha256()
        whole = part.start == 0 and part.stop == part.file.size
        for data in self._chunks(part):
            if whole:
                digest.update(data)
            yield data
        if whole and digest.hexdigest() != part.file.sha256:
            raise altered(self.where(part.file.name))

    def _chunks(self, part: Range) -> Iterator[bytes]:
        for start in range(part.start, part.stop, self.chunk):
            yield self._store.read(part.file.name, start, min(start + self.chunk, part.stop))


def open_folder(place: str | Path, config: CacheConfig) -> LocalFolder | RemoteFolder:
    """The folder at a path or URL; `file://` is a path."""
    if isinstance(place, Path) or not is_url(place):
        return LocalFolder(Path(place))
    if (parts := urlsplit(place)).scheme.lower() in ("file", "local"):
        return LocalFolder(Path(unquote(parts.netloc + parts.path)))
    return RemoteFolder(place, config)


def altered(where: str) -> DataError:
    return DataError(f"{where}: its contents differ from the manifest's checksum; the file was altered")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
