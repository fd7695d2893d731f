"""Parameters in a checkpoint, slice by slice: written without ever having one whole, and read likewise.

A checkpoint's arrays are Zarr arrays in TensorStore's OCDBT format, as Orbax lays them out (see `checkpoint`). Orbax
writes and reads whole ones. Here its own handler of trees writes everything else of an item, and a handler of ours
writes the arrays; what results is restored like any other checkpoint, on any mesh.
"""

import asyncio
import ctypes
import itertools
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from maxlm.checkpoint import CHUNK_BYTES
from maxlm.convert.links import ParameterPath
from maxlm.errors import DataError
from maxlm.saved import FORMAT_VERSION, PARAMS

T = TypeVar("T")

IN_FLIGHT = 4 * CHUNK_BYTES  # bytes that are being written or read at a time; TensorStore holds them twice
TOGETHER = 8 * CHUNK_BYTES  # bytes of tensors that are converted at a time, or one tensor
THREADS = 4
M_MMAP_THRESHOLD = -3  # malloc.h

Index = tuple[int, ...]  # along a parameter's first axes
Region = tuple[slice, ...]  # along all of them


@dataclass(frozen=True)
class Array:
    """A parameter to be written: its first `stacked` axes are those that slices are taken along."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Slices:
    """Open arrays of a checkpoint, by their paths. Thread-safe."""

    def __init__(self, stores: Mapping[ParameterPath, ts.TensorStore]):
        self._stores, self._flow = stores, _Flow(IN_FLIGHT)
        self._pending: deque[ts.Future] = deque()

    @property
    def dtypes(self) -> dict[ParameterPath, np.dtype]:
        return {path: store.dtype.numpy_dtype for path, store in self._stores.items()}

    @property
    def shapes(self) -> dict[ParameterPath, tuple[int, ...]]:
        return {path: tuple(store.shape) for path, store in self._stores.items()}

    @property
    def chunks(self) -> dict[ParameterPath, tuple[int, ...]]:
        """Shapes of what is read for any one number of an array."""
        return {path: tuple(store.chunk_layout.read_chunk.shape) for path, store in self._stores.items()}

    def write(self, path: ParameterPath, index: Index, values: np.ndarray) -> None:
        """Fill a slice, converting to the array's type (to the nearest, ties to even).

        Small slices are on their way when this returns, so that many are written together; `finish` waits for them.
        """
        store = self._stores[path]
        target, source = store[index], ts.cast(ts.array(values), store.dtype)
        pending = self._copy(store, index, values, lambda region: target[region].write(source[region]).commit)
        if values.nbytes > CHUNK_BYTES:  # a view may keep all of a tensor in memory
            for future in pending:
                future.result()
        else:
            self._pending.extend(pending)

    def finish(self) -> None:
        """Wait for all that was written."""
        while self._pending:
            self._pending.popleft().result()

    def read(self, path: ParameterPath, index: Index, dtype: np.dtype) -> np.ndarray:
        """A slice, converted likewise."""
        store = self._stores[path]
        values = np.empty(store.shape[len(index) :], dtype)
        source, target = ts.cast(store[index], ts.dtype(dtype)), ts.array(values)
        for future in self._copy(store, index, values, lambda region: target[region].write(source[region]).commit):
            future.result()
        return values

    def regions(self, path: ParameterPath) -> list[Region]:
        """The parts of an array that are written together, of at most CHUNK_BYTES each."""
        store = self._stores[path]
        return list(_regions(store.shape, store.chunk_layout.write_chunk.shape))

    def write_region(self, path: ParameterPath, region: Region, values: np.ndarray) -> None:
        """Fill a region, converting as `write` does; it is on disk, or in an error, when this returns."""
        target = self._stores[path]
        source = ts.cast(ts.array(values), target.dtype)
        self._flow.start(values.nbytes, lambda: target[region].write(source).commit).result()

    def read_region(self, path: ParameterPath, region: Region, dtype: np.dtype) -> np.ndarray:
        """A region, converted likewise."""
        source = ts.cast(self._stores[path][region], ts.dtype(dtype))
        values = np.empty(source.shape, dtype)
        self._flow.start(values.nbytes, lambda: ts.array(values).write(source).commit).result()
        return values

    def _copy(self, store: ts.TensorStore, index: Index, values: np.ndarray, copy: Callable) -> list[ts.Future]:
        """Start to copy region by region, along the array's chunks, as soon as they may be in flight."""
        chunk = store.chunk_layout.write_chunk.shape[len(index) :]
        itemsize = max(values.itemsize, store.dtype.numpy_dtype.itemsize)
        futures = []
        for region in _regions(values.shape, chunk):
            nbytes = math.prod(part.stop - part.start for part in region) * itemsize
            futures.append(self._flow.start(nbytes, lambda region=region: copy(region)))
        return futures


class _Flow:
    """Copies that are in flight: at most so many bytes, or one copy."""

    def __init__(self, most: int):
        self._most = self._free = most
        self._changed = threading.Condition()

    def start(self, nbytes: int, copy: Callable[[], ts.Future]) -> ts.Future:
        """Start a copy when it may be in flight."""
        nbytes = min(nbytes, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= nbytes)
            self._free -= nbytes
        try:
            future = copy()
        except BaseException:
            self._release(nbytes)
            raise
        future.force()
        future.add_done_callback(lambda _: self._release(nbytes))
        return future

    def _release(self, nbytes: int) -> None:
        with self._changed:
            self._free += nbytes
            self._changed.notify_all()


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copy and convert an array of any strides; TensorStore transposes seven times faster than numpy does."""
    ts.array(target).write(ts.cast(ts.array(source), ts.dtype(target.dtype))).result()


def _regions(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[Region]:
    axes = [range(0, size, step) for size, step in zip(shape, chunk, strict=True)]
    for starts in itertools.product(*axes):
        yield tuple(
            slice(start, min(start + step, size)) for start, step, size in zip(starts, chunk, shape, strict=True)
        )


class _Handler(ocp.type_handlers.TypeHandler):
    """How Orbax writes an `Array`: it is made, then `fill` writes what is in it."""

    def __init__(self, fill: Callable[[Slices], None]):
        self._fill = fill

    def typestr(self) -> str:
        return "jax.Array"

    async def serialize(self, values, infos, args=None):
        # Not before Orbax has made the directories, which a thread of its own does.
        return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(values, infos), name="slices")]

    async def _write(self, values: Sequence[Array], infos: Sequence[ocp.type_handlers.ParamInfo]) -> None:
        stores = {}
        for array, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=array.shape,
                local_shape=array.shape,
                dtype=array.dtype,
                process_index=0,
                arg=ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=tuple(range(array.stacked))),
            )
            path = tuple(str(key.key) for key in info.keypath)
            stores[path] = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
        slices = Slices(stores)
        await asyncio.to_thread(self._fill, slices)
        await asyncio.to_thread(slices.finish)

    async def metadata(self, infos):
        raise NotImplementedError("arrays are only written; Orbax's own handler reads them")

    async def deserialize(self, infos, args=None):
        raise NotImplementedError("arrays are only written; Orbax's own handler reads them")


def write_checkpoint(directory: Path, arrays: dict, run: dict[str, Any], fill: Callable[[Slices], None]) -> None:
    """A checkpoint of parameters alone: a nested dict of `Array`, which `fill` writes, and the run's JSON."""
    registry = ocp.type_handlers.create_type_handler_registry((Array, _Handler(fill)))
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry), run=ocp.JsonCheckpointHandler()
    )
    items = {"params": ocp.args.PyTreeSave(arrays), "run": ocp.args.JsonSave({"version": FORMAT_VERSION} | run)}
    with ocp.Checkpointer(handler) as writer:
        writer.save(directory, args=ocp.args.Composite(**items))


def open_checkpoint(directory: Path, cache_bytes: int = 0, item: str = PARAMS) -> Slices:
    """The parameters of a checkpoint for reading, or another item like them; chunks are kept, decoded, up to
    `cache_bytes`.

    Raises `DataError` where it is damaged.
    """
    folder = directory / item
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    try:
        metadata = json.loads((folder / "_METADATA").read_bytes())
        paths = [tuple(key["key"] for key in entry["key_metadata"]) for entry in metadata["tree_metadata"].values()]
        opened = {path: ts.open(_read_spec(folder, path), read=True, context=context) for path in paths}
        return Slices({path: future.result() for path, future in opened.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(directory, error) from None


def damaged(directory: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{directory}: the checkpoint is damaged or incomplete ({reason})")


def _read_spec(folder: Path, path: ParameterPath) -> dict[str, Any]:
    kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": ".".join(path) + "/"}
    # What is missing is an error: parameters of zeros would pass for real ones.
    return {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False, "recheck_cached_data": False}


def return_freed_memory() -> None:
    """Ask the C library to give large buffers back to the system as soon as they are freed.

    glibc learns to keep freed buffers of up to 32 MiB, for every thread: that took 200 MiB of an import of 1.3 billion
    parameters, whose largest tensor has 126. Other libraries have no such habit, and no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**20)


def each(work: Callable[[T], None], items: Sequence[T], cost: Callable[[T], int]) -> Iterator[int]:
    """Do work(item) in threads, so that the bytes of those at work stay below TOGETHER, or one is at work alone.

    Yields the bytes of what is done.
    """
    running: dict[Future, int] = {}

    def finished() -> Iterator[int]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)

    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            while running and (len(running) == THREADS or sum(running.values()) + cost(item) > TOGETHER):
                yield from finished()
            running[pool.submit(work, item)] = cost(item)
        while running:
            yield from finished()
