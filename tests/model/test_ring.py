"""Ring attention against the reference, what travels and what is kept, and a sequence of 128k tokens.

Run as a program, this file computes the long sequence: the suite's own process has unoptimised XLA.
"""

import functools
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from maxlm.model import ring
from maxlm.model.attention import reference
from maxlm.model.mask import visible
from maxlm.model.ring import ring_attention
from maxlm.parallel.batch import sequence_order

ROOT = Path(__file__).parents[2]
LENGTH, WIDTH = 64, 8
# Two rows of documents of uneven length; the first ends in padding.
SEGMENTS = np.stack([np.repeat([1, 2, 3, 0], [20, 9, 30, 5]), np.repeat([1, 2], [37, 27])]).astype(np.int32)
BY_SEQUENCE = PartitionSpec(None, "context")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a chunk at the lengths of these tests."""
    monkeypatch.setattr(ring, "BLOCK", 2)


def make_mesh(**axes: int) -> Mesh:
    devices = np.array(jax.devices()[: math.prod(axes.values())]).reshape(*axes.values())
    return Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def draw(heads: int, kv_heads: int, dtype=jnp.float32) -> tuple[jax.Array, ...]:
    """Queries, keys, values, and the gradient of the result."""
    random = np.random.default_rng(0)
    return tuple(
        jnp.asarray(random.normal(size=(2, LENGTH, n, WIDTH)), dtype) for n in (heads, kv_heads, kv_heads, heads)
    )


def on_ring(shards: int, window: int | None, softcap: float | None = None):
    """ring_attention of whole arrays in `sequence_order`."""
    attend = functools.partial(ring_attention, window=window, softcap=softcap)
    return jax.shard_map(
        attend, mesh=make_mesh(context=shards), in_specs=BY_SEQUENCE, out_specs=BY_SEQUENCE, check_vma=False
    )


def with_gradients(attend, q, k, v, d_out) -> tuple[jax.Array, ...]:
    out, pull_back = jax.vjp(attend, q, k, v)
    return out, *pull_back(d_out)


def reference_with_gradients(window: int | None, arrays, softcap: float | None = None) -> tuple[jax.Array, ...]:
    index = jnp.arange(LENGTH)
    allowed = visible(index, index, SEGMENTS, SEGMENTS, window)
    return with_gradients(lambda q, k, v: reference(q, k, v, allowed, softcap), *arrays)


def ring_with_gradients(shards: int, window: int | None, arrays, softcap: float | None = None) -> list[np.ndarray]:
    order = sequence_order(LENGTH, shards)

    @jax.jit
    def run(segments, q, k, v, d_out):
        return with_gradients(lambda q, k, v: on_ring(shards, window, softcap)(q, k, v, segments), q, k, v, d_out)

    results = run(SEGMENTS[:, order], *(array[:, order] for array in arrays))
    return [np.asarray(result, np.float32)[:, np.argsort(order)] for result in results]


# Query heads, key/value heads, window in chunks, soft cap.
CASES = {"full": (4, 2, None, None), "short window": (4, 1, 0.75, 1.5), "long window": (2, 2, 2.5, None)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_equals_the_reference_in_values_and_gradients(shards: int, case: str) -> None:
    heads, kv_heads, chunks, softcap = CASES[case]
    window = chunks and int(chunks * LENGTH / (2 * shards))
    arrays = draw(heads, kv_heads)
    found = ring_with_gradients(shards, window, arrays, softcap)
    wanted = reference_with_gradients(window, arrays, softcap)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


def test_a_window_of_one_needs_no_other_shard() -> None:
    arrays = draw(4, 4)
    out, dq, dk, dv = ring_with_gradients(4, 1, arrays)
    np.testing.assert_allclose(out, arrays[2], atol=1e-6)
    np.testing.assert_allclose(dv, arrays[3], atol=1e-6)
    assert max(np.abs(dq).max(), np.abs(dk).max()) < 1e-5


def test_bfloat16_errs_no_more_than_the_reference_does() -> None:
    low = draw(4, 2, jnp.bfloat16)
    exact = reference_with_gradients(None, [array.astype(jnp.float32) for array in low])
    plain = reference_with_gradients(None, low)
    for one, other, truth in zip(ring_with_gradients(4, None, low), plain, exact, strict=True):
        error, accepted = (np.sqrt(np.mean((np.asarray(x, np.float32) - truth) ** 2)) for x in (one, other))
        assert 0 < error < 1.2 * accepted


def test_gathered_keys_in_the_order_of_the_shards_give_the_same() -> None:
    q, k, v, _ = draw(4, 2)
    order = sequence_order(LENGTH, 4)
    segments = SEGMENTS[:, order]
    allowed = visible(order, order, segments, segments, 13)
    shard = slice(16, 32)
    out = reference(q[:, order[shard]], k[:, order], v[:, order], allowed[:, shard])
    index = np.arange(LENGTH)
    wanted = reference(q, k, v, visible(index, index, SEGMENTS, SEGMENTS, 13))
    np.testing.assert_allclose(out, wanted[:, order[shard]], atol=1e-6)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_zigzag_balances_a_causal_mask(shards: int) -> None:
    order = sequence_order(LENGTH, shards)
    assert order.dtype == np.int32 and sorted(order) == list(range(LENGTH))
    chunk = LENGTH // (2 * shards)
    for rank, (early, late) in enumerate(order.reshape(shards, 2, chunk)):
        np.testing.assert_array_equal(early, np.arange(chunk) + rank * chunk)
        np.testing.assert_array_equal(late, np.arange(chunk) + (2 * shards - 1 - rank) * chunk)
    assert len(set((order + 1).reshape(shards, -1).sum(-1))) == 1  # as many visible keys on every shard


def equations(jaxpr, times: int = 1) -> Iterator[tuple]:
    """All equations of a program, each with the number of times it runs; loops of unknown length count once."""
    for equation in jaxpr.eqns:
        yield equation, times
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(value, "eqns"):
                yield from equations(value, times * equation.params.get("length", 1))


def passed_on(jaxpr) -> int:
    """Arrays that a device passes to its neighbour when the program runs."""
    found = ((equation, times) for equation, times in equations(jaxpr) if equation.primitive.name == "ppermute")
    return sum(times * len(equation.outvars) for equation, times in found)


def test_keys_go_round_once_and_nothing_else_travels() -> None:
    shards, arrays = 4, draw(4, 2)
    attend = on_ring(shards, None)

    def gradients(*arrays):
        return with_gradients(lambda q, k, v: attend(q, k, v, SEGMENTS), *arrays)

    forward = passed_on(jax.make_jaxpr(attend)(*arrays[:3], SEGMENTS).jaxpr)
    assert forward == 3 * (shards - 1)  # keys, values and segments
    traced = jax.jit(gradients).trace(*arrays)
    assert passed_on(traced.jaxpr.jaxpr) == 2 * forward + 2 * shards  # the gradients of keys and values come home too
    text = traced.lower().compile().as_text()
    collectives = set(re.findall(r"\b(all-\w+|collective-[\w-]+|reduce-scatter|ragged-\w+)[\w-]*\(", text))
    assert {name.removesuffix("-start").removesuffix("-done") for name in collectives} == {"collective-permute"}


def test_the_forward_pass_keeps_its_arguments_its_result_and_one_number_per_row() -> None:
    q, k, v, _ = draw(4, 2)
    attend = on_ring(4, None)
    residuals = jax.eval_shape(lambda q, k, v: jax.vjp(lambda *x: attend(*x, SEGMENTS), q, k, v)[1], q, k, v)
    sizes = [leaf.size for leaf in jax.tree.leaves(residuals)]
    assert max(sizes) == q.size
    assert sum(sizes) <= 2 * q.size + 2 * k.size + q.size // WIDTH + SEGMENTS.size


def stack(attend, q, k, v, remat) -> jax.Array:
    """Layers that feed back their result as queries."""

    def layer(q, scale):
        return attend(q * scale, k * scale, v * scale), None

    return jax.lax.scan(remat(layer), q, jnp.linspace(0.5, 1.5, 3))[0]


def test_nested_in_a_pipeline_under_scan_and_remat() -> None:
    order, arrays = sequence_order(LENGTH, 4), draw(4, 2)

    def program(remat):
        """Two stages, each with its own rows."""
        attend = jax.shard_map(
            functools.partial(ring_attention, window=None),
            axis_names={"context"},
            in_specs=BY_SEQUENCE,
            out_specs=BY_SEQUENCE,
            check_vma=False,
        )
        pipeline = jax.shard_map(
            lambda q, k, v, segments: stack(lambda *x: attend(*x, segments), q, k, v, remat),
            mesh=make_mesh(pipeline=2, context=4),
            axis_names={"pipeline"},
            in_specs=PartitionSpec("pipeline"),
            out_specs=PartitionSpec("pipeline"),
            check_vma=False,
        )
        apply = functools.partial(with_gradients, lambda q, k, v: pipeline(q, k, v, SEGMENTS[:, order]))
        return jax.jit(apply).trace(*(array[:, order] for array in arrays))

    policies = jax.checkpoint_policies
    save, repeat = (
        program(functools.partial(jax.checkpoint, policy=policy, prevent_cse=False))
        for policy in (policies.save_only_these_names("attention"), policies.nothing_saveable)
    )
    # With the results saved, nothing goes round the ring again for their sake.
    everything, forward = passed_on(program(lambda layer: layer).jaxpr.jaxpr), 3 * 3 * 3
    assert (passed_on(save.jaxpr.jaxpr), passed_on(repeat.jaxpr.jaxpr)) == (everything, everything + forward)
    # One tile's mask and no more: batch 1, 2 key/value heads, blocks of 2 keys and of 2 queries of 2 heads.
    variables = (variable.aval for equation, _ in equations(repeat.jaxpr.jaxpr) for variable in equation.outvars)
    assert max(aval.size for aval in variables if aval.dtype == bool) == 1 * 2 * 2 * (2 * 2)
    found = save.lower().compile()(*(array[:, order] for array in arrays))
    index = np.arange(LENGTH)
    allowed = visible(index, index, SEGMENTS, SEGMENTS, None)
    alone = functools.partial(stack, lambda *x: reference(*x, allowed), remat=lambda layer: layer)
    for one, other in zip(found, with_gradients(alone, *arrays), strict=True):
        np.testing.assert_allclose(one[:, np.argsort(order)], other, atol=1e-5)


def float64_rows(q, k, v, d_out, start: int, rows):
    """One head's result, dq, dk and dv, rows of a document that begins at `start`; dk and dv are these rows' part."""
    out, dq, dk, dv = (np.zeros(q.shape, np.float64) for _ in range(4))
    for row in rows:
        keys = slice(start, row + 1)
        weights = np.exp(k[keys] @ q[row] * WIDTH**-0.5)
        weights /= weights.sum()
        out[row] = weights @ v[keys]
        d_scores = weights * ((v[keys] - out[row]) @ d_out[row]) * WIDTH**-0.5
        dq[row] = d_scores @ k[keys]
        dk[keys] += np.outer(d_scores, q[row])
        dv[keys] += np.outer(weights, d_out[row])
    return out, dq, dk, dv


def long_sequence(length: int = 2**17, shards: int = 8) -> None:
    """128k tokens of four documents and padding, forward and backward, against float64 rows."""
    ring.BLOCK = 256  # a third faster on a CPU's caches than the default
    bounds = [0, length // 16 - 700, length // 16 + 800, length // 2 - 1, length - 3000]
    segments = np.searchsorted(bounds, np.arange(length), side="right").astype(np.int32) % len(bounds)
    random, order = np.random.default_rng(0), sequence_order(length, shards)
    arrays = [random.normal(size=(length, WIDTH)).astype(np.float32) for _ in range(4)]
    sharding = jax.NamedSharding(make_mesh(context=shards), BY_SEQUENCE)
    placed = [jax.device_put(array[None, order, None], sharding) for array in arrays]
    segments_BS = jax.device_put(segments[None, order], sharding)

    @jax.jit
    def run(segments, q, k, v, d_out):
        return with_gradients(lambda q, k, v: on_ring(shards, None)(q, k, v, segments), q, k, v, d_out)

    compiled = run.lower(segments_BS, *placed).compile()
    began = time.perf_counter()
    results = jax.block_until_ready(compiled(segments_BS, *placed))
    seconds = time.perf_counter() - began
    found = [np.asarray(result)[0, np.argsort(order), 0] for result in results]
    exact = [array.astype(np.float64) for array in arrays]
    # A document across the border of two chunks, whole; and rows whose keys are spread over the ring.
    wanted = float64_rows(*exact, bounds[1], range(bounds[1], bounds[2]))
    document = slice(bounds[1], bounds[2])
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(one[document], other[document], atol=2e-5, err_msg=name)
    rows = [bounds[3], bounds[3] + 1, length * 3 // 4, bounds[4] - 1]
    wanted = float64_rows(*exact, bounds[3], rows)
    for name, one, other in zip(("out", "dq"), found, wanted, strict=False):
        np.testing.assert_allclose(one[rows], other[rows], atol=2e-5, err_msg=name)
    # Not getrusage: its peak outlives the change of the program, so it would be that of the tests' own process.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    gib = int(peak) / 2**20
    print(f"{seconds:.1f} s, peak {gib:.2f} GiB")
    assert gib < 4  # the scores alone would fill 64


@pytest.mark.slow
def test_a_sequence_of_128k_tokens() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, __file__], env=env, check=True, timeout=600)


if __name__ == "__main__":
    long_sequence()
