"""One run directory, one training of it: a second would take the first one's unfinished checkpoints for what a killed
process left, and remove them."""

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from maxlm.errors import ConfigError, SaveError
from maxlm.parallel.agreement import wait_until

LOCK = "lock"
# A host that died holds what it locked on a network disk until the server gives up on it: NFS's lease is 90 seconds.
LEASE_SECONDS = 120.0


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run directory, which is made; raises `ConfigError` where another process holds it.

    The system lets go of it when the process ends, however it ends: no lock outlives its holder, and the file that
    stays behind says no more than who was the last one. On a disk that knows no locks nothing is held.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a+")  # not emptied: it may be another's
    except OSError as error:
        raise SaveError(f"{run_dir}: cannot be written ({error})") from None
    with file:
        if not _taken(file):
            holder = _holder(file)
            if not holder.endswith(f" on {socket.gethostname()}"):
                print(f"{run_dir} is held by {holder}: waiting, in case that host is gone", file=sys.stderr, flush=True)
                wait_until(lambda: _taken(file), LEASE_SECONDS)
            if not _taken(file):
                raise ConfigError(
                    f"{run_dir}: {holder} is training this run; wait until it ends, or give this one a name of its own"
                )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _taken(file: TextIO) -> bool:
    """Whether the lock is ours now, or there is none to be had."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
