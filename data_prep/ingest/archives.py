"""Records of web archives (WARC 1.0 and 1.1), plain or compressed record by record with gzip or zstd.

fastwarc reads them; what is damaged is found here. fastwarc takes a file that ends in a record for one that ends behind
it, and stops for good at the first damaged byte; here a record is handed on when the next one begins where it should,
and reading goes on at the next record that begins behind the damage. Memory: one record at a time, and of a record that
is not wanted a few kB.
"""

import io
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

BUFFER_BYTES = 2**18
SCAN_BYTES = 2**20
# Enough of a compressed record to see how it begins.
BEGIN_BYTES = 2**12
GZIP, ZSTD, PLAIN = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"WARC/1."
VERSION_LINE = b"WARC/"
CUT = "the file ends within this record"
Taken = TypeVar("Taken")
Take = Callable[["WarcRecord", str], Taken]


@dataclass(frozen=True)
class Damage:
    """What is wrong with the record at `offset` of the file; reading goes on behind it.

    A record without a readable beginning behind it is part of the same damage.
    """

    offset: int
    problem: str


class Watched:
    """A stream that remembers its own failure, which fastwarc would report as damage of the file."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.error = stream, None
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        try:
            return self.stream.read(size)
        except Exception as error:
            self.error = error
            raise

    def close(self) -> None:
        pass


def read_records(stream: BinaryIO, take: Take) -> "Iterator[Taken | Damage]":
    """`take(record, place)` for every record, in order, or the damage in its place.

    `place` is the record's offset in bytes, with #n behind it for the n-th further record of one compressed member. The
    payload is there while `take` runs. Raises what `stream` raises.
    """
    watched = Watched(stream)
    start: int | None = 0
    while start is not None:
        damage = yield from _read_from(watched, start, take)
        if watched.error is not None:
            raise watched.error
        if damage is not None:
            yield damage
        start = None if damage is None else _next_start(stream, damage.offset + 1)


def _read_from(stream: Watched, start: int, take: Take) -> "Generator[Taken, None, Damage | None]":
    """Records up to the end or the first damage, which is returned."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    stream.seek(start)
    reader = decompress(stream, _kind(stream.stream, start))
    framed = reader is not stream
    records = ArchiveIterator(reader, WarcRecordType.any_type, parse_http=False, stream_detect=False)
    held: tuple[int, Any] | None = None
    number = 0
    while True:
        try:
            record = next(records, None)
        except OSError as error:
            # Without frames it may be the length of the record before that is wrong, which then ended elsewhere.
            offset = reader.frame_start_position() if framed else held[0] if held else start
            if held is not None and held[0] != offset:
                yield held[1]
            return Damage(offset, f"not a record of a web archive ({error})")
        if record is None:
            break
        offset = reader.frame_start_position() if framed else record.stream_pos
        number = number + 1 if held is not None and held[0] == offset else 0
        if held is not None:
            yield held[1]
        try:
            held = (offset, take(record, f"{offset}#{number}" if number else str(offset)))
            problem = _incomplete(record)
        except OSError as error:
            problem = str(error)
        if problem is None and framed and reader.frame_start_position() != offset:
            problem = "its Content-Length exceeds the record"
        if problem is not None:
            return Damage(offset, problem)
    if held is not None:
        yield held[1]
    if framed and reader.frame_start_position() != (held[0] if held else None):
        return Damage(reader.frame_start_position(), CUT)
    return None


def _incomplete(record: "WarcRecord") -> str | None:
    if "Content-Length" not in record.headers:
        return "no Content-Length, or the file ends before it"
    record.reader.consume()
    return CUT if record.reader.tell() < record.content_length else None


def _kind(stream: BinaryIO, offset: int) -> bytes:
    """How a compressed record begins at an offset, or `PLAIN`."""
    begin = stream.read(len(ZSTD))
    stream.seek(offset)
    return next((magic for magic in (GZIP, ZSTD) if begin.startswith(magic)), PLAIN)


def decompress(stream: Any, kind: bytes) -> Any:
    """A reader of what is in a compressed stream, which knows where its members begin; a plain stream as it is."""
    from fastwarc.stream_io import GzipReader, ZstdReader

    if kind == PLAIN:
        return stream
    return (GzipReader if kind == GZIP else ZstdReader)(stream, BUFFER_BYTES)


def _next_start(stream: BinaryIO, offset: int) -> int | None:
    """Where the first record at or behind an offset begins, if there is one."""
    stream.seek(0)
    kind = _kind(stream, 0)
    begins = re.compile(rb"(?<=\n)" + re.escape(PLAIN) if kind == PLAIN else re.escape(kind))
    # A byte more in front, for the line end, and as many behind as a record's begin has, for one across two blocks.
    offset -= 1
    while True:
        stream.seek(offset)
        block = stream.read(SCAN_BYTES)
        for match in begins.finditer(block):
            if match.start() and _is_start(stream, offset + match.start(), kind):
                return offset + match.start()
        if len(block) < SCAN_BYTES:
            return None
        offset += len(block) - len(PLAIN)


def _is_start(stream: BinaryIO, offset: int, kind: bytes) -> bool:
    stream.seek(offset)
    try:
        return decompress(io.BytesIO(stream.read(BEGIN_BYTES)), kind).read(len(VERSION_LINE)) == VERSION_LINE
    except OSError:
        return False
