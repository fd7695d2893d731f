import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data import order

KEY = order.derive_key(1, 2, 3)
SOURCE = order.source_id("web")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 100, 255, 256, 257, 65_537, 262_145, 1_048_577])
def test_permutation_is_a_bijection(n):
    image = order.permute(np.arange(n), n, KEY)
    assert np.array_equal(np.bincount(image, minlength=n), np.ones(n, int))
    assert np.array_equal(order.unpermute(image, n, KEY), np.arange(n))


@pytest.mark.parametrize(
    "n", [2**31 + 11, 2**40 + 1, (2**31 - 1) ** 2 - 1, (2**31 - 1) ** 2, (2**31 - 1) ** 2 + 1, 2**62]
)
def test_permutation_is_a_bijection_of_large_ranges(n):
    step = n // 10_000
    index = np.unique(np.concatenate([np.arange(5000), np.arange(10_000) * step, n - 1 - np.arange(5000)]))
    image = order.permute(index, n, KEY)
    assert image.min() >= 0 and image.max() < n
    assert len(np.unique(image)) == len(index)
    assert np.array_equal(order.unpermute(image, n, KEY), index)
    assert np.array_equal(order.permute(order.unpermute(index, n, KEY), n, KEY), index)


@given(st.integers(1, 2**31), st.integers(-2, 2))
@settings(derandomize=True, deadline=None)
def test_side_of_the_network_is_the_smallest_that_holds_the_range(root, offset):
    n = min(max(1, root * root + offset), order.MAX_SIZE)
    assert order._side(np.array([n], np.uint64)) == math.isqrt(n - 1) + 1


def test_every_element_can_belong_to_another_permutation():
    index, n = np.array([[0], [3]]), np.array([7, 300, 2**40])
    key = order.derive_key(np.array([[[4]], [[5]]]))
    together = order.permute(index, n, key)
    alone = [[[order.permute(i, m, k) for m in n] for i in (0, 3)] for k in (order.derive_key(4), order.derive_key(5))]
    assert together.shape == (2, 2, 3)
    assert np.array_equal(together, np.array(alone))


@pytest.mark.parametrize("n", [4096, 10_007, 1_048_577])
def test_permutation_looks_random(n):
    image = order.permute(np.arange(n), n, KEY)
    cells = 16
    row, column = image[:-1] * cells // n, image[1:] * cells // n
    observed = np.bincount(row * cells + column, minlength=cells**2)
    expected = (n - 1) / cells**2
    chi_square = ((observed - expected) ** 2 / expected).sum()  # mean 255, standard deviation 22.6
    assert 150 < chi_square < 360
    assert (np.abs(np.diff(image)) == 1).sum() < 12  # 2 are expected
    assert (image == np.arange(n)).sum() < 10  # 1 is expected
    assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < 4 / np.sqrt(n)


def test_keys_give_unrelated_permutations():
    n = 1000
    image = order.permute(np.arange(n), n, order.derive_key(0, np.arange(200))[:, None])
    agree = (image[1:] == image[:-1]).sum(1)
    assert agree.max() < 10 and 0.7 < agree.mean() < 1.3
    assert len(np.unique(order.derive_key(np.arange(100)[:, None], np.arange(100)))) == 100**2


def source_order(sizes, seed=0, source=SOURCE, shuffled=True):
    return order.SourceOrder(sizes, seed, source, shuffled)


def read(one, position):
    """(block, window) of positions of one source, as one number per window in written order."""
    block, window = order.window_order([one], np.zeros_like(position), position)
    return np.concatenate([[0], np.cumsum(one.sizes)])[block] + window


def test_version_2_never_changes():
    key = order.derive_key(7, SOURCE, 3, 1, 2)
    assert order.VERSION == 2 and order.BLOCK_TOKENS == 2**24
    assert SOURCE == 13349284935976312395
    assert int(key) == 16845355384159371167
    assert order.permute(np.arange(8), 10, key).tolist() == [0, 1, 7, 9, 6, 2, 5, 4]
    assert order.permute(np.arange(3), 2**40 + 1, key).tolist() == [25037221001, 347476596052, 225633552221]
    assert read(source_order([6, 6, 6, 2], seed=1), np.arange(20, 40)).tolist() == [
        19,
        18,
        8,
        6,
        10,
        11,
        7,
        9,
        13,
        14,
        15,
        17,
        16,
        12,
        5,
        4,
        2,
        1,
        3,
        0,
    ]


@pytest.mark.parametrize("sizes", [[1], [3], [6, 6, 6, 2], [6, 6, 6, 6], [1] * 7, [64] * 15 + [40], [5, 0, 9, 0, 1]])
@pytest.mark.parametrize("shuffled", [True, False])
def test_every_epoch_reads_every_window_once(sizes, shuffled):
    one = source_order(sizes, 3, shuffled=shuffled)
    for epoch in (0, 1, 5, 10**9):
        position = epoch * sum(sizes) + np.arange(sum(sizes))
        block, window = order.window_order([one], np.zeros_like(position), position)
        found = list(zip(block.tolist(), window.tolist(), strict=True))
        assert sorted(found) == [(b, w) for b, size in enumerate(sizes) for w in range(size)]
        assert [one.position(epoch, *place) for place in found] == position.tolist()
        assert shuffled or found == sorted(found)


def test_blocks_are_read_one_after_the_other_with_the_short_one_anywhere():
    places = set()
    for seed in range(40):
        blocks, _ = order.window_order([source_order([6, 6, 6, 2], seed)], np.zeros(20, int), np.arange(20))
        changes = np.flatnonzero(np.diff(blocks)) + 1
        visited = [run[0] for run in np.split(blocks, changes)]
        assert sorted(visited) == [0, 1, 2, 3]
        places.add(visited.index(3))
    assert places == {0, 1, 2, 3}


def test_order_differs_by_epoch_seed_and_source():
    sizes, first = [64] * 9 + [24], np.arange(600)
    base = read(source_order(sizes), first)
    others = [
        read(source_order(sizes), first + 600),
        read(source_order(sizes, seed=1), first),
        read(source_order(sizes, source=order.source_id("code")), first),
    ]
    for other in others:
        assert (other == base).sum() < 30
        assert not np.array_equal(base[::64] // 64, other[::64] // 64)


def test_sources_are_ordered_together_as_alone():
    orders = [source_order([6, 6, 2]), source_order([9], source=5), source_order([3, 3], source=6, shuffled=False)]
    source, position = np.arange(300) % 3, np.arange(300) * 7
    together = order.window_order(orders, source, position)
    for number, one in enumerate(orders):
        mask = source == number
        alone = order.window_order([one], np.zeros(100, int), position[mask])
        assert all(np.array_equal(part[mask], other) for part, other in zip(together, alone, strict=True))


def test_a_source_of_a_trillion_tokens_inverts_anywhere():
    one = source_order(np.full(60_000, 8192))
    position = 3 * one.windows + np.arange(0, one.windows, one.windows // 500)
    block, window = order.window_order([one], np.zeros_like(position), position)
    assert len(set(zip(block.tolist(), window.tolist(), strict=True))) == len(position)
    assert [one.position(3, b, w) for b, w in zip(block.tolist(), window.tolist(), strict=True)] == position.tolist()


@pytest.mark.parametrize("shuffled", [True, False])
def test_another_length_goes_on_at_the_next_block_of_the_same_epoch(shuffled):
    short, long = source_order([6, 6, 6, 2], shuffled=shuffled), source_order([3, 3, 3, 1], shuffled=shuffled)
    for position in range(20, 41):
        started = {
            int(b) for b in order.window_order([short], np.zeros(20, int), np.arange(20, 40))[0][: position - 20]
        }
        moved, abandoned = short.next_block(position, long)
        rest = {int(b) for b in order.window_order([long], np.zeros(10, int), np.arange(10, 20))[0][moved - 10 :]}
        assert 10 <= moved <= 20 and started | rest == {0, 1, 2, 3} and not started & rest
        whole = sum(int(short.sizes[block]) for block in started)
        assert abandoned == whole - (position - 20)


def test_index_out_of_range_is_refused():
    for index, n in [(5, 5), (-1, 5), (0, 2**62 + 1)]:
        with pytest.raises(ValueError, match="index < n"):
            order.permute(index, n, KEY)
