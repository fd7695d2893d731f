"""Texts as compiled loops see them: the UTF-8 bytes of many documents in one array."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

# Words and lines of a batch are arrays several times the size of its text.
BATCH_BYTES = 2**22


@dataclass(frozen=True)
class Texts:
    """`data` uint8 [bytes], valid UTF-8; document i is data[bounds[i] : bounds[i + 1]], int64 [documents + 1]."""

    data: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @staticmethod
    def of(column: "pa.ChunkedArray | pa.Array") -> "Texts":
        """A column of large strings, without a copy where it is one chunk."""
        import pyarrow as pa

        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
        array = array.cast(pa.large_string())
        _, offsets, data = array.buffers()
        bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        return Texts(np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), bounds)

    @staticmethod
    def from_strings(texts: list[str]) -> "Texts":
        encoded = [text.encode() for text in texts]
        bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return Texts(np.frombuffer(b"".join(encoded), np.uint8), bounds)

    def batches(self) -> Iterator[tuple[int, "Texts"]]:
        """Consecutive documents of about `BATCH_BYTES` together, each time with the number of the first."""
        if len(self):
            groups = (self.bounds[:-1] - self.bounds[0]) // BATCH_BYTES
            edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(self)]
            for start, stop in zip(edges, edges[1:], strict=False):
                yield start, Texts(self.data, self.bounds[start : stop + 1])

    def strings(self) -> list[str]:
        data = self.data.tobytes() if len(self.data) else b""
        return [data[a:b].decode() for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True)]


@numba.njit(cache=True, inline="always")
def decode(data, position):
    """The code point at a byte position of valid UTF-8, and the position behind it."""
    first = data[position]
    if first < 0x80:
        return np.uint32(first), position + 1
    if first < 0xE0:
        return np.uint32((first & 0x1F) << 6 | data[position + 1] & 0x3F), position + 2
    if first < 0xF0:
        return (
            np.uint32((first & 0x0F) << 12 | (data[position + 1] & 0x3F) << 6 | data[position + 2] & 0x3F),
            position + 3,
        )
    high = (first & 0x07) << 18 | (data[position + 1] & 0x3F) << 12
    return np.uint32(high | (data[position + 2] & 0x3F) << 6 | data[position + 3] & 0x3F), position + 4
