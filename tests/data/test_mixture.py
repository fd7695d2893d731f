import json
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
    count = mixture.counts(numbers, units)
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
    assert mixture.start({"b": 1, "a": 3}, 4, 8) == mixture.start({"a": 3, "b": 1}, 4, 8)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 1.0, "b": -0.5}])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        mixture.quantise(weights)


def test_every_window_of_a_source_is_read_once_and_in_turn():
    units = list(mixture.quantise(named([0.5, 1e-4, 0, 0.3, 0.1, 0.0999])).values())
    source, number = mixture.assign(np.arange(40_000), units)
    for index in range(len(units)):
        mine = number[source == index]
        assert np.array_equal(mine, np.arange(len(mine)))
        assert len(mine) == mixture.counts(40_000, units)[index]
    assert np.bincount(source, minlength=6).tolist()[1:3] == [4, 0]


@pytest.mark.parametrize("first", [0, 2**31 - 5, 2**50, 2**61])
def test_assignment_agrees_with_the_counts_of_its_prefix(first):
    units = list(mixture.quantise(named([0.7, 1e-4, 0.1, 0.2])).values())
    examples = first + np.arange(200)
    source, number = mixture.assign(examples, units)
    before, after = mixture.counts(examples, units), mixture.counts(examples + 1, units)
    assert np.array_equal(after - before, np.eye(4, dtype=int)[source])
    assert np.array_equal(np.take_along_axis(before, source[:, None], 1)[:, 0], number)


def edited_schedule():
    """Start; at step 10 another mixture with a new source; at step 20 another batch size; a rewind to step 15."""
    schedule = mixture.start({"web": 0.7, "code": 0.3}, 8, 16)
    schedule = mixture.append(schedule, 10, 80, weights={"web": 0.2, "math": 0.8})
    schedule = mixture.append(schedule, 20, 160, batch_size=4)
    return mixture.append(schedule, 15, 200, weights={"web": 0.5, "code": 0.25, "math": 0.25})


def test_edits_and_rewinds_neither_repeat_nor_lose_a_window():
    names = ["web", "code", "math"]
    source, number = mixture.locate(edited_schedule(), np.arange(600), names)
    for index in range(3):
        assert np.array_equal(number[source == index], np.arange((source == index).sum()))
    shares = np.bincount(source[200:], minlength=3)
    assert np.abs(shares - [200, 100, 100]).max() <= 1
    assert (source[80:200] != 1).all()


def test_append_changes_no_example_that_was_read():
    schedule, names = mixture.start({"web": 0.7, "code": 0.3}, 8, 16), ["web", "code"]
    before = mixture.locate(schedule, np.arange(83), names)
    after = mixture.locate(mixture.append(schedule, 10, 83, weights={"code": 1}), np.arange(83), names)
    assert np.array_equal(before, after)


def test_an_edit_without_a_change_changes_no_example():
    schedule = mixture.start({"web": 0.7, "code": 0.3}, 10, 16)
    edited = mixture.append(schedule, 1, 10)
    examples = np.arange(50)  # ten examples are a whole turn of these weights
    assert np.array_equal(*(mixture.locate(s, examples, ["web", "code"]) for s in (schedule, edited)))


def test_a_step_belongs_to_the_latest_segment_that_starts_before_it():
    schedule = edited_schedule()
    assert mixture.examples_of_step(schedule, 9) == (72, 8)
    assert mixture.examples_of_step(schedule, 14) == (112, 8)
    assert mixture.examples_of_step(schedule, 15) == (200, 4)
    assert mixture.examples_of_step(schedule, 25) == (240, 4)


def test_the_last_of_several_segments_at_one_example_counts():
    schedule = mixture.start({"web": 1, "code": 0}, 4, 16)
    schedule = mixture.append(schedule, 5, 20, weights={"code": 1})
    schedule = mixture.append(schedule, 5, 20, weights={"web": 1, "code": 1}, batch_size=2)
    source, number = mixture.locate(schedule, np.arange(18, 24), ["web", "code"])
    assert np.bincount(source[2:]).tolist() == [2, 2]
    assert number[source == 0].tolist() == [18, 19, 20, 21] and number[source == 1].tolist() == [0, 1]
    assert mixture.examples_of_step(schedule, 6) == (22, 2)


def test_a_segment_cannot_take_back_examples():
    with pytest.raises(ValueError, match="cannot follow"):
        mixture.append(edited_schedule(), 15, 199)


def test_schedule_survives_json_in_any_order_of_keys():
    schedule = edited_schedule()
    values = json.loads(json.dumps(mixture.to_json(schedule)))
    turned = [{key: value for key, value in reversed(segment.items())} for segment in values]
    for segment in turned:
        segment["weights"] = dict(reversed(segment["weights"].items()))
    assert mixture.from_json(values) == mixture.from_json(turned) == schedule
    names, examples = ["math", "web", "code"], np.arange(300)
    expected = mixture.locate(schedule, examples, names)
    assert np.array_equal(mixture.locate(mixture.from_json(turned), examples, names), expected)


def test_sources_are_counted_in_the_order_of_the_names_given():
    schedule = mixture.start({"web": 0.5, "code": 0.5}, 4, 16)
    one, other = (mixture.locate(schedule, np.arange(20), names)[0] for names in (["web", "code"], ["code", "web"]))
    assert np.array_equal(one, 1 - other)
