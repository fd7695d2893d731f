"""An average of the parameters that is kept beside them while they train, evaluated and saved like them.

After every update   average <- d average + (1 - d) parameters,   d = min(decay, (1 + n) / (10 + n)),

where n updates are in the average before. It begins as the parameters are, at the start of the run or where it is
switched on. With `decay` alone what it begins with weighs decay^n: at 0.9999 still a third after 10,000 updates, and a
random start makes all of that time's averages useless. With the bound, which is that of TensorFlow's
ExponentialMovingAverage(num_updates=n), it weighs 1 / C(n + 9, 9), 1e-5 after ten updates; until `decay` is the smaller
of the two (at 0.9999 after 90,000 updates) the average reaches back over about a ninth of the updates.
benchmarks/2026-11-29-ema.md has both, measured.

All parameters are averaged alike. Biases that balance experts are too: they are those at which this step's routers
were balanced, and their average belongs to the average of the routers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.parallel.sharding import shard


class Average(NamedTuple):
    params: dict  # float32, sharded as the moments are
    updates: jax.Array  # int32, those that are in it


def start(params: dict) -> Average:
    """The average before any update: a copy of the parameters, since a step gives away the memory of both."""
    return Average(jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params), jnp.int32(0))


def updated(average: Average, params: dict, decay: float, axes: dict) -> Average:
    """The average with the parameters after one more update in it; `axes` are the parameters' logical axes."""
    n = average.updates.astype(jnp.float32)
    share = jnp.maximum(1.0 - decay, 9.0 / (10.0 + n))  # 1 - d, of which float32 has more digits than of d

    def moved(mean: jax.Array, parameter: jax.Array, names: tuple) -> jax.Array:
        return mean + share * (shard(parameter.astype(jnp.float32), *names) - mean)

    return Average(jax.tree.map(moved, average.params, params, axes), average.updates + 1)
