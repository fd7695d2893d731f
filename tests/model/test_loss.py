"""Cross-entropy in parts of the sequence, or of the vocabulary, against the full one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.model.loss import cross_entropy
from maxlm.model.vocabulary_loss import cross_entropy_by_vocabulary

BATCH, LENGTH, WIDTH, VOCAB = 3, 11, 6, 17
# Logits have a standard deviation of 2.4: the cap bends most of them, and the largest are near it.
CAP = 3.0


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, ...]:
    """Hidden states, output matrix, targets, and weights with zeros among them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    output = random.normal(size=(WIDTH, VOCAB)).astype(np.float32)
    targets = random.integers(VOCAB, size=(BATCH, LENGTH)).astype(np.int32)
    weights = (random.random((BATCH, LENGTH)) < 0.7).astype(np.float32)
    return tuple(map(jnp.asarray, (x, output, targets, weights)))


def full(x, output, targets, weights, z_loss: float, softcap: float | None) -> tuple[jax.Array, jax.Array]:
    """The loss from the full logits, by the library's own softmax and derivatives."""
    logits = jnp.einsum("BSD,DV->BSV", x, output)
    if softcap is not None:
        logits = jnp.tanh(logits / softcap) * softcap
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0] * weights
    penalty = z_loss * jnp.sum(jax.nn.logsumexp(logits, -1) ** 2 * weights)
    return nll.sum() + penalty, nll.sum(1)


def by_vocabulary(x, output, targets, weights, block: int, *how):
    return cross_entropy_by_vocabulary(x, output, targets, weights, ("table_embed", "vocab"), block, *how)


BOTH = pytest.mark.parametrize("loss_in_parts", [cross_entropy, by_vocabulary])


@BOTH
@pytest.mark.parametrize(
    ("part", "z_loss", "softcap"),
    [(1, 0.0, None), (4, 0.1, None), (11, 0.0, None), (512, 0.1, None), (4, 0.1, CAP), (11, 0.0, CAP), (512, 0.1, CAP)],
)
def test_in_parts_equals_full(inputs: tuple, loss_in_parts, part: int, z_loss: float, softcap: float | None) -> None:
    """Neither 4 nor 11 divides the vocabulary, nor 4 the sequence."""
    x, output, targets, weights = inputs

    def gradients_of(loss, *arguments):
        # The factor makes the gradient that arrives from above differ from 1.
        def scaled(x, output):
            total, rows = loss(x, output, targets, weights, *arguments)
            return 0.5 * total, (total, rows)

        return jax.jit(jax.grad(scaled, (0, 1), has_aux=True))(x, output)

    found, wanted = gradients_of(loss_in_parts, part, z_loss, softcap), gradients_of(full, z_loss, softcap)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    undifferentiated = loss_in_parts(x, output, targets, weights, part, z_loss, softcap)
    for one, other in zip(undifferentiated, wanted[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@BOTH
def test_sums_per_row_are_the_rows_alone(inputs: tuple, loss_in_parts) -> None:
    x, output, targets, weights = inputs
    rows = loss_in_parts(*inputs, 4, 0.1, None)[1]
    for row in range(BATCH):
        x_own, *own = (array[row : row + 1] for array in (x, targets, weights))
        alone = loss_in_parts(x_own, output, *own, 4, 0.0, None)[0]
        np.testing.assert_allclose(rows[row], alone, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("part", [1, 4, 512])
def test_losses_per_token_change_nothing_else(inputs: tuple, loss_in_parts, part: int) -> None:
    x, output, targets, weights = inputs
    weights = weights * jnp.array([[3.0], [0.25], [1.0]])

    def of(per_token: bool):
        def loss(x, output):
            return loss_in_parts(x, output, targets, weights, part, 0.1, CAP, per_token)

        return loss(x, output), jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, output)

    (alone, ((total, nll_B), gradients)), (found, ((same_total, nll_BS), same)) = of(False), of(True)
    logits = CAP * jnp.tanh(jnp.einsum("BSD,DV->BSV", x, output) / CAP)
    every = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    for nll in (nll_BS, found[1]):
        np.testing.assert_allclose(nll, np.where(weights > 0, every, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(alone[0], found[0])
    for left, right in zip((total, *gradients), (same_total, *same), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(nll_B, (nll_BS * weights).sum(1), rtol=1e-5)


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_zero_silences_what_is_not_finite(inputs: tuple, loss_in_parts, bad: float) -> None:
    x, output, targets, weights = inputs
    poisoned = jnp.where(weights[..., None] == 0, bad, x)

    def loss(x, output):
        return loss_in_parts(x, output, targets, weights, 4, 0.1, CAP)[0]

    evaluate = jax.jit(jax.value_and_grad(loss, (0, 1)))
    results = (jax.tree.leaves(evaluate(array, output)) for array in (poisoned, x))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(found, wanted)


@BOTH
def test_bfloat16_inputs_give_float32_sums(inputs: tuple, loss_in_parts) -> None:
    x, output, targets, weights = inputs
    low = x.astype(jnp.bfloat16), output.astype(jnp.bfloat16)
    loss, rows = loss_in_parts(*low, targets, weights, 4, 0.0, None)
    assert loss.dtype == rows.dtype == jnp.float32
    exact = full(*(array.astype(jnp.float32) for array in low), targets, weights, 0.0, None)
    np.testing.assert_allclose(loss, exact[0], rtol=1e-5)
    gradients = jax.grad(lambda x, output: loss_in_parts(x, output, targets, weights, 4, 0.0, None)[0], (0, 1))(*low)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.bfloat16]
