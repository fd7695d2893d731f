"""The shard format: what data_prep writes and training reads. This docstring is its specification.

A directory of shards holds one source's documents as flat tokens:

    tokens-NNNNN.bin          little-endian uint16 or uint32; documents one after the other, each
                              [BOS] tokens EOS, with BOS only where the tokenizer has one (`bos_id`)
    tokens-NNNNN.idx          little-endian uint64: the exclusive end of every document, counted in tokens
                              from the start of its shard, EOS included; the last one is the shard's length
    documents-NNNNN.parquet   one row per document, in the same order: id, source, url, language, bytes, and what
                              preparation recorded about it
    fingerprints-NNNNN.parquet  optional; one row per document, in the same order: hash (first 16 bytes of the SHA-256
                              of its text), normalised (uint64) and bands (list of uint64) where preparation made
                              them. A later preparation finds copies by it; training never reads it
    documents.hash            rows of (hash: uint64, shard: uint32, row: uint32), little-endian, sorted by hash,
                              where hash is the first 8 bytes (little-endian) of the SHA-256 of the document's id;
                              a document that preparation repeats has a row for each copy, and a column `copy` (0, 1,
                              ...) in documents-NNNNN.parquet
    tokenizer/                the tokenizer's files
    manifest.json             written last and atomically; a directory without it does not exist

Keys of manifest.json:

    format           "maxlm-shards"
    version          1
    dtype            "uint16" or "uint32": type of the token files
    tokens           number of tokens, BOS and EOS included
    documents        number of documents
    bytes            UTF-8 bytes of the documents' text, the denominator of bits per byte
    tokenizer        kind        "tokenizers" (tokenizer.json) or "sentencepiece" (tokenizer.model)
                     vocab_size  one more than the largest id
                     bos_id      id in front of every document, or null
                     eos_id      id after every document
                     files       {name: {size, sha256}} of the files in tokenizer/
    shards           list of     tokens, documents, bytes, and files {name: {size, sha256}} of one shard
    document_hashes  {size, sha256} of documents.hash
    pipeline         the resolved preparation pipeline that wrote the directory; for people, never read

Documents are shuffled over the whole directory when it is written, unless the pipeline orders them. Empty
documents are not written, so every document has at least [BOS] and EOS around one token.
"""

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain, count
from pathlib import Path
from typing import Annotated, Any, Literal, overload

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from maxlm.config import CacheConfig
from maxlm.data.maps import MAPS, map_file
from maxlm.data.storage import File, LocalFolder, Range, RemoteFolder, altered, open_folder, sha256_of
from maxlm.data.store import Missing
from maxlm.errors import DataError

FORMAT, VERSION = "maxlm-shards", 1
MANIFEST = "manifest.json"
SIZES = ("tokens", "documents", "bytes")
EXTENSION = "extension.json"  # how a tokenizer was extended, beside its file; see `tokenizer`
HASHES = "documents.hash"
HASH_DTYPE = np.dtype([("hash", "<u8"), ("shard", "<u4"), ("row", "<u4")])

_ENDS = -1  # in place of a piece's number: the shard's index, which is one piece
_ENDS_DTYPE = np.dtype("<u8")
_KEYS = count()  # of opened shards, so that data prepared anew in the same place is mapped anew


def tokens_name(shard: int) -> str:
    return f"tokens-{shard:05d}.bin"


def index_name(shard: int) -> str:
    return f"tokens-{shard:05d}.idx"


def documents_name(shard: int) -> str:
    return f"documents-{shard:05d}.parquet"


def fingerprints_name(shard: int) -> str:
    return f"fingerprints-{shard:05d}.parquet"


def document_hash(document_id: str) -> int:
    """The sort key of `documents.hash`."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "little")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Size = Annotated[int, Field(ge=0, lt=2**63)]
_Name = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]  # names no file of another folder


class FileEntry(_Record):
    size: _Size
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TokenizerEntry(_Record):
    kind: Literal["tokenizers", "sentencepiece"]
    vocab_size: int
    bos_id: int | None
    eos_id: int
    files: dict[_Name, FileEntry]

    @property
    def hash(self) -> str:
        """Identity of the tokenizer: its files' contents, whatever their directory.

        How it was extended does not count: the ids are those of a copy of the tokenizer alone.
        """
        return _digest({name: entry.sha256 for name, entry in self.files.items() if name != EXTENSION})


class ShardEntry(_Record):
    tokens: _Size
    documents: _Size
    bytes: _Size
    files: dict[_Name, FileEntry]


_Row = tuple[tuple[int, int, int], list[tuple[bytes, int, bytes]]]


def _row(entry: ShardEntry) -> _Row:
    files = [(name.encode(), file.size, bytes.fromhex(file.sha256)) for name, file in entry.files.items()]
    return (entry.tokens, entry.documents, entry.bytes), files


class ShardTable(Sequence[ShardEntry]):
    """The shards of a manifest in a few arrays, 0.2 KiB a shard; a record each takes 3, and a run may have 10,000.

    N shards with F files in all. Entries are made when they are asked for.
    """

    def __init__(self, rows: Sequence[_Row]):
        files = [file for _, files in rows for file in files]
        width = max((len(name) for name, *_ in files), default=1)
        self._files = np.array(files, [("name", f"S{width}"), ("size", "<i8"), ("sha256", "V32")])  # [F]
        self._bounds = np.cumsum([0, *(len(files) for _, files in rows)])  # [N + 1], of each shard's files
        self.counts = np.array([counts for counts, _ in rows], np.int64).reshape(-1, 3)  # tokens, documents, bytes

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardEntry]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        tokens, documents, size = self.counts[number].tolist()
        files = {file.name: FileEntry(size=file.size, sha256=file.sha256) for file in self.files(number)}
        return ShardEntry(tokens=tokens, documents=documents, bytes=size, files=files)

    def files(self, number: int) -> list[File]:
        """The files of one shard."""
        rows = self._files[self._bounds[number] : self._bounds[number + 1]].tolist()
        return [File(name.decode(), size, sha256.hex()) for name, size, sha256 in rows]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and all(
            np.array_equal(mine, vars(other)[name]) for name, mine in vars(self).items()
        )


# Row by row, so that the records of a long manifest never exist together: Python keeps most of such memory for good.
_Shards = Annotated[
    list[Annotated[ShardEntry, AfterValidator(_row)]], AfterValidator(ShardTable), PlainSerializer(list)
]


class Manifest(_Record):
    format: Literal["maxlm-shards"] = FORMAT
    version: Literal[1] = VERSION
    dtype: Literal["uint16", "uint32"]
    tokens: int
    documents: int
    bytes: int
    tokenizer: TokenizerEntry
    shards: _Shards
    document_hashes: FileEntry
    pipeline: dict[str, Any] = {}

    @cached_property
    def hash(self) -> str:
        """Identity of the tokens and their order: a run resumes only on the same one."""
        return _digest(self.model_dump(include={"version", "dtype", "shards"}) | {"tokenizer": self.tokenizer.hash})

    @property
    def files(self) -> dict[str, FileEntry]:
        """Every file of the directory by its relative name, the manifest aside."""
        tokenizer = ((f"tokenizer/{name}", entry) for name, entry in self.tokenizer.files.items())
        return dict(chain(tokenizer, *(shard.files.items() for shard in self.shards), [(HASHES, self.document_hashes)]))

    @property
    def sizes(self) -> dict[str, int]:
        """How much text it is."""
        return {key: getattr(self, key) for key in SIZES}

    @property
    def target_tokens(self) -> int:
        """Tokens that are predicted: all but the first of each document."""
        return self.tokens - self.documents


def _digest(value: Mapping) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    return FileEntry(size=path.stat().st_size, sha256=sha256_of(path))


def read_manifest(directory: str | Path) -> Manifest:
    """The manifest of a shard directory; raises `DataError` when there is none or it cannot be read."""
    return _read_manifest(open_folder(directory, CacheConfig()))


def _read_manifest(folder: LocalFolder | RemoteFolder) -> Manifest:
    try:
        return Manifest.model_validate_json(folder.read(MANIFEST))
    except Missing:
        found = folder.remote or folder.location.is_dir()
        state = "the directory has no manifest.json" if found else "no such directory"
        raise DataError(
            f"{folder.location}: {state}; expected shards written by maxlm-prep (an unfinished run has none yet)"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{folder.where(MANIFEST)}: not a manifest of version {VERSION}: {key}: {problem['msg']}"
        ) from None


class Shards:
    """Random access to the tokens of one directory, memory-mapped; files are opened when they are first read.

    Positions count tokens over all shards in order, from 0 to `manifest.tokens`. A pickled copy has the manifest with
    it and reads nothing when it is unpickled.

    Args:
        directory: a path, or the URL of a folder in an object store (see `storage`).
        cache: how a store is read; None for the defaults.

    `directory` is the path, or for messages the URL without what it keeps secret; `remote` says which.
    """

    def __init__(self, directory: str | Path, cache: CacheConfig | None = None):
        self._folder = open_folder(directory, cache or CacheConfig())
        self.directory, self.remote = self._folder.location, self._folder.remote
        # Of 200 sources prepared together, each describes the preparation of all.
        self.manifest = _read_manifest(self._folder).model_copy(update={"pipeline": {}})
        self._starts = array("q", accumulate(self.manifest.shards.counts[:, 0].tolist(), initial=0))
        self._piece = self._folder.chunk // self.dtype.itemsize  # tokens that are mapped together
        self._key = next(_KEYS)
        if not self.manifest.tokens:
            raise DataError(f"{self.directory}: holds no tokens; expected at least one document")
        if (found := self._starts[-1]) != self.manifest.tokens:
            raise DataError(
                f"{self._folder.where(MANIFEST)}: its shards hold {found} tokens, it says {self.manifest.tokens}"
            )

    def __setstate__(self, state):
        self.__dict__ = state | {"_key": next(_KEYS)}

    @cached_property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest.dtype).newbyteorder("<")

    def __len__(self) -> int:
        return self.manifest.tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop, across shard files; a view of a mapped file where one holds them all."""
        pieces = self._locate(start, stop)
        if len(pieces) == 1:
            ((shard, piece, first, last),) = pieces
            return self._array(shard, piece)[first:last]
        return np.concatenate([self._array(shard, piece)[first:last] for shard, piece, first, last in pieces])

    def ends(self, start: int, stop: int) -> np.ndarray:
        """Exclusive ends of documents, as positions, that lie in start < end <= stop; int64, ascending."""
        self._check(start, stop)
        parts = []
        for shard in range(bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1)):
            offset = self._starts[shard]
            ends = self._array(shard, _ENDS)
            low, high = ends.searchsorted(np.array([max(start - offset, 0), stop - offset], np.uint64), "right")
            parts.append(ends[low:high].astype(np.int64) + offset)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def documents(self, start: int, stop: int) -> np.ndarray:
        """Documents that have any of the tokens start..stop.

        Returns: int64 [documents, 4]: shard, row, first token and exclusive end, as positions, ascending.
        """
        self._check(start, stop)
        parts = []
        for shard in range(bisect_right(self._starts, start) - 1, bisect_right(self._starts, stop - 1)):
            offset, ends = self._starts[shard], self._array(shard, _ENDS)
            low = int(ends.searchsorted(np.uint64(max(start - offset, 0)), "right"))
            high = min(int(ends.searchsorted(np.uint64(stop - offset))) + 1, len(ends))
            bounds = ends[max(low - 1, 0) : high].astype(np.int64) + offset
            bounds = bounds if low else np.append(offset, bounds)
            rows = np.arange(low, high)
            parts.append(np.stack([np.full_like(rows, shard), rows, bounds[:-1], bounds[1:]], axis=1))
        return np.concatenate(parts)

    def span(self, shard: int, row: int) -> tuple[int, int]:
        """First token and exclusive end of a document, as positions."""
        offset, ends = self._starts[shard], self._array(shard, _ENDS)
        return offset + int(ends[row - 1] if row else 0), offset + int(ends[row])

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What `read` and `ends` of these tokens need: shards and pieces of them, as `range_of` takes them."""
        return [(shard, number) for shard, piece, *_ in self._locate(start, stop) for number in (piece, _ENDS)]

    def range_of(self, shard: int, piece: int) -> Range:
        """The bytes of a piece: a shard's whole index, or as many of its tokens as are mapped together."""
        file = self._file(shard, index_name if piece == _ENDS else tokens_name)
        if piece == _ENDS:
            return Range(self._folder, file, 0, file.size)
        size = int(self.manifest.shards.counts[shard, 0]) * self.dtype.itemsize
        start = piece * self._folder.chunk
        return Range(self._folder, file, start, min(start + self._folder.chunk, size))

    def local_documents(self, shard: int) -> Path:
        """The table of a shard's documents as a file of this machine."""
        return self._folder.local_file(self._file(shard, documents_name))

    def local_fingerprints(self, shard: int) -> Path | None:
        """The table of what copies of a shard's documents are found by, where there is one."""
        name = fingerprints_name(shard)
        found = [file for file in self.manifest.shards.files(shard) if file.name == name]
        return self._folder.local_file(found[0]) if found else None

    def local_hashes(self) -> Path:
        """The table of the documents' hashes as a file of this machine."""
        entry = self.manifest.document_hashes
        return self._folder.local_file(File(HASHES, entry.size, entry.sha256))

    def local_tokenizer(self) -> Path:
        """A local folder with the tokenizer's files, for `Tokenizer`."""
        entry = self.manifest.tokenizer
        files = [File(f"tokenizer/{name}", file.size, file.sha256) for name, file in entry.files.items()]
        return self._folder.local_copies("tokenizer", files, entry.hash)

    def verify(self, level: Literal["checksums", "sizes"], part: int = 0, parts: int = 1) -> None:
        """Compare the files with the manifest; raises `DataError` naming the first that differs.

        `checksums` reads the files part, part + parts, ... of the list, so that processes can share the work;
        sizes are compared for all.
        """
        files = [File(name, entry.size, entry.sha256) for name, entry in sorted(self.manifest.files.items())]
        sizes = self._folder.sizes(files)
        for name, size, _ in files:
            where = self._folder.where(name)
            if name not in sizes:
                raise DataError(f"{where}: missing; the manifest lists it, prepare the data again or restore the file")
            if sizes[name] != size:
                raise DataError(f"{where}: has {sizes[name]} bytes, the manifest says {size}; the file is damaged")
        if level == "checksums":
            self._compare(files[part::parts])

    def verify_indexes(self) -> None:
        """Compare where documents end with the manifest's checksums, whatever else is compared.

        What is derived from them and kept must not outlive damage to them.
        """
        self._compare([self._file(shard, index_name) for shard in range(len(self.manifest.shards))])

    def _compare(self, files: Sequence[File]) -> None:
        """Raise `DataError` naming the first file whose contents are not those of its checksum."""
        for file, digest in zip(files, self._folder.digests(files), strict=True):
            if digest != file.sha256:
                raise altered(self._folder.where(file.name))

    def _file(self, shard: int, named: Callable[[int], str]) -> File:
        name = named(shard)
        for file in self.manifest.shards.files(shard):
            if file.name == name:
                return file
        raise DataError(f"{self._folder.where(MANIFEST)}: does not list {name}; prepare the data again")

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"tokens {start}..{stop} of {self.directory}, which has {len(self)}")

    def _locate(self, start: int, stop: int) -> list[tuple[int, int, int, int]]:
        """Where tokens start..stop lie: shard, piece of it, first and last + 1 of the piece's tokens."""
        self._check(start, stop)
        starts, size, found = self._starts, self._piece, []
        while start < stop:
            shard = bisect_right(starts, start) - 1
            piece, first = divmod(start - starts[shard], size)
            end = min(stop, starts[shard + 1], start - first + size)
            found.append((shard, piece, first, first + end - start))
            start = end
        return found

    def _array(self, shard: int, piece: int) -> np.ndarray:
        array = MAPS.get((self._key, shard, piece))
        return self._map(shard, piece) if array is None else array

    def _map(self, shard: int, piece: int) -> np.ndarray:
        part = self.range_of(shard, piece)
        dtype = _ENDS_DTYPE if piece == _ENDS else self.dtype
        count = (
            int(self.manifest.shards.counts[shard, 1]) if piece == _ENDS else (part.stop - part.start) // dtype.itemsize
        )
        try:
            with part.open() as file:
                return MAPS.put((self._key, shard, piece), map_file(file, dtype, count))
        except (OSError, ValueError) as error:
            where = self._folder.where(part.file.name)
            raise DataError(f"{where}: cannot be read ({error}); the manifest lists it with {count} entries") from None
