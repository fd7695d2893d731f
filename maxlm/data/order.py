"""The order in which a source's windows are read: a pure function of (seed, source, position).

A source is cut into blocks of a fixed range of tokens. Blocks come in a seeded order, and so do the windows
inside each block; both orders are new in every epoch. Reading stays within one block for a while, so the pages
of a shard file are read together, yet no list of windows is ever stored: position -> window is closed form, in
both directions, for any number of windows.

Everything here is vectorised over int64 arrays and follows numpy's broadcasting. The order is part of what a
checkpoint means: whatever changes a single value raises `VERSION`.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

VERSION = 1
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


def num_windows(tokens: int, seq_len: int) -> int:
    """Windows of a source: each token but the last is the input, and each but the first the target, of one."""
    return -(-(tokens - 1) // seq_len)


def windows_per_block(seq_len: int) -> int:
    """Windows of a whole block; the last block of a source may hold fewer."""
    return max(1, BLOCK_TOKENS // seq_len)


def window_order(position: ArrayLike, windows: ArrayLike, per_block: int, seed: int, source: ArrayLike) -> Ints:
    """The window that is read at a position of the endless sequence of a source's epochs.

    Args:
        position: how many windows of the source were read before; epoch = position // windows.
        windows: number of windows of the source.
        per_block: windows of a whole block.
        seed: of the run.
        source: `source_id` of the source.
    Returns: window numbers in 0..windows-1; each epoch has each of them once.
    """
    position, windows = np.asarray(position, np.int64), np.asarray(windows, np.int64)
    epoch, position = np.divmod(position, windows)
    blocks, short, last_place, block_key = _blocks(windows, per_block, seed, source, epoch)
    # Behind the short block, count as if it were whole.
    place, offset = np.divmod(position + (position >= last_place * per_block + short) * (per_block - short), per_block)
    block = permute(place, blocks, block_key)
    size = np.where(block == blocks - 1, short, per_block)
    return block * per_block + permute(offset, size, derive_key(seed, source, epoch, _LEVEL_WINDOWS, block))


def window_position(
    window: ArrayLike, epoch: ArrayLike, windows: ArrayLike, per_block: int, seed: int, source: ArrayLike
) -> Ints:
    """The inverse of `window_order`: the position at which an epoch reads a window."""
    window, epoch, windows = (np.asarray(value, np.int64) for value in (window, epoch, windows))
    blocks, short, last_place, block_key = _blocks(windows, per_block, seed, source, epoch)
    block, offset = np.divmod(window, per_block)
    size = np.where(block == blocks - 1, short, per_block)
    offset = unpermute(offset, size, derive_key(seed, source, epoch, _LEVEL_WINDOWS, block))
    place = unpermute(block, blocks, block_key)
    return epoch * windows + place * per_block + offset - (place > last_place) * (per_block - short)


def _blocks(windows: Ints, per_block: int, seed: int, source: ArrayLike, epoch: Ints) -> tuple[Ints, Ints, Ints, Keys]:
    """Number of blocks, windows in the last one, the place where an epoch reads that one, key of the order."""
    blocks = -(-windows // per_block)
    key = derive_key(seed, source, epoch, _LEVEL_BLOCKS)
    return blocks, windows - (blocks - 1) * per_block, unpermute(blocks - 1, blocks, key), key


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
