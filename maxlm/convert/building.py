"""Directories that appear under their name when they are whole."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maxlm.errors import ConfigError, SaveError
from maxlm.saved import sync_directory

SUFFIX = ".partial"


@contextmanager
def building(out: Path, nbytes: int) -> Iterator[Path]:
    """A new directory beside `out`, which takes its name at the end; an error leaves nothing.

    What a killed command left is deleted first. Raises `ConfigError` where `out` exists or another command makes it,
    `SaveError` where `nbytes` do not fit or nothing can be written.
    """
    out = Path(os.path.abspath(out))
    partial = out.with_name(out.name + SUFFIX)
    if os.path.lexists(out):
        raise ConfigError(f"{out}: exists already; name a directory that does not, or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial, out):
            free = shutil.disk_usage(partial).free
            if nbytes > free:
                raise SaveError(
                    f"{out}: {nbytes / 2**30:.2f} GiB do not fit, {free / 2**30:.2f} GiB are free; free some space, or "
                    "name a directory on another disk"
                )
            yield partial
            sync_directory(partial)
            partial.rename(out)
            sync_directory(out.parent)
    except OSError as error:
        raise SaveError(f"{out}: cannot be written ({error})") from None


@contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    """An empty directory that this process alone writes, as long as it lives; one that nobody locks is a leftover."""
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: another command is writing it; wait for it, or name another directory") from None
        for path in partial.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)
