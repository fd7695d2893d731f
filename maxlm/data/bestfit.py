"""Best-fit packing: documents placed whole into windows, and the index of who lies where.

A source is cut into blocks of a fixed range of tokens; a document belongs to the block in which it starts, even where
it runs past its end. Within a block documents go into windows of seq_len slots by best-fit-decreasing: the longest
first, each into the fullest window that still holds it (Ding et al. 2024, "Fewer Truncations Improve Language
Modeling", arXiv:2404.10830). A document takes a slot per token, EOS included. One that is longer than seq_len is cut
into pieces of seq_len slots from its start, of which the remainder is placed like a document (`split`), or is left
out (`drop`). So only documents that no window can hold are ever cut.

A window's pieces, and a block's windows, lie in the order of fixed random numbers. So neither a piece's place in its
window nor a window's number says anything of lengths. In the order of packing both would, and so they would in that of
the stream: what the early documents of a length leave over, the late ones get (of 3,000 documents of 1 to 29 tokens in
windows of 32, the first of a window were 24% longer than the last).

An index lies beside the shards, or in a cache where nothing can be written there, in a directory of its own:

    packing/bestfit-v1-seq2048-split-block16777216-0123456789abcdef/
        index.json    the key, what was counted, size and SHA-256 of each array, and their common hash
        blocks.bin    int64 [blocks, 2]: windows and pieces of each block
        windows.bin   uint32 [windows + blocks]: the first piece of each window, counted from 0 in each block, and
                      after the windows of a block the number of its pieces
        starts.bin    uint32 [pieces]: the first token of a piece, counted from the start of its block
        lengths.bin   uint16 or (from a seq_len of 65,535) uint32 [pieces]: the tokens of a piece that are read: its
                      slots, and one more, seq_len + 1, where the document goes on

All are little-endian. They are mapped, not loaded; memory holds 24 bytes per block of 16.8M tokens. At seq_len 2,048
and documents of 500 tokens a document takes 7 bytes of index: 6 and its part of a window's 4. A directory whose name
begins with a dot is being written, or was left by a build that was killed, and may be deleted.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from maxlm.data.order import BLOCK_TOKENS
from maxlm.data.packing import Piece
from maxlm.data.placement import arrange, cut
from maxlm.data.shards import FileEntry, Shards, file_entry
from maxlm.errors import ConfigError, DataError, MaxlmError, SaveError

VERSION = 1  # of the packing and the files: whatever changes a single byte raises it
FOLDER, RECORD = "packing", "index.json"
BLOCKS, WINDOWS, STARTS, LENGTHS = ARRAYS = ("blocks.bin", "windows.bin", "starts.bin", "lengths.bin")

Overlong = Literal["split", "drop"]
Verify = Literal["checksums", "sizes"]
Ints = NDArray[np.int64]
Progress = Callable[[Iterable, int], Iterable]

_OFFSETS = np.dtype("<u4")
_NO_ENDS = np.zeros(0, np.int64)
_NO_TARGET = np.zeros(1, np.uint16)
# Results that workers may be ahead, so that memory stays bounded, and blocks per task, each of which opens the shards.
_AHEAD, _TASK = 64, 4


class Statistics(NamedTuple):
    """What a packed source holds."""

    documents: int  # all, dropped ones included
    split_documents: int
    dropped_documents: int
    dropped_tokens: int
    windows: int
    slots: int  # windows x seq_len
    filled_slots: int

    @property
    def truncated_share(self) -> float:
        """Share of all documents that were split."""
        return self.split_documents / self.documents

    @property
    def fill_rate(self) -> float:
        """Share of the slots that hold a token."""
        return self.filled_slots / self.slots


class Key(BaseModel):
    """Everything that an index depends on; lengths in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    manifest: str
    seq_len: int
    block_tokens: int
    overlong: Overlong

    @property
    def name(self) -> str:
        """The directory of the index."""
        shape = f"seq{self.seq_len}-{self.overlong}-block{self.block_tokens}"
        return f"bestfit-v{self.version}-{shape}-{self.manifest[:16]}"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Key
    statistics: dict[str, int]
    files: dict[str, FileEntry]
    hash: str = ""

    def digest(self) -> str:
        text = json.dumps(self.model_dump(exclude={"hash"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class PackingIndex:
    """An index on disk, memory-mapped.

    Attributes: `key`; `hash` of the key and the contents, the same wherever it was built; `statistics`; `sizes`:
    windows of each block, int64 [blocks], 0 where no document starts in a block or all were dropped.
    """

    def __init__(self, directory: Path, verify: Verify = "checksums"):
        """Open the index; raises `DataError` for a file that is missing, truncated or (`checksums`) altered."""
        self.directory = directory
        record = self._read_record()
        self.key, self.hash = record.key, record.hash
        self.statistics = Statistics(**record.statistics)
        for name, entry in record.files.items():
            self._verify(name, entry, verify)
        blocks = self._map(BLOCKS, np.dtype("<i8")).reshape(-1, 2)
        self.sizes: Ints = blocks[:, 0].astype(np.int64)
        ends = blocks.cumsum(0)
        # Each block has an entry more in windows.bin than it has windows.
        self._first_window = ends[:, 0] - self.sizes + np.arange(len(blocks))
        self._first_piece = ends[:, 1] - blocks[:, 1]
        self._windows = self._map(WINDOWS, _OFFSETS)
        self._starts = self._map(STARTS, _OFFSETS)
        self._lengths = self._map(LENGTHS, _length_dtype(self.key.seq_len))

    def __getstate__(self) -> dict[str, Path]:
        return {"directory": self.directory}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["directory"], "sizes")

    def pieces(self, block: int, window: int) -> tuple[Ints, Ints]:
        """The pieces of a window in their order: positions of their first tokens in the source, and how many tokens
        of each are read (its slots; seq_len + 1 where the document goes on). Both int64 [pieces]."""
        if not 0 <= window < self.sizes[block]:
            raise IndexError(f"window {window} of block {block} of {self.directory}, which has {self.sizes[block]}")
        at, base = int(self._first_window[block]) + window, int(self._first_piece[block])
        low, high = self._windows[at : at + 2].tolist()
        span = slice(base + low, base + high)
        return self._starts[span] + np.int64(block * self.key.block_tokens), self._lengths[span].astype(np.int64)

    def windows_of(self, first: int, length: int) -> list[tuple[int, int]]:
        """(block, window) of every window that holds a piece of the document of `length` tokens that begins at `first`.

        They come in the order of its pieces; a document that was dropped has none.
        """
        block, start = divmod(first, self.key.block_tokens)
        at, base, windows = int(self._first_window[block]), int(self._first_piece[block]), int(self.sizes[block])
        bounds = self._windows[at : at + windows + 1]
        starts = self._starts[base : base + int(bounds[-1])]
        found = np.flatnonzero((starts >= start) & (starts < start + length))
        found = found[np.argsort(starts[found])]
        return [(block, window) for window in (bounds.searchsorted(found, "right") - 1).tolist()]

    def _read_record(self) -> _Record:
        try:
            record = _Record.model_validate_json((self.directory / RECORD).read_bytes())
        except OSError as error:
            raise self._damaged(RECORD, f"cannot be read ({error.strerror})") from None
        except ValidationError:
            raise self._damaged(RECORD, "is no record of a packing index") from None
        if record.hash != record.digest():
            raise self._damaged(RECORD, "differs from its own hash")
        return record

    def _verify(self, name: str, entry: FileEntry, verify: Verify) -> None:
        path = self.directory / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size:
            raise self._damaged(name, f"has {size} bytes, expected {entry.size}" if size is not None else "is missing")
        if verify == "checksums" and file_entry(path).sha256 != entry.sha256:
            raise self._damaged(name, "was altered: its contents differ from the checksum")

    def _damaged(self, name: str, what: str) -> DataError:
        return DataError(f"{self.directory / name}: {what}; delete {self.directory}, it is built again")

    def _map(self, name: str, dtype: np.dtype) -> NDArray:
        # A plain view: slicing np.memmap itself costs microseconds a call.
        return np.asarray(np.memmap(self.directory / name, dtype, "r"))


def open_index(
    shards: Shards,
    seq_len: int,
    overlong: Overlong,
    *,
    block_tokens: int = BLOCK_TOKENS,
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress = lambda blocks, total: blocks,
    verify: Verify = "checksums",
) -> PackingIndex:
    """The packing index of a source, built where there is none yet.

    Args:
        seq_len: slots of a window.
        overlong: what becomes of documents with more tokens than seq_len.
        block_tokens: tokens of a block; at most 2^32.
        cache: directory for the index where nothing can be written beside the shards.
        workers: processes that build; the index is the same for any number. More than one are spawned, and import
            the caller's main module, so that needs a guard (`if __name__ == "__main__"`).
        progress: wraps the loop over the blocks of a build, as in progress(blocks, number of blocks).
        verify: of an index that is there: every byte against its checksum, or file sizes alone.
    Raises: `DataError` for a damaged index or damaged data, `ConfigError` where every document is dropped, `SaveError`
        where the index can be written nowhere.
    """
    key = Key(manifest=shards.manifest.hash, seq_len=seq_len, block_tokens=block_tokens, overlong=overlong)
    beside = [] if shards.remote else [shards.directory / FOLDER / key.name]
    places = [*beside, *([cache / key.name] if cache else [])]
    directory = next((place for place in places if place.is_dir()), None)
    if directory is None:
        directory, verify = _build(shards, key, places, workers, progress), "sizes"
    index = PackingIndex(directory, verify)
    if index.key != key:
        raise DataError(f"{directory}: holds the index of other data or another packing; delete it, it is built again")
    return index


def read_window(shards: Shards, index: PackingIndex, block: int, window: int) -> tuple[NDArray, Ints]:
    """The tokens of a window, and where documents end in it.

    Returns: text [n + 1], in the type of the shards, n <= seq_len slots and then a token that is only a target: the
        next one where the last piece's document goes on, else 0 (inputs are text[:-1], targets text[1:]; it may be a
        view of the mapped file); ends, int64 ascending in 1..n: exclusive ends of the documents that end in the
        window, so that slot end - 1 has no target. A piece that goes on is seq_len long and alone in its window.
    """
    starts, lengths = index.pieces(block, window)
    if lengths[0] > index.key.seq_len:
        start = int(starts[0])
        return shards.read(start, start + index.key.seq_len + 1), _NO_ENDS
    stops = (starts + lengths).tolist()
    parts = [shards.read(start, stop) for start, stop in zip(starts.tolist(), stops, strict=True)]
    return np.concatenate([*parts, _NO_TARGET]), lengths.cumsum()


def pieces(index: PackingIndex, block: int, window: int) -> list[Piece]:
    """What of the source a window's inputs are: whole documents, or one piece of a long one."""
    starts, lengths = index.pieces(block, window)
    lengths = np.minimum(lengths, index.key.seq_len)
    slots = lengths.cumsum() - lengths
    return [Piece(*piece) for piece in zip(starts.tolist(), lengths.tolist(), slots.tolist(), strict=True)]


def _length_dtype(seq_len: int) -> np.dtype:
    return np.dtype("<u2" if seq_len + 1 < 2**16 else "<u4")


def _build(shards: Shards, key: Key, places: list[Path], workers: int, progress: Progress) -> Path:
    """Write the index into the first place that can be written; returns where it lies."""
    shards.verify_indexes()
    for place in places:
        staging = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            staging.mkdir(parents=True)
            _write(staging, shards, key, workers, progress)
            _publish(staging, place)
            return place
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    tried = " and ".join(str(place.parent) for place in places)
    raise SaveError(f"{tried}: no packing index can be written ({reason}); make the directory writable or give a cache")


def _publish(staging: Path, place: Path) -> None:
    """Put a finished index in its place; where another process was first, its index, which is the same, stays."""
    try:
        staging.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _write(directory: Path, shards: Shards, key: Key, workers: int, progress: Progress) -> None:
    """Pack block by block into the files of an index, the record last."""
    hashes = {name: hashlib.sha256() for name in ARRAYS}
    counts = np.zeros(len(Statistics._fields), np.int64)
    blocks = -(-len(shards) // key.block_tokens)
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(directory / name, "wb")) for name in ARRAYS}
        for arrays, statistics in progress(_packed_blocks(shards, key, blocks, workers), blocks):
            counts += statistics
            for name, array in arrays.items():
                data = array.tobytes()
                files[name].write(data)
                hashes[name].update(data)
        for file in files.values():
            _sync(file)
        entries = {name: FileEntry(size=file.tell(), sha256=hashes[name].hexdigest()) for name, file in files.items()}
    statistics = Statistics(*counts.tolist())
    if not statistics.windows:
        raise ConfigError(
            f"{shards.directory}: each of its {statistics.documents} documents is longer than seq_len {key.seq_len}, "
            "and overlong documents are dropped; split them, or raise seq_len"
        )
    record = _Record(key=key, statistics=statistics._asdict(), files=entries)
    with open(directory / RECORD, "w") as file:
        file.write(record.model_copy(update={"hash": record.digest()}).model_dump_json(indent=1) + "\n")
        _sync(file)


def _sync(file) -> None:
    """Without this a power cut could leave a name with the right size and no content."""
    file.flush()
    os.fsync(file.fileno())


Packed = tuple[dict[str, NDArray], Statistics]


def _packed_blocks(shards: Shards, key: Key, blocks: int, workers: int) -> Iterator[Packed]:
    """The blocks in order, packed here or in processes."""
    pack = partial(_pack_block, shards, key)
    if workers == 1:
        yield from map(pack, range(blocks))
        return
    ahead = workers * _AHEAD
    try:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for first in range(0, blocks, ahead):
                yield from pool.map(pack, range(first, min(first + ahead, blocks)), chunksize=_TASK)
    except BrokenProcessPool:
        raise MaxlmError(
            f"{shards.directory}: a process that builds the packing index was killed, most often for want of memory; "
            "use fewer workers"
        ) from None


def _pack_block(shards: Shards, key: Key, block: int) -> Packed:
    """The arrays of a block by file, and what was counted."""
    first = block * key.block_tokens
    starts, ends = _documents(shards, first, min(first + key.block_tokens, len(shards)))
    sizes = ends - starts
    overlong = sizes > key.seq_len
    dropped = overlong & (key.overlong == "drop")
    starts, slots, lengths = cut(starts[~dropped], ends[~dropped], key.seq_len)
    starts -= first
    if starts.max(initial=0) >= 2**32:
        raise DataError(
            f"{shards.directory}: a document of {sizes.max()} tokens; best-fit packing needs less than "
            f"{2**32 - key.block_tokens}: cut it when the data is prepared, or pack by concat"
        )
    order, offsets = arrange(slots, key.seq_len)
    windows = len(offsets) - 1
    arrays = {
        BLOCKS: np.array([windows, len(starts)], "<i8"),
        WINDOWS: offsets.astype(_OFFSETS),
        STARTS: starts[order].astype(_OFFSETS),
        LENGTHS: lengths[order].astype(_length_dtype(key.seq_len)),
    }
    statistics = Statistics(
        documents=len(sizes),
        split_documents=int((overlong & ~dropped).sum()),
        dropped_documents=int(dropped.sum()),
        dropped_tokens=int(sizes[dropped].sum()),
        windows=windows,
        slots=windows * key.seq_len,
        filled_slots=int(slots.sum()),
    )
    return arrays, statistics


def _documents(shards: Shards, first: int, stop: int) -> tuple[Ints, Ints]:
    """Starts and exclusive ends, as positions, of the documents that start in first..stop-1."""
    bounds = shards.ends(max(first - 1, 0), stop)
    if first == 0:
        bounds = np.concatenate([np.zeros(1, np.int64), bounds])
    # The last document may end anywhere beyond the block.
    low, reach = stop, stop - first
    while bounds.size and bounds[-1] < stop:
        bounds = np.concatenate([bounds, shards.ends(low, min(low + reach, len(shards)))[:1]])
        low += reach
    return bounds[:-1], bounds[1:]
