"""Which steps count, on sequences of losses and gradient norms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config import FaultsConfig
from maxlm.train.faults import Window, acceptable, empty_window, record

WINDOW = 8
CONFIG = FaultsConfig(window=WINDOW, deviations=4.0)
CALM = [2.0 + 0.1 * (number % 5) for number in range(100)]


@partial(jax.jit, static_argnums=3)
def advance(window: Window, loss: float, grad_norm: float, config: FaultsConfig) -> tuple[Window, jax.Array]:
    accept = acceptable(window, loss, grad_norm, config)
    return record(window, loss, grad_norm, accept, config), accept


def run(losses: list[float], grad_norms: list[float] | None = None, config: FaultsConfig = CONFIG):
    """Windows after each step, and which steps counted."""
    window, windows, accepted = empty_window(config), [], []
    for loss, grad_norm in zip(losses, grad_norms or [1.0] * len(losses), strict=True):
        window, accept = advance(window, jnp.float32(loss), jnp.float32(grad_norm), config)
        windows.append(window)
        accepted.append(bool(accept))
    return windows, accepted


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("before", [0, 1, WINDOW, 3 * WINDOW])
def test_value_that_is_not_finite_is_refused_from_the_first_step(bad: float, before: int) -> None:
    ones = [1.0] * (before + 1)
    assert run(CALM[:before] + [bad], ones)[1] == [True] * before + [False]
    assert run(CALM[: before + 1], ones[:before] + [bad])[1] == [True] * before + [False]


@pytest.mark.parametrize("spike_in", ["loss", "grad_norm"])
def test_spike_is_refused_only_once_the_window_is_full(spike_in: str) -> None:
    for before in range(2 * WINDOW):
        series = {"loss": CALM[: before + 1], "grad_norm": CALM[: before + 1]}
        series[spike_in] = series[spike_in][:before] + [50.0]
        _, accepted = run(series["loss"], series["grad_norm"])
        assert accepted == [True] * before + [before < WINDOW]


def test_spike_is_measured_in_deviations_of_the_window() -> None:
    window = np.array(CALM[:WINDOW])
    limit = window.mean() + CONFIG.deviations * window.std()
    assert run([*window, limit - 1e-3])[1][-1] and not run([*window, limit + 1e-3])[1][-1]
    assert run([*window, -50.0])[1][-1]  # a fall is no fault


def test_skipped_values_do_not_enter_the_window() -> None:
    losses = CALM[:WINDOW] + [np.nan, 50.0, 60.0, np.inf]
    windows, accepted = run(losses)
    assert accepted == [True] * WINDOW + [False] * 4
    for skipped in windows[WINDOW:]:
        for name in ("losses", "grad_norms", "accepted"):
            np.testing.assert_array_equal(getattr(skipped, name), getattr(windows[WINDOW - 1], name))


def test_skips_in_a_row_are_counted_and_reset() -> None:
    bad = np.nan
    windows, _ = run([1.0, bad, bad, 1.0, 1.0, bad, 1.0])
    assert [int(window.skipped_in_row) for window in windows] == [0, 1, 2, 0, 0, 1, 0]


def test_ring_holds_the_last_accepted_steps_however_long_the_run() -> None:
    random = np.random.default_rng(0)
    losses = (2 + 0.1 * random.random(6 * WINDOW)).astype(np.float32).tolist()
    losses[3 * WINDOW + 2] = losses[4 * WINDOW] = np.nan
    windows, _ = run(losses, [2 * loss for loss in losses])
    for step, window in enumerate(windows):
        last = [loss for loss in losses[: step + 1] if np.isfinite(loss)][-WINDOW:]
        if len(last) == WINDOW:
            np.testing.assert_array_equal(np.sort(window.losses), np.sort(np.float32(last)))
            np.testing.assert_array_equal(window.grad_norms, 2 * window.losses)
            assert int(window.accepted) >= WINDOW
    assert int(windows[-1].accepted) < 2 * WINDOW


def test_noise_on_constant_losses_is_no_spike() -> None:
    constant = [2.0] * (2 * WINDOW)
    assert run([*constant, 2.0001, 2.001, 2.01])[1] == [True] * (2 * WINDOW + 3)
    assert not run([*constant, 2.2])[1][-1]
