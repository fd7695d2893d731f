"""Cross-entropy in chunks against the full one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.model.loss import cross_entropy

BATCH, LENGTH, WIDTH, VOCAB = 3, 11, 6, 17


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, ...]:
    """Hidden states, output matrix, targets, and weights with zeros among them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    output = random.normal(size=(WIDTH, VOCAB)).astype(np.float32)
    targets = random.integers(VOCAB, size=(BATCH, LENGTH)).astype(np.int32)
    weights = (random.random((BATCH, LENGTH)) < 0.7).astype(np.float32)
    return tuple(map(jnp.asarray, (x, output, targets, weights)))


def full(x, output, targets, weights, z_loss: float) -> tuple[jax.Array, jax.Array]:
    """The loss from the full logits, by the library's own softmax."""
    logits = jnp.einsum("BSD,DV->BSV", x, output)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0] * weights
    penalty = z_loss * jnp.sum(jax.nn.logsumexp(logits, -1) ** 2 * weights)
    return nll.sum() + penalty, nll.sum(1)


@pytest.mark.parametrize(("chunk", "z_loss"), [(1, 0.0), (4, 0.1), (11, 0.0), (512, 0.1)])
def test_chunked_equals_full(inputs: tuple, chunk: int, z_loss: float) -> None:
    x, output, targets, weights = inputs

    def gradients_of(loss, *arguments):
        # The factor makes the gradient that arrives from above differ from 1.
        def scaled(x, output):
            total, rows = loss(x, output, targets, weights, *arguments)
            return 0.5 * total, (total, rows)

        return jax.jit(jax.grad(scaled, (0, 1), has_aux=True))(x, output)

    found, wanted = gradients_of(cross_entropy, chunk, z_loss), gradients_of(full, z_loss)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    undifferentiated = cross_entropy(x, output, targets, weights, chunk, z_loss)
    for one, other in zip(undifferentiated, wanted[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_sums_per_row_are_the_rows_alone(inputs: tuple) -> None:
    x, output, targets, weights = inputs
    rows = cross_entropy(*inputs, 4, 0.1)[1]
    for row in range(BATCH):
        alone = cross_entropy(x[row : row + 1], output, targets[row : row + 1], weights[row : row + 1], 4, 0.0)[0]
        np.testing.assert_allclose(rows[row], alone, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_zero_silences_what_is_not_finite(inputs: tuple, bad: float) -> None:
    x, output, targets, weights = inputs
    poisoned = jnp.where(weights[..., None] == 0, bad, x)

    def loss(x, output):
        return cross_entropy(x, output, targets, weights, 4, 0.1)[0]

    evaluate = jax.jit(jax.value_and_grad(loss, (0, 1)))
    results = (jax.tree.leaves(evaluate(array, output)) for array in (poisoned, x))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_bfloat16_inputs_give_float32_sums(inputs: tuple) -> None:
    x, output, targets, weights = inputs
    low = x.astype(jnp.bfloat16), output.astype(jnp.bfloat16)
    loss, rows = cross_entropy(*low, targets, weights, 4, 0.0)
    assert loss.dtype == rows.dtype == jnp.float32
    exact = full(*(array.astype(jnp.float32) for array in low), targets, weights, 0.0)
    np.testing.assert_allclose(loss, exact[0], rtol=1e-5)
    gradients = jax.grad(lambda x, output: cross_entropy(x, output, targets, weights, 4, 0.0)[0], (0, 1))(*low)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.bfloat16]
