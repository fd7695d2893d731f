"""The cache of the pipeline: what is done is found by its key, and is committed whole or not at all.

The key of a result is a hash of everything it depends on: the keys of its inputs, the stage's configuration and the
stage's VERSION, an integer that changes with the code's output. A raw file enters by relative name, size and time of
modification (in nanoseconds): reading terabytes to learn that nothing changed would cost as much as the work it saves.

    WORK/STAGE/KEY/NAME          the files of a result
    WORK/STAGE/KEY/record.json   written last; a result without a record does not exist
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maxlm.errors import SaveError


def make_key(stage: str, version: int, *parts: Any) -> str:
    """32 hexadecimal digits that identify a result; `parts` are JSON values."""
    text = json.dumps([stage, version, *parts], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_key(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


@dataclass(frozen=True)
class Record:
    """What a finished result says about itself: sizes of its files by name, and what was counted."""

    key: str
    files: dict[str, int] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """The results of one stage."""

    path: Path

    def file(self, key: str, name: str) -> Path:
        return self.path / key / name

    def find(self, key: str) -> Record | None:
        """The record of a result whose files are all there with their sizes, else None."""
        try:
            record = Record(**json.loads(self.file(key, RECORD).read_bytes()))
            complete = all(self.file(key, name).stat().st_size == size for name, size in record.files.items())
        except (OSError, ValueError, TypeError):
            return None
        return record if complete else None

    def commit(self, key: str, names: Iterable[str] = (), values: dict[str, Any] | None = None) -> Record:
        """Write the record of files that are already in place."""
        record = Record(key, {name: self.file(key, name).stat().st_size for name in names}, values or {})
        with writing(self.file(key, RECORD)) as temporary:
            temporary.write_text(json.dumps(asdict(record), sort_keys=True))
        return record

    def prune(self, keys: Iterable[str]) -> None:
        """Delete the results that are not among `keys`, and what an interrupted run left among them; nothing else."""
        keep = set(keys)
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name in keep:
                for left in path.glob(f"*{TEMPORARY}"):
                    left.unlink()
            elif is_key(path.name):
                shutil.rmtree(path)


RECORD, TEMPORARY = "record.json", ".partial"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` when the block ends well; raises `SaveError` where it cannot."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Without this a power cut could leave a name with the right size and no content. The directory needs none:
        # a result whose name was lost is made again.
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise save_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_error(path: Path, error: OSError) -> SaveError:
    """One line for a failure to write; the reason is the system's, as Arrow's own text repeats the path."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return SaveError(
        f"{path}: cannot be written ({reason}); what was finished before is kept, the same command goes on"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
