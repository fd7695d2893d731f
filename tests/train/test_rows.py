"""Rows for new pieces, alone."""

import jax.numpy as jnp
import numpy as np

from maxlm.train import rows


def test_the_mean_of_any_number_of_rows_is_theirs() -> None:
    for count in (1, 2, 3, 7, 64, 65):
        table_VD = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
        np.testing.assert_allclose(rows.mean(jnp.asarray(table_VD)), table_VD.mean(0), rtol=1e-5, atol=1e-7)


def test_scaled_rows_keep_their_directions_and_zeros_stay_zeros() -> None:
    long_PD, as_PD = jnp.array([[3.0, -1.0, 2.0], [0.0, 0.0, 0.0]]), jnp.array([[0.1, 0.1, -0.1], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(rows.scaled(long_PD, as_PD), [[0.15, -0.05, 0.1], [0, 0, 0]], rtol=1e-6)
