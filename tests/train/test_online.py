"""Online mixing as in Albalak et al. 2023: weights from losses, by hand and by what must hold of them."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm import saved
from maxlm.config import OnlineConfig
from maxlm.report.metrics import read_lines
from maxlm.train import loop
from maxlm.train.online import OnlineState, exploration

CONFIG = OnlineConfig(name="online", every_steps=10)


def test_first_update_by_hand():
    """Two arms. At t = 2: E_1 = min(1/2, sqrt(ln 2 / 2)) = 1/2, E_2 = sqrt(ln 2 / 4); rewards a tenth of loss / p."""
    state = OnlineState.start({"a": 3, "b": 1}, 10).add({"a": 300.0, "b": 60.0}, {"a": 100, "b": 30})
    state = state.updated(CONFIG, step=10)
    rewards = {"a": 0.1 * 3.0 / 0.75, "b": 0.1 * 2.0 / 0.25}
    assert state.rewards == pytest.approx(rewards, rel=1e-15)
    e1, e2 = 0.5, math.sqrt(math.log(2) / 4)
    powers = {name: math.exp(e1 * reward) for name, reward in rewards.items()}
    wanted = {name: (1 - 2 * e2) * power / sum(powers.values()) + e2 for name, power in powers.items()}
    assert state.weights == pytest.approx(wanted, rel=1e-14)
    assert state.updates == 1 and state.nll == {"a": 0, "b": 0} and state.targets == {"a": 0, "b": 0}


def test_second_update_by_hand():
    state = OnlineState.start({"a": 3, "b": 1}, 10).add({"a": 300.0, "b": 60.0}, {"a": 100, "b": 30})
    first = state.updated(CONFIG, step=10)
    second = first.add({"a": 50.0, "b": 10.0}, {"a": 20, "b": 4}).add({"a": 50.0, "b": 0.0}, {"a": 20, "b": 0})
    second = second.updated(CONFIG, step=20)
    rewards = {
        "a": 0.9 * first.rewards["a"] + 0.1 * (100 / 40) / first.weights["a"],
        "b": 0.9 * first.rewards["b"] + 0.1 * (10 / 4) / first.weights["b"],
    }
    assert second.rewards == pytest.approx(rewards, rel=1e-15)
    e2, e3 = math.sqrt(math.log(2) / 4), math.sqrt(math.log(2) / 6)
    powers = {name: math.exp(e2 * reward) for name, reward in rewards.items()}
    wanted = {name: (1 - 2 * e3) * power / sum(powers.values()) + e3 for name, power in powers.items()}
    assert second.weights == pytest.approx(wanted, rel=1e-14)


def test_exploration_is_the_papers_and_ends_at_the_floor():
    assert [exploration(4, t) for t in (0, 1, 5)] == [0.25] * 3
    assert exploration(4, 1000) == math.sqrt(math.log(4) / 4000)
    assert exploration(4, 1000, 0.1) == 0.1 and exploration(4, 0, 0.1) == exploration(4, 1, 0.5) == 0.25
    assert exploration(1, 5) == 0


LOSSES = st.lists(st.floats(0, 1e3), min_size=1, max_size=8)


@given(LOSSES, st.integers(1, 12), st.sampled_from([None, 1e-3, 0.02, 0.1]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_weights_sum_to_one_and_keep_the_floor_and_zeros(losses, updates, floor):
    config = CONFIG.model_copy(update={"floor": floor})
    state = OnlineState.start({str(number): number + 1 for number in range(len(losses))} | {"none": 0}, 10)
    for step in range(1, updates + 1):
        targets = {str(number): number + step for number in range(len(losses))}
        nll = {name: loss * targets[name] for name, loss in zip(targets, losses, strict=True)}
        state = state.add(nll, targets).updated(config, step)
    assert state.weights["none"] == 0
    arms = [weight for name, weight in state.weights.items() if name != "none"]
    assert math.fsum(arms) == pytest.approx(1, abs=1e-15)
    assert min(arms) >= exploration(len(losses), updates + 1, floor)
    assert floor is None or min(arms) >= min(floor, 1 / len(losses))


@given(st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=9), st.integers(0, 2**53))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_json_keeps_every_bit(weights, targets):
    names = [f"s{number}" for number in range(len(weights))]
    state = OnlineState.start(dict(zip(names, weights, strict=True)), 10)
    state = state.add(dict.fromkeys(names, weights[0] / 3), dict.fromkeys(names, targets)).updated(CONFIG, 10)
    state = state.add(dict.fromkeys(names, math.pi), dict.fromkeys(names, targets))
    again = OnlineState.from_json(json.loads(json.dumps(state.to_json(), sort_keys=True)))
    assert again == state
    for left, right in zip((state.weights, state.rewards), (again.weights, again.rewards), strict=True):
        assert list(left) == list(right)
        assert np.array(list(left.values())).tobytes() == np.array(list(right.values())).tobytes()
    assert again.updated(CONFIG, 20) == state.updated(CONFIG, 20)


def test_source_that_was_not_seen_keeps_its_estimate():
    state = OnlineState.start({"a": 1, "b": 1}, 10).add({"a": 5.0, "b": 7.0}, {"a": 2, "b": 2}).updated(CONFIG, 10)
    after = state.add({"a": 5.0, "other": 1.0}, {"a": 2, "other": 1}).updated(CONFIG, 20)
    assert set(after.weights) == set(after.targets) == {"a", "b"}
    assert after.rewards["b"] == state.rewards["b"] and after.rewards["a"] != state.rewards["a"]


def test_weights_stay_in_the_warm_up_while_estimates_move():
    config = CONFIG.model_copy(update={"warmup_steps": 20})
    start = OnlineState.start({"a": 9, "b": 1}, 10)
    losses = {"a": 5.0, "b": 7.0}, {"a": 2, "b": 2}
    first = start.add(*losses).updated(config, 10)
    second = first.add(*losses).updated(config, 20)
    assert start.weights == first.weights == second.weights == {"a": 0.9, "b": 0.1}
    assert second.rewards["b"] > first.rewards["b"] > 0
    assert second.add(*losses).updated(config, 30).weights != second.weights


def test_another_mixture_keeps_the_estimates_of_its_sources():
    state = OnlineState.start({"a": 1, "b": 1}, 10).add({"a": 5.0, "b": 7.0}, {"a": 2, "b": 2}).updated(CONFIG, 10)
    after = state.add({"a": 1.0}, {"a": 1}).restarted({"c": 1, "b": 3, "a": 0})
    assert after.weights == {"a": 0, "b": 0.75, "c": 0.25}
    assert after.rewards == {"a": state.rewards["a"], "b": state.rewards["b"], "c": 0}
    assert after.updates == 1 and not any(after.targets.values())


def test_source_with_the_larger_loss_gets_the_larger_share():
    """Also from a mixture that gives it the smaller one; equal losses have equal shares in the end."""
    state = OnlineState.start({"easy": 8, "hard": 1, "harder": 1}, 10)
    for step in range(10, 2000, 10):
        state = state.add({"easy": 1.0, "hard": 3.0, "harder": 4.0}, dict.fromkeys(state.weights, 1))
        state = state.updated(CONFIG, step)
    assert state.weights["harder"] > state.weights["hard"] > state.weights["easy"] > exploration(3, 200)
    equal = OnlineState.start({"a": 8, "b": 2}, 10)
    for step in range(10, 2000, 10):
        equal = equal.add({"a": 2.0, "b": 2.0}, {"a": 1, "b": 1}).updated(CONFIG, step)
    assert equal.weights == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-3)


ONLINE = {"data.dynamic": {"name": "online", "every_steps": 3, "smoothing": 0.5}, "schedule.name": "constant"}


def train(config):
    return loop.train(config, jax.devices()[:1])


@pytest.mark.slow
def test_the_mixture_of_a_run_follows_its_losses_and_resumes_with_the_same_bits(make_config):
    whole, parted = make_config(ONLINE, name="whole"), make_config(ONLINE, name="parted")
    train(whole)
    for steps in (3, 9, 15):  # before the first change, on one, and between
        train(make_config(ONLINE | {"train.total_tokens": 256 * steps}, name="parted"))
    train(parted)
    lines, others = (read_lines(config.run_dir / "metrics.jsonl") for config in (whole, parted))
    for key in ("loss", "mixture_weights", "loss_by_source", "tokens_by_source"):
        assert [line[key] for line in lines] == [line[key] for line in others]
    weights = [line["mixture_weights"] for line in lines]
    assert weights[0] == weights[1] == pytest.approx({"model": 0.75, "prep": 0.25})
    assert len({tuple(found.values()) for found in weights}) == 6
    runs = [saved.read_run(saved.latest(config.run_dir)) for config in (whole, parted)]
    assert runs[0]["loader"] == runs[1]["loader"] and runs[0]["online"] == runs[1]["online"]
    kinds = [(segment["kind"], segment["first_step"]) for segment in runs[0]["loader"]["schedule"]]
    assert kinds == [("start", 0), *[("online", step) for step in (6, 9, 12, 15, 18, 21)]]
    # What a line says of its interval is what the next change but one is made of.
    online = OnlineState.start({"model": 3, "prep": 1}, 10)
    for number, line in enumerate(lines[:-1]):
        nll = {name: loss * line["tokens_by_source"][name] for name, loss in line["loss_by_source"].items()}
        online = online.add(nll, line["tokens_by_source"]).updated(whole.data.dynamic, line["step"])
        if number + 2 < len(lines):
            assert lines[number + 2]["mixture_weights"] == pytest.approx(online.weights, abs=1e-8)


def test_other_weights_on_resume_start_an_online_mixture_anew_and_another_batch_does_not(make_config):
    train(make_config(ONLINE | {"train.total_tokens": 256 * 9}))
    train(make_config(ONLINE | {"train.batch_tokens": 512, "train.total_tokens": 256 * 9 + 512 * 3}))
    edit = {"data.mixture": [{"tokens": 5120, "weights": {"model": 1, "prep": 9}}], "train.batch_tokens": 512}
    config = make_config(ONLINE | edit | {"train.total_tokens": 256 * 9 + 512 * 12})
    train(config)
    weights = [line["mixture_weights"] for line in read_lines(config.run_dir / "metrics.jsonl")]
    assert weights[3] != pytest.approx({"model": 0.75, "prep": 0.25}, abs=1e-3)
    assert weights[4] == pytest.approx({"model": 0.1, "prep": 0.9})
    assert weights[5] == weights[4] != weights[6]
