"""Steps that must not count: values that are not finite, and spikes against a window of accepted steps.

The test runs inside the jitted step, on the loss and the gradient norm before clipping, so a bad step changes
neither parameters nor moments and costs no read by the host. Skipped steps do not enter the window: one bad value
cannot raise the bar for the next.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.config import FaultsConfig

# A window of nearly equal values would call noise a spike: deviations count as at least this share of the mean.
LEAST_DEVIATION = 0.01


class Window(NamedTuple):
    """Losses and gradient norms of the last accepted steps, as rings."""

    losses: jax.Array  # float32 [window]
    grad_norms: jax.Array  # float32 [window]
    accepted: jax.Array  # int32, accepted steps; once the ring is full it cycles over window .. 2 window - 1
    skipped_in_row: jax.Array  # int32


def empty_window(config: FaultsConfig) -> Window:
    ring = jnp.zeros((config.window,), jnp.float32)
    return Window(ring, ring, jnp.int32(0), jnp.int32(0))


def acceptable(window: Window, loss: jax.Array, grad_norm: jax.Array, config: FaultsConfig) -> jax.Array:
    """Whether a step counts, bool scalar. Spikes are looked for once the window is full, non-finite values always."""
    full = window.accepted >= config.window
    calm = ~_spikes(loss, window.losses, config) & ~_spikes(grad_norm, window.grad_norms, config)
    return jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (calm | ~full)


def record(window: Window, loss: jax.Array, grad_norm: jax.Array, accept: jax.Array, config: FaultsConfig) -> Window:
    """The window after this step: unchanged but for the count of skips where the step did not count."""
    place = window.accepted % config.window
    updated = Window(
        window.losses.at[place].set(loss),
        window.grad_norms.at[place].set(grad_norm),
        # Cycles, so that an int32 lasts however long the run is.
        jnp.where(window.accepted + 1 >= 2 * config.window, config.window, window.accepted + 1),
        jnp.int32(0),
    )
    skipped = window._replace(skipped_in_row=window.skipped_in_row + 1)
    return jax.tree.map(lambda new, old: jnp.where(accept, new, old), updated, skipped)


def _spikes(value: jax.Array, ring: jax.Array, config: FaultsConfig) -> jax.Array:
    mean = jnp.mean(ring)
    deviation = jnp.maximum(jnp.std(ring), LEAST_DEVIATION * jnp.abs(mean))
    return value > mean + config.deviations * deviation
