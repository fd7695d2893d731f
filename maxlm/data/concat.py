"""Concat packing: windows are spans of the flat stream, so nothing is cut away and no slot is empty but at the ends.

Window j of block b reads the tokens from b B + j S on: S inputs, and one more that is only a target. The last window
of a block may be short (not where S divides B = 2^24), and so is the last one of a source.
"""

import numpy as np

from maxlm.data import order
from maxlm.data.packing import Packed, Piece, Text
from maxlm.data.shards import Shards

# Tokens in which `packed` looks at documents: counting all of a large source would read all of its indexes.
SAMPLE = 2**28


def sizes(tokens: int, seq_len: int) -> np.ndarray:
    """Windows of each block of a source, int64; every token but the last is an input of one, and but the first a
    target."""
    inputs = np.diff(np.append(np.arange(0, tokens - 1, order.BLOCK_TOKENS), tokens - 1))
    return -(-inputs // seq_len)


def read_window(shards: Shards, seq_len: int, block: int, window: int) -> Text:
    """A window of a block; its tokens are a view of the mapped file where one shard holds them all."""
    ((first, length, _),) = pieces(shards, seq_len, block, window)
    return Text(shards.read(first, first + length + 1), shards.ends(first, first + length) - first)


def pieces(shards: Shards, seq_len: int, block: int, window: int) -> list[Piece]:
    """What of the source a window's inputs are: one span of it."""
    end = min((block + 1) * order.BLOCK_TOKENS, len(shards) - 1)
    first = block * order.BLOCK_TOKENS + window * seq_len
    return [Piece(first, min(seq_len, end - first), 0)]


def windows_of(shards: Shards, seq_len: int, first: int, length: int) -> list[tuple[int, int]]:
    """The inverse of `pieces`: (block, window) of every window with any of `length` tokens from `first` on among its
    inputs, in written order."""
    stop = min(first + length, len(shards) - 1)  # the last token of a source is a target alone
    found = []
    for block in range(first // order.BLOCK_TOKENS, -(-stop // order.BLOCK_TOKENS)):
        start = block * order.BLOCK_TOKENS
        low, high = max(first - start, 0), min(stop - start, order.BLOCK_TOKENS)
        found += [(block, window) for window in range(low // seq_len, -(-high // seq_len))]
    return found


def packed(shards: Shards, seq_len: int) -> Packed:
    """How well documents fit into windows: a document is cut where a window ends inside it.

    Documents are those that end within the first `SAMPLE` tokens.
    """
    end = np.unique(shards.ends(0, min(SAMPLE, len(shards))))
    start = np.concatenate([[0], end[:-1]])
    # Windows begin with the blocks, and anew every seq_len tokens in them; an input is any token but a document's last.
    first, last = (np.divmod(place, order.BLOCK_TOKENS) for place in (start, np.maximum(start, end - 2)))
    cut = (first[0] != last[0]) | (first[1] // seq_len != last[1] // seq_len)
    slots = int(sizes(len(shards), seq_len).sum()) * seq_len
    return Packed((len(shards) - 1) / slots, float(cut.mean()) if len(end) else 0.0, len(end), 0)
