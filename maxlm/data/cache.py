"""A folder on a local disk that holds files up to a bound; threads and processes of a host share it.

A file appears whole, under its name, by one rename; one that is fetched is `NAME.part`, locked by who fetches it.
What was not used for the longest time is deleted first. The time of a file's last use is its modification time; what
is to be used soon has a lease, a time in the future, which ends by itself where its holder died. A deleted file that
somebody has mapped stays readable. Nothing is flushed to the disk: what a machine that crashed left too short is
fetched again.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from maxlm.errors import DataError

LEASE = 3600.0  # seconds
PART = ".part"
# Room is made for a twentieth of the folder at a time: looking through 4,096 files takes some 15 ms.
SPARE = 0.05


class Full(Exception):
    """All that could be deleted is to be used soon."""


class _Kept(NamedTuple):
    used: float  # seconds since the epoch
    size: int
    path: str


class Cache:
    def __init__(self, directory: Path, limit: int):
        self.directory, self._limit = directory, limit
        self._lock = directory / "lock"

    def open(self, name: str, size: int) -> BinaryIO | None:
        """The file, marked as used now; None where it is not here, or not whole."""
        path = self.directory / name
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            return None
        found = os.fstat(file.fileno())
        if found.st_size != size:
            file.close()
            path.unlink(missing_ok=True)
            return None
        if found.st_mtime < time.time():
            os.utime(file.fileno())
        return file

    def fetch(self, name: str, size: int, read: Callable[[], Iterable[bytes]], ahead: bool = False) -> None:
        """Put a file here unless it is here: one thread of one process reads it, the others wait for that.

        With `ahead` it gets a lease, and `Full` is raised rather than that anything with a lease is deleted. Raises
        what `read` raises, and `DataError` where the folder cannot be written.
        """
        path = self.directory / name
        with self._writing(), _locked(path.with_name(path.name + PART)) as part:
            try:
                if not _has(path, size):
                    if ahead:
                        self._append(part, b"", ahead, size)  # before anything is fetched for nothing
                    for data in read():
                        self._append(part, data, ahead, len(data))
                    os.rename(part.name, path)
                if ahead:
                    self._set_used(name, time.time() + LEASE)
            finally:
                if _named(part):
                    os.unlink(part.name)

    def release(self, name: str) -> None:
        """End a lease: the file was used now."""
        self._set_used(name, time.time())

    def _set_used(self, name: str, when: float) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.directory / name, (when, when))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise DataError(
                f"{self.directory}: the cache cannot be written ({error}); free space there, or set "
                "data.cache.directory to a folder on a local disk"
            ) from None

    # --- the bound ----------------------------------------------------------------------------------------------

    def _append(self, part: BinaryIO, data: bytes, ahead: bool, size: int) -> None:
        """Make room for `size` and write, under the folder's lock: at no time does it hold more than the limit.

        The lock's file says how much it holds; whoever dies in between leaves a number that is too large, and the next
        one to look through the folder corrects it.
        """
        with open(self._lock, "ab+", buffering=0) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            text = lock.read()
            held = int(text) if text.isdigit() else self._limit
            if held + size > self._limit:
                held = self._make_room(size, ahead)
            lock.truncate(0)
            lock.write(str(held + len(data)).encode())
            part.write(data)
            part.flush()

    def _make_room(self, size: int, ahead: bool) -> int:
        """Delete until `size` more fit; returns the bytes that are left."""
        now, kept = time.time(), list(_files(self.directory))
        held = sum(file.size for file in kept)
        room = self._limit - size
        idle = sorted(file for file in kept if file.used <= now)
        # If need be what is used last of all that has a lease: the one who waits now is served first.
        leased = sorted((file for file in kept if file.used > now), reverse=True)
        for files, target in ((idle, min(room, self._limit * (1 - SPARE))), (() if ahead else leased, room)):
            for file in files:
                if held <= target:
                    break
                if _delete(file.path):
                    held -= file.size
        if held > room and ahead:
            raise Full
        if held > room:
            raise DataError(
                f"{self.directory}: {size} bytes do not fit into the {self._limit} of the cache beside what others are "
                "writing; set data.cache.gib higher"
            )
        return held


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file of this name, made if need be, for one holder at a time."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _named(file):  # else who had it before has renamed or deleted it
                file.truncate(0)
                yield file
                return


def _named(file: BinaryIO) -> bool:
    """Whether the open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def _files(directory: Path) -> Iterator[_Kept]:
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(path)
                if found.st_size and path != str(directory / "lock"):
                    yield _Kept(found.st_mtime, found.st_size, path)


def _delete(path: str) -> bool:
    """Delete a file unless somebody is writing it."""
    try:
        with open(path, "rb") as file:
            if path.endswith(PART):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
