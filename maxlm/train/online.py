"""Online data mixing: sampling weights that follow the sources' losses in the run (Albalak et al. 2023, algorithm 1).

The sources are the arms of a bandit, the loss of an arm is its reward, and the weights are those of EXP3 with a moving
average in place of the sum of rewards. An update comes after an interval of many steps instead of after each batch,
and its reward is the mean loss of the source's target tokens in the interval.

Everything is float64 on the host and a pure function of what was added, so all processes find the same weights.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from maxlm.config import OnlineConfig
from maxlm.data.mixture import UNITS


@dataclass(frozen=True)
class OnlineState:
    """Between two updates; every mapping has the mixture's sources in sorted order."""

    every_steps: int  # from one update to the next
    weights: Mapping[str, float]  # present shares, sum 1; a source at 0 is no arm and stays there
    rewards: Mapping[str, float]  # estimates per source, nats per token over share
    updates: int  # done so far
    nll: Mapping[str, float]  # nats since the last update
    targets: Mapping[str, int]  # target tokens since the last update

    @staticmethod
    def start(weights: Mapping[str, float], every_steps: int) -> "OnlineState":
        """Before the first update, with the mixture's own weights, of any sum."""
        names = sorted(weights)
        total = math.fsum(weights.values())
        shares = {name: float(weights[name]) / total for name in names}
        zeros = dict.fromkeys(names, 0.0)
        return OnlineState(every_steps, shares, zeros, 0, zeros, dict.fromkeys(names, 0))

    def add(self, nll: Mapping[str, float], targets: Mapping[str, int]) -> "OnlineState":
        """With more sums of an interval per source; sources that the mixture does not name are left out."""
        return replace(
            self,
            nll={name: total + float(nll.get(name, 0.0)) for name, total in self.nll.items()},
            targets={name: total + int(targets.get(name, 0)) for name, total in self.targets.items()},
        )

    def updated(self, config: OnlineConfig, step: int) -> "OnlineState":
        """After the interval that ends with `step` (counted from 1): the next weights, and empty sums.

        A source without targets in the interval keeps its estimate. While `step` is within the warm-up the estimates
        follow the rewards and the weights stay.
        """
        arms = [name for name, weight in self.weights.items() if weight > 0]
        rewards = dict(self.rewards)
        for name in arms:
            if self.targets[name]:
                # What is read of a source is at least one unit, however small its weight.
                reward = self.nll[name] / self.targets[name] / max(self.weights[name], 1 / UNITS)
                rewards[name] = config.smoothing * rewards[name] + (1 - config.smoothing) * reward
        updates = self.updates + 1
        weights = dict(self.weights)
        if step > config.warmup_steps:
            # The weights of the paper's step t, which come after t - 1 updates.
            before, now = (exploration(len(arms), t, config.floor) for t in (updates, updates + 1))
            shares = exp3([rewards[name] for name in arms], before, now)
            weights |= dict(zip(arms, shares.tolist(), strict=True))
        nll, targets = dict.fromkeys(self.nll, 0.0), dict.fromkeys(self.targets, 0)
        return OnlineState(self.every_steps, weights, rewards, updates, nll, targets)

    def restarted(self, weights: Mapping[str, float]) -> "OnlineState":
        """With the weights of another mixture, whose sources keep the estimates that they have; sums are empty."""
        fresh = OnlineState.start(weights, self.every_steps)
        rewards = {name: self.rewards.get(name, 0.0) for name in fresh.weights}
        return replace(fresh, rewards=rewards, updates=self.updates)

    def to_json(self) -> dict[str, Any]:
        """Dictionaries, strings and numbers; JSON writes the shortest text that reads back to the same float64."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "OnlineState":
        """The inverse of `to_json`, whatever the order of the keys."""
        return OnlineState(
            **{key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in values.items()}
        )


def exploration(arms: int, t: int, floor: float | None = None) -> float:
    """Share that each arm has at the paper's step t whatever its reward: min(1/K, sqrt(ln K / (K t))), 1/K at 0.

    With a floor it does not fall below that.
    """
    if t == 0:
        return 1 / arms
    return min(1 / arms, max(floor or 0.0, math.sqrt(math.log(arms) / (arms * t))))


def exp3(rewards: list[float], before: float, now: float) -> np.ndarray:
    """Shares [K] of arms with these estimates, float64: (1 - K now) softmax(before x rewards) + now; sum 1."""
    logits = before * np.asarray(rewards, np.float64)
    softmax = np.exp(logits - logits.max())
    return max(0.0, 1 - len(rewards) * now) * (softmax / softmax.sum()) + now
