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


def test_version_1_never_changes():
    key = order.derive_key(7, SOURCE, 3, 1, 2)
    assert order.VERSION == 1
    assert SOURCE == 13349284935976312395
    assert int(key) == 13891325718173193664
    assert order.permute(np.arange(8), 10, key).tolist() == [5, 1, 7, 6, 0, 3, 4, 2]
    assert order.permute(np.arange(8), 257, key).tolist() == [197, 103, 21, 192, 252, 251, 66, 48]
    assert order.permute(np.arange(3), 2**40 + 1, key).tolist() == [1028001359562, 1042021523297, 502414301839]
    assert order.window_order(np.arange(20, 40), 20, 6, 1, SOURCE).tolist() == [
        *(18, 19, 9, 6, 7, 11, 10, 8, 0, 4, 2, 3, 1, 5, 12, 15, 17, 13, 14, 16)
    ]
    assert order.windows_per_block(2048) == 8192


@pytest.mark.parametrize("windows, per_block", [(1, 4), (3, 100), (20, 6), (24, 6), (25, 6), (7, 1), (1000, 64)])
def test_every_epoch_reads_every_window_once(windows, per_block):
    for epoch in (0, 1, 5, 10**9):
        position = epoch * windows + np.arange(windows)
        window = order.window_order(position, windows, per_block, 3, SOURCE)
        assert np.array_equal(np.sort(window), np.arange(windows))
        assert np.array_equal(order.window_position(window, epoch, windows, per_block, 3, SOURCE), position)


def test_blocks_are_read_one_after_the_other_with_the_short_one_anywhere():
    windows, per_block = 20, 6
    places = set()
    for seed in range(40):
        blocks = order.window_order(np.arange(windows), windows, per_block, seed, SOURCE) // per_block
        changes = np.flatnonzero(np.diff(blocks)) + 1
        visited = [run[0] for run in np.split(blocks, changes)]
        assert sorted(visited) == [0, 1, 2, 3]
        places.add(visited.index(3))
    assert places == {0, 1, 2, 3}


def test_order_differs_by_epoch_seed_and_source():
    windows, per_block = 600, 64
    first = np.arange(windows)
    base = order.window_order(first, windows, per_block, 0, SOURCE)
    others = [
        order.window_order(first + windows, windows, per_block, 0, SOURCE),
        order.window_order(first, windows, per_block, 1, SOURCE),
        order.window_order(first, windows, per_block, 0, order.source_id("code")),
    ]
    for other in others:
        assert (other == base).sum() < 30
        blocks, other_blocks = base[::per_block] // per_block, other[::per_block] // per_block
        assert not np.array_equal(blocks, other_blocks)


def test_window_order_inverts_beyond_the_range_of_int32():
    windows, per_block = 2**45 + 12_345, 8192
    position = 3 * windows + np.arange(0, windows, windows // 3000)
    window = order.window_order(position, windows, per_block, 9, SOURCE)
    assert window.max() > 2**44 and len(np.unique(window)) == len(window)
    assert np.array_equal(order.window_position(window, 3, windows, per_block, 9, SOURCE), position)


def test_index_out_of_range_is_refused():
    for index, n in [(5, 5), (-1, 5), (0, 2**62 + 1)]:
        with pytest.raises(ValueError, match="index < n"):
            order.permute(index, n, KEY)
