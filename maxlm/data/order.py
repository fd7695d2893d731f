"""The order in which a source's windows are read: a pure function of (seed, source, position).

A source is cut into blocks of a fixed range of tokens, the same whatever the length of a window; packing says how many
windows each block has. Blocks come in a seeded order, and so do the windows inside each block; both orders are new in
every epoch. Reading stays within one block for a while, so the pages of a shard file are read together, yet no list of
windows is ever stored: what is held is some numbers per block of 2^24 tokens, and position -> window is closed form
from there, in both directions.

Everything here is vectorised over int64 arrays and follows numpy's broadcasting. The order is part of what a
checkpoint means: whatever changes a single value raises `VERSION`.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

VERSION = 2
BLOCK_TOKENS = 2**24
MAX_SIZE = 2**62  # sizes of permutations; the sums inside stay below 2^64

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: separates the inputs of the mixer
_MULTIPLIERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # those of splitmix64
_LEVEL_BLOCKS, _LEVEL_WINDOWS = 0, 1

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


def source_id(name: str) -> int:
    """The number that stands for a source in keys: from its name, so other sources do not change its order."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


@np.errstate(over="ignore")
def derive_key(*parts: ArrayLike) -> Keys:
    """A 64-bit key from non-negative integers below 2^64; parts may be arrays, which broadcast."""
    key = _mix(np.uint64(VERSION) + _GOLDEN)
    for part in parts:
        key = _mix((key ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return key


def permute(index: ArrayLike, n: ArrayLike, key: ArrayLike) -> Ints:
    """The place of `index` in the permutation of 0..n-1 that `key` names, for 0 <= index < n <= 2^62.

    Index, n and key broadcast, so every element may belong to another permutation.
    """
    return _walk(_encrypt, index, n, key)


def unpermute(index: ArrayLike, n: ArrayLike, key: ArrayLike) -> Ints:
    """The inverse of `permute`: unpermute(permute(index, n, key), n, key) == index."""
    return _walk(_decrypt, index, n, key)


class SourceOrder:
    """The endless sequence of one source's windows, epoch after epoch.

    Args:
        sizes: windows of each block, int64 [blocks]; not all 0.
        seed: of the run.
        source: `source_id` of the source.
        shuffled: False reads the windows as they were written, in every epoch.
    """

    def __init__(self, sizes: ArrayLike, seed: int, source: int, shuffled: bool = True):
        self.sizes = np.asarray(sizes, np.int64)
        self.seed, self.source, self.shuffled = seed, source, shuffled
        self._written = np.concatenate([[0], np.cumsum(self.sizes)])
        self.windows = int(self._written[-1])  # of an epoch
        self._epoch = lru_cache(maxsize=4)(self._epoch_table)

    def __getstate__(self):
        return {name: getattr(self, name) for name in ("sizes", "seed", "source", "shuffled")}

    def __setstate__(self, state):
        self.__init__(**state)

    def place(self, position: Ints) -> tuple[Ints, Ints, Ints]:
        """Epoch, block, and how many windows of the block were read before, of each position."""
        epoch, rest = np.divmod(position, self.windows)
        if self._in_turn:
            block = self._written.searchsorted(rest, "right") - 1
            return epoch, block, rest - self._written[block]
        block, offset = np.empty_like(rest), np.empty_like(rest)
        for number in np.unique(epoch).tolist():  # a source of several blocks has few epochs in a batch
            mask = epoch == number
            blocks, starts = self._epoch(number)
            turn = starts.searchsorted(rest[mask], "right") - 1
            block[mask], offset[mask] = blocks[turn], rest[mask] - starts[turn]
        return epoch, block, offset

    def position(self, epoch: int, block: int, window: ArrayLike) -> Ints:
        """The positions at which an epoch reads windows of a block, int64 of their shape."""
        offset = np.asarray(window, np.int64)
        if self.shuffled:
            key = derive_key(self.seed, self.source, epoch, _LEVEL_WINDOWS, block)
            offset = unpermute(offset, self.sizes[block], key)
        return epoch * self.windows + self._start(epoch, self._turn(epoch, block)) + offset

    def next_block(self, position: int, other: "SourceOrder") -> tuple[int, int]:
        """Where windows of another length go on: at the next block of the same epoch that nothing was read of.

        Returns: the position in `other`, the same source in windows of the other length, and the number of this
        order's windows that neither reads.
        """
        epoch, block, offset = (int(part[0]) for part in self.place(np.array([position], np.int64)))
        turn = self._turn(epoch, block) + (offset > 0)
        return epoch * other.windows + other._start(epoch, turn), int(self.sizes[block] - offset) if offset else 0

    @property
    def _in_turn(self) -> bool:
        return not self.shuffled or len(self.sizes) == 1

    def _turn(self, epoch: int, block: int) -> int:
        """How many blocks an epoch reads before a block."""
        return block if self._in_turn else int(unpermute(block, len(self.sizes), self._block_key(epoch)))

    def _start(self, epoch: int, turn: int) -> int:
        """How many windows an epoch has read before its block number `turn`."""
        return int(self._written[turn] if self._in_turn else self._epoch(epoch)[1][turn])

    def _epoch_table(self, epoch: int) -> tuple[Ints, Ints]:
        """Blocks in the order of an epoch, and how many windows were read before each, and after the last."""
        blocks = permute(np.arange(len(self.sizes)), len(self.sizes), self._block_key(epoch))
        return blocks, np.concatenate([[0], np.cumsum(self.sizes[blocks])])

    def _block_key(self, epoch: int) -> Keys:
        return derive_key(self.seed, self.source, epoch, _LEVEL_BLOCKS)


def window_order(orders: Sequence[SourceOrder], source: ArrayLike, position: ArrayLike) -> tuple[Ints, Ints]:
    """The windows that are read at positions of sources, all of one run.

    Args:
        orders: of the sources.
        source: index into orders, int64 of any shape.
        position: how many windows of the source were read before, of the same shape.
    Returns: (block, window of the block), int64 of the same shape; each epoch has each window once.
    """
    source, position = np.asarray(source, np.int64), np.asarray(position, np.int64)
    epoch, block, offset, size = (np.zeros_like(position) for _ in range(4))
    for number in np.unique(source).tolist():
        mask = source == number
        epoch[mask], block[mask], offset[mask] = orders[number].place(position[mask])
        size[mask] = orders[number].sizes[block[mask]]
    ids = np.array([order.source for order in orders], np.uint64)[source]
    # One call for all sources: a permutation of a few numbers costs as much as one of a thousand.
    shuffled = permute(offset, size, derive_key(orders[0].seed, ids, epoch, _LEVEL_WINDOWS, block))
    return block, np.where(np.array([order.shuffled for order in orders])[source], shuffled, offset)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit words in which every input bit changes half of the output bits (as in splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[0]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[1]
    return x ^ (x >> np.uint64(31))


def _walk(cipher: Callable[[Keys, Keys, Keys], Keys], index: ArrayLike, n: ArrayLike, key: ArrayLike) -> Ints:
    """Apply a bijection of 0..side^2-1 until the result is below n: that makes it a bijection of 0..n-1."""
    index, n, key = np.broadcast_arrays(*(np.asarray(value).astype(np.uint64) for value in (index, n, key)))
    shape = index.shape
    index, n, key = index.ravel(), n.ravel(), key.ravel()
    if index.size and (n.max() > MAX_SIZE or (index >= n).any()):
        raise ValueError("permutations need 0 <= index < n <= 2^62")
    side = _side(n)
    x = cipher(index, side, key)
    while (outside := np.flatnonzero(x >= n)).size:
        x[outside] = cipher(x[outside], side[outside], key[outside])
    return x.astype(np.int64).reshape(shape)


def _side(n: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The smallest side with side^2 >= n; for n <= 2^62 the float root is exact or, just above a square, one less."""
    side = np.ceil(np.sqrt(n.astype(np.float64))).astype(np.uint64)
    return side + (side * side < n)


@np.errstate(over="ignore")
def _encrypt(x: NDArray[np.uint64], side: NDArray[np.uint64], key: Keys) -> NDArray[np.uint64]:
    """A Feistel network over pairs of numbers below `side`.

    With an odd side it reaches permutations of one parity alone, which nothing but a range of five or six shows.
    """
    left, right = np.divmod(x, side)
    for round_key in _round_keys(key):
        left, right = right, _modulo(left + _round(right, side, round_key), side)
    return left * side + right


@np.errstate(over="ignore")
def _decrypt(x: NDArray[np.uint64], side: NDArray[np.uint64], key: Keys) -> NDArray[np.uint64]:
    left, right = np.divmod(x, side)
    for round_key in _round_keys(key)[::-1]:
        left, right = _modulo(right + side - _round(left, side, round_key), side), left
    return left * side + right


def _round_keys(key: Keys) -> Keys:
    return _mix(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None] * _GOLDEN)


def _round(half: NDArray[np.uint64], side: NDArray[np.uint64], round_key: Keys) -> NDArray[np.uint64]:
    """A number below `side` (itself below 2^32): the high bits of a mixed word, scaled instead of divided."""
    word = (half + round_key) * _MULTIPLIERS[0]
    word = (word ^ (word >> np.uint64(32))) * _MULTIPLIERS[1]
    return ((word >> np.uint64(32)) * side) >> np.uint64(32)


def _modulo(x: NDArray[np.uint64], side: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """x mod side for x below 2 side: where x is the smaller, x - side wraps to a huge number."""
    return np.minimum(x, x - side)
