"""The learning rate over tokens."""

import itertools
import math

import pytest

from maxlm.config import ScheduleConfig
from maxlm.train.schedule import learning_rate

PEAK, TOTAL, WARMUP = 0.5, 10_000, 1_000
SHAPES = ["constant", "cosine", "linear", "inverse_sqrt", "wsd"]


def rate(name: str, tokens: int, **changes: object) -> float:
    return learning_rate(ScheduleConfig(name=name, **{"warmup_tokens": WARMUP} | changes), PEAK, tokens, TOTAL)


@pytest.mark.parametrize("name", SHAPES)
def test_warm_up_is_linear_to_the_peak(name: str) -> None:
    for tokens in (1, 250, 500, 999, 1000):
        assert rate(name, tokens) == pytest.approx(PEAK * tokens / WARMUP, rel=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_warming_up_again_begins_where_it_is_told(name: str) -> None:
    found = [rate(name, tokens, initial_ratio=0.1) / PEAK for tokens in (0, 100, 500, WARMUP)]
    assert found == pytest.approx([0.1, 0.19, 0.55, 1.0], rel=1e-12)
    later = range(WARMUP, TOTAL + 1, 500)
    assert [rate(name, tokens, initial_ratio=0.1) for tokens in later] == [rate(name, tokens) for tokens in later]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
def test_without_warm_up_the_first_step_has_nearly_the_peak(name: str) -> None:
    assert rate(name, 1, warmup_tokens=0) == pytest.approx(PEAK, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "quarter", "middle", "end"),
    [
        # At 3,250, 5,500 and 10,000 tokens: a quarter, a half and all of the way after warm-up, in peaks.
        ("constant", 1.0, 1.0, 1.0),
        ("linear", 1 - 0.9 / 4, 1 - 0.9 / 2, 0.1),
        ("cosine", 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.1 + 0.9 / 2, 0.1),
        ("inverse_sqrt", math.sqrt(1000 / 3250), math.sqrt(1000 / 5500), math.sqrt(1000 / 10_000)),
        ("wsd", 1.0, 1.0, 0.1),
    ],
)
def test_shapes_pass_through_their_points(name: str, quarter: float, middle: float, end: float) -> None:
    found = [rate(name, tokens, final_ratio=0.1) / PEAK for tokens in (3250, 5500, 10_000)]
    assert found == pytest.approx([quarter, middle, end], rel=1e-12)


def test_stable_phase_ends_where_the_decay_begins() -> None:
    decay = {"decay_tokens": 4000, "final_ratio": 0.2}
    assert [rate("wsd", tokens, **decay) / PEAK for tokens in (1000, 5999, 6000)] == [1.0, 1.0, 1.0]
    assert rate("wsd", 8000, **decay) / PEAK == pytest.approx(0.6)
    assert rate("wsd", 10_000, **decay) / PEAK == pytest.approx(0.2)
    # A tenth of the run by default; a decay longer than the run begins after warm-up.
    assert rate("wsd", 9_000) == PEAK > rate("wsd", 9_001)
    assert rate("wsd", 1_000, decay_tokens=20_000) == PEAK > rate("wsd", 1_001, decay_tokens=20_000)


@pytest.mark.parametrize("name", SHAPES)
def test_rate_never_rises_after_warm_up(name: str) -> None:
    rates = [rate(name, tokens) for tokens in range(WARMUP, TOTAL + 1, 37)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    assert (rates[-1] < rates[0]) == (name != "constant")


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.3, 1.0])
def test_final_rate_is_reached_with_the_last_token_and_kept(name: str, final: float) -> None:
    assert rate(name, TOTAL, final_ratio=final) == pytest.approx(PEAK * final, abs=1e-15)
    assert rate(name, TOTAL + 5_000, final_ratio=final) == pytest.approx(PEAK * final, abs=1e-15)
    if final < 1:
        assert rate(name, TOTAL - 1, final_ratio=final) > PEAK * final


@pytest.mark.parametrize("name", SHAPES)
def test_rates_are_exact_beyond_32_bits(name: str) -> None:
    config = ScheduleConfig(name=name, warmup_tokens=2**40)
    assert learning_rate(config, PEAK, 2**39, 2**44) == PEAK / 2
    assert math.isfinite(learning_rate(config, PEAK, 2**44, 2**44))
