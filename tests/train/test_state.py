"""A state's arrays as a checkpoint has them, and back."""

import logging

import jax
import numpy as np
import pytest
from tiny import run_config

from maxlm.parallel.mesh import build_mesh
from maxlm.train.state import blueprint, from_canonical, initial_state, to_canonical


def test_layers_of_stages_become_one_row_by_one_program_that_only_the_first_checkpoint_compiles(caplog) -> None:
    pipeline = {"repeats": 2, "microbatches": 2}
    config = run_config(model={"num_layers": 4}, mesh={"fsdp": 1, "pipeline": 2}, pipeline=pipeline)
    mesh = build_mesh(config.mesh, jax.devices()[:2])
    plan = blueprint(config, mesh, 1)
    state = initial_state(plan)
    with caplog.at_level(logging.DEBUG, "jax"), jax.log_compiles():
        first = to_canonical(state, plan)
        assert jax.tree.map(np.shape, first.params["blocks"]) != jax.tree.map(np.shape, state.params["blocks"])
        assert len(compilations(caplog)) == 1
        caplog.clear()
        second = to_canonical(state, plan)
        assert not compilations(caplog)
        back = from_canonical(second, plan)
        assert len(compilations(caplog)) == 1
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        assert one.sharding == other.sharding


def compilations(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "Finished XLA compilation" in record.message]
