"""Group DRO over the sources of a proxy run: the domain weights of DoReMi (Xie et al. 2023, algorithm 1).

The proxy's objective is the sum over sources of weight x mean loss of the source's targets in the batch. After each
step the weights grow exponentially with the excess loss of each source: the mean over its targets of how far the loss
lies above that of a reference, each target for itself and at least 0. The result is the mean of the weights over the
steps: the mixture for another run.

Two things are not as the algorithm is written:

- The objective of a step has the weights from before the step's own update, which lag by one step: so one forward pass
  gives both the gradients and the excess losses.
- A source of which the batch holds no target keeps its share, and the sources that are there divide the rest among
  themselves (as experts that sleep: Freund et al. 1997). The algorithm supposes that every batch has all sources. An
  excess of 0 in place of one that is not known would push down whatever is sampled rarely, and the last one known may
  be from long ago and would count again with every step.

Axis letters: B rows of the batch, S positions of a row, N sources in the order of the configuration.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from maxlm.config import DataConfig, DoremiConfig

LEAST = 1e-30  # in place of a 0 that would divide, or silence


class Domains(NamedTuple):
    """The domain weights, and their sum over the steps that counted."""

    weights: jax.Array  # float32 [N], sum 1; 0 for a source without a share in the mixture
    total: jax.Array  # float32 [N]
    # float32 [N], what rounding has added to the total (Kahan 1965). A running mean would stand still: after 10^6 steps
    # it does not see weights that are 0.03 away.
    rounding: jax.Array
    steps: jax.Array  # int32


def start(data: DataConfig) -> Domains:
    """Equal weights of the sources that have a share in the mixture."""
    uniform_N = _uniform(data)
    zeros = jnp.zeros_like(uniform_N)
    return Domains(uniform_N, zeros, zeros, jnp.int32(0))


def row_factors(domains: Domains, weights_BS: jax.Array, sources_B: jax.Array) -> jax.Array:
    """Factor on each row's target weights that makes the mean loss of the global batch the objective, float32 [B].

    The sum over rows of factor x loss, divided by all targets, is the sum over sources of domain weight x the source's
    loss / the source's targets. Sources without targets in the batch contribute nothing.
    """
    targets_N = by_source(jnp.sum(weights_BS, axis=1), sources_B, domains.weights)
    # A factor of 0 would silence a row in what is reported as well.
    weights_N = jnp.maximum(domains.weights, LEAST)
    return (weights_N * jnp.sum(targets_N) / jnp.maximum(targets_N, 1.0))[sources_B]


def updated(domains: Domains, excess_N: jax.Array, targets_N: jax.Array, data: DataConfig) -> Domains:
    """After a step.

    Args:
        excess_N: float32 [N], excess loss summed over each source's targets in the global batch, in nats.
        targets_N: float32 [N], the number of those targets.
    """
    config = data.dynamic
    assert isinstance(config, DoremiConfig)
    present_N = targets_N > 0
    excess_N = jnp.where(present_N, excess_N / jnp.maximum(targets_N, 1.0), 0.0)
    # Less the largest, so that no power is infinite; it cancels.
    grown_N = domains.weights * jnp.exp(config.step_size * (excess_N - jnp.max(excess_N)))
    grown_N = jnp.where(present_N, grown_N, 0.0)
    share = jnp.sum(jnp.where(present_N, domains.weights, 0.0))
    grown_N *= share / jnp.maximum(jnp.sum(grown_N), LEAST)
    weights_N = jnp.where(present_N, grown_N, domains.weights)
    weights_N = (1 - config.smoothing) * weights_N / jnp.sum(weights_N) + config.smoothing * _uniform(data)
    added_N = weights_N - domains.rounding
    total_N = domains.total + added_N
    return Domains(weights_N, total_N, (total_N - domains.total) - added_N, domains.steps + 1)


def by_source(values_B: jax.Array, sources_B: jax.Array, like_N: jax.Array) -> jax.Array:
    """Sums of rows' values per source [N]; as a product with a matrix TPUs would round the values to bfloat16."""
    source_BN = sources_B[:, None] == jnp.arange(like_N.shape[0])
    return jnp.sum(jnp.where(source_BN, values_B[:, None], 0), axis=0)


def mean_weights(domains: Domains) -> np.ndarray:
    """The mean of the weights over the steps so far, float64 [N]; before the first, the weights at the start."""
    domains = jax.device_get(domains)
    if not domains.steps:
        return np.asarray(domains.weights, np.float64)
    return (domains.total.astype(np.float64) - domains.rounding) / int(domains.steps)


def metrics(data: DataConfig, domains: Domains | None, excess_N: Any, targets_N: Any) -> dict[str, dict[str, float]]:
    """Fields of a line of the metrics, from arrays on the host; none where there are no domain weights.

    The weights after the line's step, their mean over the steps, and the mean excess loss of each source's targets
    since the last line, in nats.
    """
    if domains is None:
        return {}
    names = [name for name, sampled in zip(data.sources, _sampled(data), strict=True) if sampled]

    def by_name(values_N: Any) -> dict[str, float]:
        found = dict(zip(data.sources, np.asarray(values_N, np.float64).tolist(), strict=True))
        return {name: found[name] for name in names}

    targets, excess = by_name(targets_N), by_name(excess_N)
    return {
        "mixture_weights": by_name(domains.weights),
        "mixture_weights_mean": by_name(mean_weights(domains)),
        "excess_by_source": {name: excess[name] / targets[name] for name in names if targets[name]},
    }


def stage_file(data: DataConfig, domains: Domains, tokens: int, story: str) -> str:
    """A configuration file that `extends` can name: the mean weights as a mixture of so many tokens.

    `story` says in the file's first line where the weights are from.
    """
    mean_N = mean_weights(domains)
    shares = zip(data.sources, mean_N / mean_N.sum(), _sampled(data), strict=True)
    weights = {name: float(f"{share:.8g}") for name, share, sampled in shares if sampled}
    return f"# {story}\n" + yaml.safe_dump(
        {"data": {"mixture": [{"tokens": tokens, "weights": weights}]}}, sort_keys=False
    )


def _sampled(data: DataConfig) -> np.ndarray:
    """Which sources have a share in the mixture, bool [N]."""
    return np.array([any(stage.weights.get(name, 0) > 0 for stage in data.mixture) for name in data.sources])


def _uniform(data: DataConfig) -> jax.Array:
    sampled_N = _sampled(data)
    return jnp.asarray(sampled_N / sampled_N.sum(), jnp.float32)
