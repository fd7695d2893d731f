"""A whole run of a model with experts: what it writes down, and going on on another mesh."""

import jax
import numpy as np
import pytest

from maxlm.config import Config
from maxlm.report.metrics import read_lines
from maxlm.train import loop

# A dense layer, then four with experts: two stages, each visited twice.
MOE = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 16, "shared_experts": 1, "first_dense": 1}
MOE |= {"scores": "sigmoid", "balance": "bias", "bias_rate": 0.01}
MODEL = {"model.num_layers": 5, "model.moe": MOE, "precision.compute": "float32"}
# The same numbers on any mesh need a rate that does not depend on when the run was to end.
MODEL |= {"schedule": {"name": "constant"}, "logging.every_steps": 1, "eval.every_steps": None}
MESH = {"mesh": {"pipeline": 2, "expert": 2, "fsdp": 2}, "pipeline": {"microbatches": 2, "repeats": 2}}
HALF, STEPS = 4, 8
TOKENS = 256


def lines(config: Config) -> list[dict]:
    return read_lines(config.run_dir / "metrics.jsonl")


@pytest.mark.slow
def test_a_run_with_experts_moves_from_a_pipeline_to_fsdp_and_equals_one_device(make_config):
    length = {"train.total_tokens": TOKENS * STEPS}
    whole = make_config(MODEL | length, name="whole")
    end = loop.train(whole, jax.devices()[:1])
    loop.train(make_config(MODEL | MESH | {"train.total_tokens": TOKENS * HALF}, name="moved"))
    moved = make_config(MODEL | length, name="moved")  # fsdp 8
    final = loop.train(moved)

    before, after = lines(whole), lines(moved)
    assert [line["step"] for line in after] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([line["loss"] for line in after], [line["loss"] for line in before], rtol=1e-5)
    for one, other in zip(before, after, strict=True):
        assert one["tokens_by_source"] == other["tokens_by_source"] and one["tokens"] == other["tokens"]
        np.testing.assert_allclose(one["expert_load"], other["expert_load"], atol=1e-9)
        assert one["expert_max_load"] == pytest.approx(other["expert_max_load"])
    for line in after:
        # Every layer gives each token to two experts, so the fullest has at most twice the mean.
        assert line["expert_dropped"] == 0 and sum(line["expert_load"]) == pytest.approx(1)
        assert 1 <= line["expert_max_load"] <= 2
    # Two microbatches, twice through two stages: five ticks, one of them idle.
    assert [line["bubble"] for line in after] == [0.2] * HALF + [0.0] * HALF
    for one, other in zip(jax.tree.leaves(end.params), jax.tree.leaves(final.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # A step moves every bias by the rate, up or down or (at the mean) not; weight decay and Adam leave it alone.
    steps_of_bias = np.asarray(final.params["blocks"]["0"]["mlp"]["bias"]) / MOE["bias_rate"]
    np.testing.assert_allclose(steps_of_bias, np.round(steps_of_bias), atol=1e-3)
    assert 1 < np.max(np.abs(steps_of_bias)) < STEPS + 0.5
