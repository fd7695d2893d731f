from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data import mixture

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1)), min_size=1, max_size=100).filter(any)


def named(values):
    return {f"source{number:03d}": value for number, value in enumerate(values)}


def check_bound(units, numbers):
    """|count - share * j| <= ceil(log2 n) / 2, in integers."""
    count = mixture.Shares(units).counts(numbers)
    assert np.array_equal(count.sum(-1), numbers)
    bound = Fraction((len(units) - 1).bit_length(), 2)
    for number, row in zip(numbers.tolist(), count.tolist(), strict=True):
        for unit, found in zip(units, row, strict=True):
            assert abs(found - Fraction(unit * number, mixture.UNITS)) <= bound
            assert unit or not found


@given(WEIGHTS, st.lists(st.integers(0, 2**61), min_size=1, max_size=20))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_share_stays_within_the_bound_at_any_prefix(weights, numbers):
    check_bound(list(mixture.quantise(named(weights)).values()), np.array(numbers))


@pytest.mark.parametrize("weights", [[1], [0.8, 0.2], [0.5, 0, 0.3, 0.2], [1e-6, 1, 0.3, 0.02, 0.7]])
def test_share_stays_within_the_bound_at_every_prefix(weights):
    check_bound(list(mixture.quantise(named(weights)).values()), np.arange(3000))


@given(WEIGHTS)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_shares_become_units_that_sum_to_the_whole(weights):
    units = mixture.quantise(named(weights))
    assert sum(units.values()) == mixture.UNITS
    for weight, unit in zip(weights, units.values(), strict=True):
        exact = Fraction(weight) / sum(map(Fraction, weights)) * mixture.UNITS
        assert abs(unit - exact) <= 1 and (unit > 0) == (weight > 0)


def test_many_tiny_shares_each_get_a_unit():
    units = mixture.quantise(named([1.0] + [1e-12] * 50))
    assert list(units.values()) == [mixture.UNITS - 50] + [1] * 50


def test_order_of_the_names_changes_nothing():
    one, other = mixture.quantise({"b": 1, "a": 3}), mixture.quantise({"a": 3, "b": 1})
    assert list(one.items()) == list(other.items())


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 1.0, "b": -0.5}])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        mixture.quantise(weights)


def test_every_window_of_a_source_is_read_once_and_in_turn():
    units = list(mixture.quantise(named([0.5, 1e-4, 0, 0.3, 0.1, 0.0999])).values())
    source, number = mixture.Shares(units).assign(np.arange(40_000))
    for index in range(len(units)):
        mine = number[source == index]
        assert np.array_equal(mine, np.arange(len(mine)))
        assert len(mine) == mixture.Shares(units).counts(40_000)[index]
    assert np.bincount(source, minlength=6).tolist()[1:3] == [4, 0]


@pytest.mark.parametrize("first", [0, 2**31 - 5, 2**50, 2**61])
def test_assignment_agrees_with_the_counts_of_its_prefix(first):
    units = list(mixture.quantise(named([0.7, 1e-4, 0.1, 0.2])).values())
    shares, examples = mixture.Shares(units), first + np.arange(200)
    source, number = shares.assign(examples)
    before, after = shares.counts(examples), shares.counts(examples + 1)
    assert np.array_equal(after - before, np.eye(4, dtype=int)[source])
    assert np.array_equal(np.take_along_axis(before, source[:, None], 1)[:, 0], number)


@given(WEIGHTS, st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_an_example_is_found_by_its_number_within_its_source(weights, data):
    shares = mixture.Shares(list(mixture.quantise(named(weights)).values()))
    example = data.draw(st.integers(0, 2**50))
    source, number = (int(part) for part in shares.assign(example))
    assert shares.example_of(source, number) == example


@given(st.lists(WEIGHTS, min_size=2, max_size=6), st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_changed_shares_keep_within_twice_the_bound_from_the_change_on(stages, data):
    sources = min(map(len, stages))
    stages = [weights[:sources] if any(weights[:sources]) else [1.0] * sources for weights in stages]
    units = [list(mixture.quantise(named(weights)).values()) for weights in stages]
    shares, bound = mixture.Shares(units[0]), (sources - 1).bit_length()
    for following in units[1:]:
        shares = shares.after(data.draw(st.integers(0, 2**40)), following)
        numbers = np.array(data.draw(st.lists(st.integers(0, 2**50), min_size=1, max_size=10)))
        count = shares.counts(numbers)
        assert np.array_equal(count.sum(-1), numbers)
        for number, row in zip(numbers.tolist(), count.tolist(), strict=True):
            for unit, found in zip(following, row, strict=True):
                assert abs(found - Fraction(unit * number, mixture.UNITS)) <= bound
                assert unit or not found


@given(WEIGHTS, st.integers(0, 10**6), st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_shares_that_stay_go_on_as_if_nothing_had_happened(weights, first, more):
    units = list(mixture.quantise(named(weights)).values())
    whole = mixture.Shares(units)
    parted = whole.after(first, units)
    assert np.array_equal(whole.counts(first) + parted.counts(more), whole.counts(first + more))


def test_a_share_below_an_example_per_segment_is_not_lost():
    units = list(mixture.quantise({"rare": 1e-3, "web": 1}).values())
    shares, read = mixture.Shares(units), 0
    for _ in range(1000):  # each would round a thousandth of 30 examples to none
        read += int(shares.counts(30)[0])
        shares = shares.after(30, units)
    assert read == 30
