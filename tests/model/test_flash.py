"""The packed kernel for GPUs, interpreted, against the reference: values and gradients."""

import functools

import gpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from maxlm.model import flash
from maxlm.model.attention import reference
from maxlm.model.flash import Tile, Tiles, flash_attention
from maxlm.model.mask import visible

LENGTH, WIDTH = 88, 16
# Documents of uneven length, a single token and padding among them, and a row of one document.
SEGMENTS = np.stack([np.repeat([1, 2, 3, 4, 0], [21, 1, 40, 17, 9]), np.repeat([1], [LENGTH])]).astype(np.int32)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a sequence at the length of these tests, of different sizes for queries and keys."""
    tiles = Tiles(Tile(16, 8, 4, 1), Tile(8, 16, 4, 1), Tile(8, 8, 4, 1))
    monkeypatch.setattr(flash, "TILES", {128: tiles})


def draw(heads: int, kv_heads: int, dtype=jnp.float32, width: int = WIDTH) -> tuple[jax.Array, ...]:
    """Queries, keys, values, and the gradient of the result."""
    random = np.random.default_rng(0)
    shapes = ((2, LENGTH, count, width) for count in (heads, kv_heads, kv_heads, heads))
    return tuple(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)


def with_gradients(attend, arrays) -> list[np.ndarray]:
    def run(q, k, v, d_out):
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(d_out)

    return [np.asarray(result, np.float32) for result in jax.jit(run)(*arrays)]


def flash_with_gradients(arrays, segments=SEGMENTS, window=None, softcap=None) -> list[np.ndarray]:
    def attend(q, k, v):
        return flash_attention(q, k, v, jnp.asarray(segments), window, softcap, True)

    return with_gradients(attend, arrays)


def capped(q, k, v, allowed, softcap: float | None):
    """The reference; with a soft cap, written out."""
    if softcap is None:
        return reference(q, k, v, allowed)
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bshe,bthe->bhst", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(allowed[:, None], softcap * jnp.tanh(scores / softcap), -jnp.inf)
    return jnp.einsum("bhst,bthe->bshe", jax.nn.softmax(scores, axis=-1), v)


def reference_with_gradients(arrays, window=None, softcap=None) -> list[np.ndarray]:
    index = jnp.arange(LENGTH)
    allowed = visible(index, index, SEGMENTS, SEGMENTS, window)
    return with_gradients(functools.partial(capped, allowed=allowed, softcap=softcap), arrays)


# Query heads, key/value heads, window, soft cap.
CASES = {
    "full": (4, 2, None, None),
    "one key head": (3, 1, None, None),
    "no groups": (2, 2, None, None),
    "narrow window": (4, 2, 5, None),
    "window of a token": (2, 1, 1, None),
    "wide window": (4, 2, 30, None),
    "soft cap": (4, 2, None, 1.5),
    "soft cap and window": (4, 2, 30, 1.5),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_in_values_and_gradients(case: str) -> None:
    heads, kv_heads, window, softcap = CASES[case]
    arrays = draw(heads, kv_heads)
    found = flash_with_gradients(arrays, window=window, softcap=softcap)
    wanted = reference_with_gradients(arrays, window, softcap)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("window", [None, 12])
def test_packed_equals_alone(window: int | None) -> None:
    arrays = draw(4, 2)
    packed = flash_with_gradients(arrays, window=window)
    for segment in (1, 3):
        here = np.flatnonzero(SEGMENTS[0] == segment)
        document = [array[:1, here] for array in arrays]
        alone = flash_with_gradients(document, np.ones((1, len(here)), np.int32), window)
        for name, one, other in zip(("out", "dq", "dk", "dv"), packed, alone, strict=True):
            np.testing.assert_allclose(one[:1, here], other, atol=1e-6, err_msg=f"{name} of document {segment}")


def test_blocks_of_other_documents_are_not_visited() -> None:
    """What is not a number passes even through a mask: its product with 0 is no number either."""
    arrays = [array.at[0, 32:48].set(jnp.nan) for array in draw(4, 2)]
    for result in flash_with_gradients(arrays):
        spoilt = np.isnan(result[0]).any(axis=(1, 2))
        assert spoilt[32:48].all() and not spoilt[:16].any() and not spoilt[64:].any() and not np.isnan(result[1]).any()


def test_a_width_that_is_no_power_of_two() -> None:
    arrays = draw(4, 2, width=20)
    for one, other in zip(flash_with_gradients(arrays), reference_with_gradients(arrays), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_bfloat16_errs_no_more_than_the_reference_does() -> None:
    low = draw(4, 2, jnp.bfloat16)
    exact = reference_with_gradients([array.astype(jnp.float32) for array in low])
    plain = reference_with_gradients(low)
    for one, other, truth in zip(flash_with_gradients(low), plain, exact, strict=True):
        error, accepted = (np.sqrt(np.mean((x - truth) ** 2)) for x in (one, other))
        assert 0 < error < 1.2 * accepted


def test_a_remat_policy_may_keep_what_the_backward_pass_needs() -> None:
    """With "attention" saved nothing asks again for what the kernel of the forward pass gave."""
    q, k, v, _ = draw(2, 1)

    def asked_again(policy) -> bool:
        def attend(q):
            return jnp.sum(flash_attention(q, k, v, jnp.asarray(SEGMENTS), None, None, True) ** 2)

        program = jax.make_jaxpr(jax.grad(jax.checkpoint(attend, policy=policy)))(q)
        (backward,) = (step.params["jaxpr"] for step in program.eqns if "prevent_cse" in step.params)
        (forward,) = (step for step in backward.eqns if step.params.get("name") == "flash_forward")
        return any(variable in step.invars for step in backward.eqns for variable in forward.outvars)

    policies = jax.checkpoint_policies
    assert asked_again(policies.nothing_saveable)
    assert not asked_again(policies.save_only_these_names("attention"))


def test_a_head_too_wide_for_the_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match="a head of 64 numbers of float32 exceeds"):
        flash_with_gradients(draw(2, 2, width=64))


@pytest.mark.skipif(not gpus.has_plugin(), reason="no CUDA plugin (extra plan-gpu)")
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("chip", ["a100-80gb", "h100"])
def test_tiles_fit_the_shared_memory_of(chip: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (device,) = gpus.devices(chip)
    arrays = [
        jax.ShapeDtypeStruct((1, 1024, heads, width), jnp.bfloat16, sharding=SingleDeviceSharding(device))
        for heads in (4, 2, 2, 4)
    ]

    def run(q, k, v, d_out):
        out, pull_back = jax.vjp(lambda *x: flash_attention(*x, jnp.ones((1, 1024), jnp.int32)), q, k, v)
        return out, *pull_back(d_out)

    with jax.default_matmul_precision("default"):
        program = jax.jit(run).trace(*arrays).lower(lowering_platforms=("cuda",)).compile()
    assert program.as_text().count('custom_call_target="__gpu$xla.gpu.triton"') == 3
