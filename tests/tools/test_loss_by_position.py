"""Loss by position: its ranges add up to the held-out loss, and rotations are those of the theta that is asked for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_by_position import measure, with_theta
from shard_files import EOS, write_directory
from tiny import model_config

from maxlm.config import MeshConfig
from maxlm.data.shards import Shards
from maxlm.evaluate.load import Loaded, Source
from maxlm.evaluate.perplexity import evaluate
from maxlm.model.decoder import abstract
from maxlm.parallel.mesh import build_mesh

LENGTH, EDGES = 32, (1, 8, 32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    random = np.random.default_rng(0)
    documents = [[*random.integers(1, 64, random.integers(1, 60)).tolist(), EOS] for _ in range(9)]
    return write_directory(tmp_path_factory.mktemp("shards") / "held-out", documents)


def loaded(theta: float) -> Loaded:
    config = model_config(rope={"theta": theta})
    source = with_theta(Source(Path("tiny"), model_config(), None, {}, None, (), 0, dict), theta)
    assert source.model == config
    graphdef, shapes, _ = abstract(source.model)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), shapes)
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    return Loaded(source.path, source.model, None, graphdef, params, None, (), mesh, 0)


def test_the_ranges_add_up_to_the_held_out_loss(shards: Shards) -> None:
    model = loaded(1e4)
    means, counts = measure(model, shards, LENGTH, None, 2, EDGES)
    whole = evaluate(model.graphdef, model.params, shards, mesh=model.mesh, seq_len=LENGTH, batch_size=2)
    assert counts.sum() == whole.target_tokens and counts.all()
    assert np.average(means, weights=counts) == pytest.approx(whole.loss, rel=1e-5)


def test_a_range_without_targets_has_no_loss(shards: Shards) -> None:
    means, counts = measure(loaded(1e4), shards, LENGTH, 3, 2, (*EDGES, 64))
    assert counts[-1] == 0 and np.isnan(means[-1]) and np.isfinite(means[:-1]).all()


def test_another_theta_changes_what_is_predicted_behind_the_first_position_alone(shards: Shards) -> None:
    (first, second), _ = zip(
        *(measure(loaded(theta), shards, LENGTH, 3, 2, EDGES) for theta in (1e4, 10.0)), strict=True
    )
    assert first[0] == second[0] and first[1] != second[1] and first[2] != second[2]
