"""A proxy run from its reference to the mixture that it finds: what is logged, saved, resumed and refused."""

import jax
import numpy as np
import pytest
import yaml
from test_processes import finish, start

from maxlm.config import Config, load
from maxlm.errors import ConfigError, DataError
from maxlm.report.html import write_report
from maxlm.report.metrics import read_lines
from maxlm.saved import latest
from maxlm.train import loop

STEP = 256  # slots
TIMINGS = ("step_seconds", "data_wait_seconds", "tokens_per_second", "hbm_gib", "mfu")


@pytest.fixture
def make_proxy(make_config, tmp_path):
    """A proxy run of so many steps, against the reference at a path; a constant rate, so that its length may change."""

    def make(steps: int, reference: str | None = None, changes: dict | None = None, **top) -> Config:
        dynamic = {"name": "doremi", "reference": reference or str(tmp_path / "runs" / "reference"), "step_size": 2.0}
        keys = {
            "data.dynamic": dynamic,
            "data.mixture": [{"tokens": STEP * steps, "weights": {"model": 1, "prep": 1}}],
            "schedule": {"name": "constant", "warmup_tokens": 0},
        }
        return make_config(keys | (changes or {}), **({"name": "proxy"} | top))

    return make


@pytest.fixture
def reference(make_config) -> Config:
    """A reference of another size than the proxies, trained for 8 steps."""
    sizes = {"model.embed_dim": 64, "model.num_layers": 1, "train.total_tokens": STEP * 8}
    config = make_config(sizes, name="reference")
    train(config)
    return config


def train(config: Config):
    return loop.train(config, jax.devices()[:1])


def lines(config: Config) -> list[dict]:
    found = read_lines(config.run_dir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in found]


def test_a_proxy_run_resumes_to_the_bit_and_writes_its_mixture(reference, make_proxy, make_config, tmp_path):
    whole, parts = make_proxy(12, name="whole"), make_proxy(6, name="parts")
    state = train(whole)
    train(parts)
    again = train(make_proxy(12, name="parts"))
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    assert int(again.domains.steps) == 12
    assert lines(whole) == lines(parts) and len(lines(whole)) == 4

    line = lines(whole)[-1]
    assert line["mixture_weights"] == dict(zip(("model", "prep"), state.domains.weights.tolist(), strict=True))
    mean = line["mixture_weights_mean"]
    assert sum(mean.values()) == pytest.approx(1, rel=1e-6) and mean["model"] != pytest.approx(0.5, abs=1e-4)
    assert all(0 < excess < 3 for excess in line["excess_by_source"].values())

    text = (whole.run_dir / "mixture.yaml").read_text()
    story = text.partition("\n")[0]
    assert story.startswith("# ") and str(whole.run_dir) in story and "step 12 of 12" in story
    assert str(reference.run_dir / "checkpoints" / "8") in story
    assert (parts.run_dir / "mixture.yaml").read_text().partition("\n")[2] == text.partition("\n")[2]
    main = tmp_path / "main.yaml"
    main.write_text(f"extends: [run.yaml, {whole.run_dir / 'mixture.yaml'}]\nname: main")
    make_config()
    (stage,) = load(main).data.mixture
    assert stage.tokens == 12 * STEP and stage.weights == pytest.approx(mean, rel=1e-7)

    page = write_report([whole.run_dir], tmp_path / "report.html").read_text()
    assert "Mixture weights" in page


def test_a_reference_that_changed_is_refused_and_one_that_moved_is_not(reference, make_proxy, make_config, tmp_path):
    train(make_proxy(4))
    first = latest(reference.run_dir)
    longer = {"model.embed_dim": 64, "model.num_layers": 1, "train.total_tokens": STEP * 12}
    train(make_config(longer, name="reference"))  # its newest checkpoint is another one now
    with pytest.raises(ConfigError, match=r"began against .*checkpoints/8 \(step 8, .*this is .*/12 \(step 12, ") as e:
        train(make_proxy(8))
    assert e.value.exit_code == 2
    moved = first.parent.parent.rename(tmp_path / "elsewhere") / "checkpoints" / "8"
    assert int(train(make_proxy(8, reference=str(moved))).domains.steps) == 8
    with pytest.raises(ConfigError, match=r"data\.dynamic: \{.*\} -> None"):
        train(make_proxy(12, changes={"data.dynamic": None}))


def test_a_branch_of_a_proxy_run_has_its_domain_weights(reference, make_proxy):
    whole, branch = make_proxy(12, name="whole"), make_proxy(12, name="branch")
    state = train(whole)
    again = loop.train(whole, jax.devices()[:1], fork="branch", fork_step=8)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    assert lines(branch) == [line for line in lines(whole) if line["step"] > 8]
    assert load_weights(branch) == load_weights(whole)


def test_a_reference_on_other_sources_or_none_at_all_is_refused(make_proxy, make_config, tmp_path):
    with pytest.raises(DataError, match="reference: no such directory"):
        train(make_proxy(4))
    only = [{"tokens": STEP * 4, "weights": {"model": 1}}]
    other = make_config({"data.mixture": only, "train.total_tokens": STEP * 4}, name="reference")
    sources = {"model": other.data.sources["model"]}
    train(other.model_copy(update={"data": other.data.model_copy(update={"sources": sources})}))
    with pytest.raises(ConfigError, match=r"was not trained on data\.sources\.prep \(.*\), but on model"):
        train(make_proxy(4))
    assert not (tmp_path / "runs" / "proxy").exists()


def test_the_smoothing_may_change_and_is_an_event(reference, make_proxy):
    train(make_proxy(4))
    config = make_proxy(8, changes={"data.dynamic.smoothing": 1.0})
    state = train(config)
    np.testing.assert_allclose(state.domains.weights, 0.5)
    (event,) = [event for event in read_lines(config.run_dir / "events.jsonl") if event["kind"] == "config_changed"]
    assert event["changes"]["data.dynamic.smoothing"] == [1e-3, 1.0]


@pytest.mark.slow
def test_two_processes_find_the_weights_of_one(reference, make_proxy, tmp_path):
    alone, two = make_proxy(6, name="alone"), make_proxy(6, name="two")
    train(alone)
    for length in (3, 6):  # the second time from the checkpoint
        codes, printed = finish(start(make_proxy(length, name="two"), tmp_path, 2), two, tmp_path)
        assert codes == [0, 0], printed
    for left, right in zip(lines(two), lines(alone), strict=True):
        for key in ("mixture_weights", "mixture_weights_mean", "excess_by_source"):
            assert left[key] == pytest.approx(right[key], rel=1e-5)
    assert load_weights(two) == pytest.approx(load_weights(alone), rel=1e-5)


def load_weights(config: Config) -> dict[str, float]:
    return yaml.safe_load((config.run_dir / "mixture.yaml").read_text())["data"]["mixture"][0]["weights"]
