"""Files mapped into memory: a bounded number of them for the whole process, the least recently used let go first."""

import mmap
import resource
from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import BinaryIO

import numpy as np

# A map holds a file descriptor for as long as it lives (Python duplicates the file's), and the usual limit is 1,024
# for everything that a process opens: half of it is left to the others. Mapping a file anew takes microseconds.
MOST_MAPS = 1024


class Maps:
    """Arrays over mapped files by any key; safe for threads.

    An array that somebody still reads outlives its place here: the file is unmapped with its last view.
    """

    def __init__(self, limit: int | None = None):
        self._limit, self._lock = limit, Lock()
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key: Hashable) -> np.ndarray | None:
        try:  # without the lock, which would take longer than both operations, each of which is atomic
            self._arrays.move_to_end(key)
            return self._arrays[key]
        except KeyError:
            return None

    def put(self, key: Hashable, array: np.ndarray) -> np.ndarray:
        with self._lock:
            self._arrays[key] = array
            while len(self._arrays) > (self._limit or most_maps()):
                self._arrays.popitem(last=False)
        return array


def map_file(file: BinaryIO, dtype: np.dtype, count: int) -> np.ndarray:
    """The first `count` elements of an open file, read-only; `ValueError` where the file is shorter.

    A plain array: slicing `np.memmap` itself costs microseconds a call.
    """
    return np.frombuffer(mmap.mmap(file.fileno(), count * dtype.itemsize, access=mmap.ACCESS_READ), dtype)


def most_maps() -> int:
    """Maps of a process under its present limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_MAPS if soft == resource.RLIM_INFINITY else min(MOST_MAPS, soft // 2)


MAPS = Maps()
