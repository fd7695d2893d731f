"""Which experts a token chooses where these stand in groups, against a choice in plain Python."""

import functools

import jax
import numpy as np
import pytest
from tiny import model_config

from maxlm.config import MoeConfig
from maxlm.model.moe import route


def choices_by_hand(scores_E: np.ndarray, bias_E: np.ndarray, moe: MoeConfig) -> tuple[dict[int, float], set[int]]:
    """Weights of one token's experts, group by group and expert by expert; and those it had without groups."""
    preference, size = dict(enumerate(scores_E + bias_E)), moe.num_experts // moe.groups
    assert len(set(preference.values())) == moe.num_experts
    groups = [range(first, first + size) for first in range(0, moe.num_experts, size)]
    best = {"max": 1, "top2": 2}[moe.group_score]
    groups.sort(key=lambda group: sum(sorted(preference[expert] for expert in group)[-best:]))
    allowed = [expert for group in groups[-moe.groups_per_token :] for expert in group]
    chosen, free = (sorted(of, key=preference.get)[-moe.experts_per_token :] for of in (allowed, preference))
    total = sum(scores_E[expert] for expert in chosen) if moe.normalize else 1.0
    return {expert: moe.scale * scores_E[expert] / total for expert in chosen}, set(free)


@pytest.mark.parametrize(
    ("changes", "bias"),
    [
        ({"scores": "softmax", "group_score": "max", "normalize": False, "scale": 16.0}, 0.0),  # as DeepSeek-V2
        ({"scores": "sigmoid", "group_score": "top2", "scale": 2.5, "balance": "bias"}, 0.2),  # as DeepSeek-V3
        ({"scores": "sigmoid", "group_score": "max", "balance": "bias"}, 0.2),
    ],
    ids=["v2", "v3", "biased max"],
)
def test_a_token_chooses_groups_then_experts(changes: dict, bias: float) -> None:
    moe = {"num_experts": 24, "experts_per_token": 4, "groups": 6, "groups_per_token": 2, "mlp_dim": 2}
    moe = model_config(moe=moe | changes).moe
    random = np.random.default_rng(5)
    x, router = random.normal(size=(2, 40, 16)).astype(np.float32), random.normal(0, 0.3, (16, 24)).astype(np.float32)
    bias_E = random.normal(0, bias, 24).astype(np.float32)
    arguments = x, np.ones((2, 40), bool), router, bias_E if moe.balance == "bias" else None
    choice = jax.jit(functools.partial(route, moe=moe))(*arguments)
    logits = x.reshape(-1, 16).astype(np.float64) @ router
    odds = np.exp(logits)
    scores = odds / odds.sum(1, keepdims=True) if moe.scores == "softmax" else odds / (1 + odds)
    moved = 0
    for experts, weights, own in zip(np.asarray(choice.expert_NK), np.asarray(choice.weight_NK), scores, strict=True):
        wanted, without_groups = choices_by_hand(own, bias_E, moe)
        assert {*experts.tolist()} == wanted.keys()
        np.testing.assert_allclose(weights, [wanted[expert] for expert in experts.tolist()], rtol=1e-5)
        moved += wanted.keys() != without_groups
    assert moved > 20  # of 80 tokens
