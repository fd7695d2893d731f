"""The mixture of experts against every expert run on every token, and what must not change its results."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from tiny import model_config

from maxlm.config import ModelConfig, validate
from maxlm.errors import ConfigError
from maxlm.model.dispatch import grouped_product
from maxlm.model.moe import MoE, updated_bias
from maxlm.parallel.sharding import partition_spec
from maxlm.plan.compile import topology_devices

AXES = ("pipeline", "data", "fsdp", "context", "expert", "tensor")
MOE = {"num_experts": 8, "experts_per_token": 2, "mlp_dim": 8, "aux_weight": 0.1}
VARIANTS: dict[str, dict] = {
    "softmax": {"z_weight": 0.01},
    "sigmoid": {"scores": "sigmoid", "scale": 2.5, "shared_experts": 2},
    "plain": {"normalize": False, "balance": None, "experts_per_token": 1},
    "biased": {"balance": "bias", "scores": "sigmoid"},
    "one expert takes all": {"balance": "bias", "experts_per_token": 1, "normalize": False},
    "all experts": {"experts_per_token": 8, "normalize": False},
    "groups": {"groups": 4, "groups_per_token": 2, "normalize": False, "scale": 4.0},
    "biased groups": {
        "experts_per_token": 3,
        "scores": "sigmoid",
        "groups": 2,
        "group_score": "top2",
        "scale": 2.5,
        "balance": "bias",
        "shared_experts": 1,
    },
}
BIASES = {
    "biased": [0, 9, 0, 0, -9, 0, 0, 0.1],
    "one expert takes all": [0, 0, 0, 0, 0, 9, 0, 0],
    # Of the first group the best expert alone would win, of the second the best two together.
    "biased groups": [0.5, -0.5, -0.5, -0.5, 0.2, 0.2, 0.1, 0.1],
}
# Eight rows, some with padding, one of nothing else.
LENGTHS = np.array([8, 5, 8, 0, 8, 8, 7, 8])
SEGMENTS = (np.arange(8) < LENGTHS[:, None]).astype(np.int32)
X, DIRECTIONS = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype(np.float32)


def module(config: ModelConfig, **options: Any) -> MoE:
    return MoE(config, 0.02, jax.random.key(0), jnp.float32, **options)


def make(variant: str, seed: int = 1) -> tuple[ModelConfig, nnx.GraphDef, dict]:
    """A layer whose parameters are large enough for every part of it to show."""
    config, random = model_config(moe=MOE | VARIANTS[variant]), np.random.default_rng(seed)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: module(config)))
    params = jax.tree.map(lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), nnx.to_pure_dict(state))
    if variant in BIASES:
        params["bias"] = np.array(BIASES[variant], np.float32)
    return config, graphdef, params


def with_gradient(layer, params: dict, x, segments, directions):
    """Output, statistics, and the gradients by parameters and input of a scalar made of them."""

    def scalar(params, x):
        out, stats = layer(params, x, segments)
        return jnp.sum(out * directions) + stats[0], (out, stats)

    gradients, results = jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, x)
    return *results, gradients


def run(graphdef: nnx.GraphDef, params: dict, mesh: Mesh | None = None, x=X, segments=SEGMENTS, directions=DIRECTIONS):
    layer = lambda params, x, segments: nnx.merge(graphdef, params)(x, segments)  # noqa: E731
    compute = jax.jit(functools.partial(with_gradient, layer))
    if mesh is None:
        return compute(params, x, segments, directions)
    with jax.set_mesh(mesh):
        return compute(params, x, segments, directions)


@functools.cache
def on_one_device(variant: str):
    _, graphdef, params = make(variant)
    return run(graphdef, params)


def dense(config: ModelConfig, params: dict, x_BSD, segments_BS):
    """Every expert on every token, mixed by weights that are zero for those that were not chosen."""
    moe = config.moe
    valid_BS = segments_BS > 0
    logits_BSE = x_BSD @ params["router"]
    scores_BSE = jax.nn.softmax(logits_BSE) if moe.scores == "softmax" else jax.nn.sigmoid(logits_BSE)
    preference_BSE = scores_BSE + jax.lax.stop_gradient(params.get("bias", jnp.zeros(moe.num_experts)))
    if moe.groups > 1:
        best = {"max": 1, "top2": 2}[moe.group_score]
        group_BSE = jnp.repeat(
            jnp.sort(preference_BSE.reshape(*x_BSD.shape[:2], moe.groups, -1))[..., -best:].sum(-1),
            moe.num_experts // moe.groups,
            axis=-1,
        )
        # The last of as many groups as a token may have: its value is that of each of its experts.
        least_BS1 = jnp.sort(group_BSE)[..., -moe.groups_per_token * (moe.num_experts // moe.groups), None]
        preference_BSE = jnp.where(group_BSE >= least_BS1, preference_BSE, -jnp.inf)
    place_BSE = jnp.argsort(jnp.argsort(-preference_BSE))
    chosen_BSE = (place_BSE < moe.experts_per_token) & valid_BS[..., None]
    weights_BSE = jnp.where(chosen_BSE, scores_BSE, 0)
    if moe.normalize:
        total_BS = weights_BSE.sum(-1, keepdims=True)
        weights_BSE = weights_BSE / jnp.where(total_BS > 0, total_BS, 1)

    def mlp(x, gate, up, down):
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down

    out_BSD = jnp.zeros_like(x_BSD)
    for expert in range(moe.num_experts):
        part = mlp(x_BSD, *(params[name][expert] for name in ("gate", "up", "down")))
        out_BSD += moe.scale * weights_BSE[..., expert, None] * part
    if moe.shared_experts:
        out_BSD += mlp(x_BSD, *(params["shared"][name] for name in ("gate", "up", "down")))

    penalty = 0.0
    for row, length in enumerate(LENGTHS):
        share_TE = scores_BSE[row, :length] / scores_BSE[row, :length].sum(-1, keepdims=True)
        count_E = chosen_BSE[row].sum(0)
        if moe.balance == "aux_loss" and length:
            frequency_E = moe.num_experts / (moe.experts_per_token * length) * count_E
            penalty += moe.aux_weight * length * jnp.sum(frequency_E * share_TE.mean(0))
        penalty += moe.z_weight * jnp.sum(jax.nn.logsumexp(logits_BSE[row, :length], -1) ** 2)
    return out_BSD, (penalty, chosen_BSE.sum((0, 1)))


def assert_close(found, wanted, tolerance: float) -> None:
    """Every leaf within the tolerance times its root mean square."""
    for (path, one), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        scale = math.sqrt(np.mean(np.square(other)))
        np.testing.assert_allclose(one, other, atol=tolerance * scale, rtol=0, err_msg=jax.tree_util.keystr(path))


def assert_nothing_dropped(variant: str, load_E) -> None:
    assert int(np.sum(load_E)) == (MOE | VARIANTS[variant])["experts_per_token"] * LENGTHS.sum()


def mesh_of(**sizes: int) -> Mesh:
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 6, devices=jax.devices()[: math.prod(shape)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_every_expert_on_every_token(variant: str) -> None:
    config, _, params = make(variant)
    found = on_one_device(variant)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, X, DIRECTIONS))
        compute = jax.jit(functools.partial(with_gradient, functools.partial(dense, config)))
        wanted = compute(exact[0], exact[1], SEGMENTS, exact[2])
    assert_close(found, tuple(wanted), 1e-5)
    assert_nothing_dropped(variant, found[1].load_E)
    if not config.moe.shared_experts:
        assert not np.any(np.asarray(found[0])[SEGMENTS == 0])
    if variant == "biased":
        assert found[1].load_E[1] == LENGTHS.sum() and found[1].load_E[4] == 0
    if variant in BIASES:
        assert not np.any(found[2][0]["bias"])


MESHES = [
    ("softmax", {"expert": 2}),
    ("softmax", {"expert": 4, "fsdp": 2}),
    ("sigmoid", {"expert": 2, "tensor": 2, "data": 2}),
    ("sigmoid", {"expert": 2, "context": 2, "fsdp": 2}),
    ("softmax", {"tensor": 2, "context": 2, "fsdp": 2}),
    ("biased", {"expert": 4}),
    ("one expert takes all", {"expert": 8}),
    ("all experts", {"expert": 8}),
    ("groups", {"expert": 4, "fsdp": 2}),
    ("biased groups", {"expert": 2, "context": 2, "tensor": 2}),
]


@pytest.mark.parametrize(("variant", "sizes"), MESHES, ids=lambda value: str(value))
def test_a_mesh_changes_nothing(variant: str, sizes: dict[str, int]) -> None:
    _, graphdef, params = make(variant)
    found = run(graphdef, params, mesh_of(**sizes))
    assert_close(found, on_one_device(variant), 1e-5)
    np.testing.assert_array_equal(found[1].load_E, on_one_device(variant)[1].load_E)
    assert_nothing_dropped(variant, found[1].load_E)


def ragged_all_to_all(rows, out, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name: str):
    """What JAX documents of the collective that XLA lacks on CPU, with every device seeing everything."""
    sent = [jax.lax.all_gather(array, axis_name) for array in (rows, input_offsets, send_sizes, output_offsets)]
    me, slots = jax.lax.axis_index(axis_name), jnp.arange(out.shape[0])
    for source, (source_rows, starts, sizes, targets) in enumerate(zip(*sent, strict=True)):
        place = slots - targets[me]
        arrives = (place >= 0) & (place < sizes[me]) & (place < recv_sizes[source])
        out = jnp.where(arrives[:, None], jnp.take(source_rows, starts[me] + place, axis=0, mode="clip"), out)
    return out


@pytest.mark.parametrize(("variant", "experts"), [("softmax", 4), ("one expert takes all", 2)])
def test_the_ragged_exchange_equals_the_padded_one(variant: str, experts: int, monkeypatch) -> None:
    config, _, params = make(variant)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
    graphdef = nnx.split(nnx.eval_shape(lambda: module(config, exchange="ragged")))[0]
    found = run(graphdef, params, mesh_of(expert=experts, fsdp=2))
    assert_close(found, on_one_device(variant), 1e-5)


def test_pieces_change_nothing() -> None:
    graphdef = nnx.split(nnx.eval_shape(lambda: module(make("softmax")[0], pieces=4)))[0]
    found = run(graphdef, make("softmax")[2], mesh_of(expert=2, fsdp=2))
    assert_close(found, on_one_device("softmax"), 1e-5)


def test_inside_a_pipeline_stage() -> None:
    graphdef, stages = make("softmax")[1], [make("softmax", seed)[2] for seed in (1, 2)]
    per_stage = [X, X[::-1]], [SEGMENTS, SEGMENTS[::-1]], [DIRECTIONS, DIRECTIONS[::-1]]
    wanted = [run(graphdef, *(stages[stage], None, *(kind[stage] for kind in per_stage))) for stage in (0, 1)]

    def outer(*arguments):
        params, x, segments, directions = jax.tree.map(lambda leaf: leaf[0], arguments)
        layer = jax.checkpoint(lambda params, x, segments: nnx.merge(graphdef, params)(x, segments))
        return jax.tree.map(lambda leaf: leaf[None], with_gradient(layer, params, x, segments, directions))

    stage = PartitionSpec("pipeline")
    program = jax.shard_map(outer, in_specs=stage, out_specs=stage, axis_names={"pipeline"}, check_vma=False)
    arguments = (jax.tree.map(lambda *leaves: np.stack(leaves), *stages), *map(np.stack, per_stage))
    with jax.set_mesh(mesh_of(pipeline=2, expert=2, fsdp=2)):
        found = jax.jit(program)(*arguments)
    assert_close(found, jax.tree.map(lambda *leaves: np.stack(leaves), *wanted), 1e-5)


def stats_of_two_experts(x, segments, **moe: Any):
    """Of a layer whose logits are its inputs."""
    moe = {"num_experts": 2, "experts_per_token": 1, "normalize": False, "mlp_dim": 2} | moe

    @jax.jit
    def stats():
        layer = module(model_config(embed_dim=2, moe=moe))
        layer.router.set_value(jnp.eye(2))
        return layer(x, segments)[1]

    return stats()


def test_penalties_by_hand() -> None:
    odds = math.log(3)  # a softmax of 3/4 and 1/4
    x, segments = np.array([[[odds, 0], [odds, 0], [0, odds], [5, 5]]], np.float32), np.array([[1, 1, 2, 0]])
    # Counts 2 and 1, sums of scores 1.75 and 1.25, factor E / (K T) = 2/3.
    balance = 2 / 3 * (2 * 1.75 + 1 * 1.25)
    stats = stats_of_two_experts(x, segments, aux_weight=0.5)
    assert float(stats.penalty) == pytest.approx(0.5 * balance, rel=1e-6)
    np.testing.assert_array_equal(stats.load_E, [2, 1])
    stats = stats_of_two_experts(x, segments, aux_weight=0.5, z_weight=0.1)
    assert float(stats.penalty) == pytest.approx(0.5 * balance + 0.1 * 3 * math.log(4) ** 2, rel=1e-6)
    for balance_by in ("bias", None):
        assert float(stats_of_two_experts(x, segments, balance=balance_by).penalty) == 0


def test_penalty_is_a_sum_over_the_rows() -> None:
    _, graphdef, params = make("softmax")
    stats = jax.jit(lambda x, segments: nnx.merge(graphdef, params)(x, segments)[1])
    parts = [stats(X[rows], SEGMENTS[rows]) for rows in (slice(0, 4), slice(4, 8))]
    whole = on_one_device("softmax")[1]
    assert float(parts[0].penalty + parts[1].penalty) == pytest.approx(float(whole.penalty), rel=1e-5)
    np.testing.assert_array_equal(parts[0].load_E + parts[1].load_E, whole.load_E)


def test_bias_moves_against_the_load() -> None:
    load_LE = np.array([[4, 0, 2, 2], [0, 0, 0, 8]])
    bias_LE = updated_bias(jnp.zeros((2, 4)), load_LE, 0.5)
    np.testing.assert_array_equal(bias_LE, [[-0.5, 0.5, 0, 0], [0.5, 0.5, 0.5, -0.5]])


def test_bias_evens_out_a_skewed_router() -> None:
    _, graphdef, params = make("biased")
    params["bias"] = jnp.zeros(8)
    random = np.random.default_rng(3)
    params["router"] = random.normal(0, 0.3, (16, 8)).astype(np.float32)
    x, segments = random.normal(1, 1, (8, 32, 16)).astype(np.float32), np.ones((8, 32), np.int32)

    @jax.jit
    def step(bias):
        load = nnx.merge(graphdef, params | {"bias": bias})(x, segments)[1].load_E
        return updated_bias(bias, load, 0.01), load

    bias, first = step(params["bias"])
    for _ in range(150):
        bias, last = step(bias)
    mean = 2 * 8 * 32 / 8
    assert np.max(first) > 1.8 * mean and np.max(last) < 1.2 * mean


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_grouped_product(platform: str) -> None:
    """Against a loop; the rows behind the groups hold NaN, as memory may. TPU kernels are interpreted here."""
    random, sizes = np.random.default_rng(4), np.array([40, 0, 100, 1], np.int32)
    x, w = random.normal(size=(300, 24)).astype(np.float32), random.normal(size=(4, 24, 16)).astype(np.float32)
    direction = random.normal(size=(300, 16)).astype(np.float32)
    used, group = sizes.sum(), np.repeat(np.arange(4), sizes)
    if platform == "tpu":
        x[used:] = direction[used:] = np.nan
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        product = functools.partial(grouped_product, sizes_E=jnp.asarray(sizes), platform=platform)
        out, backward = jax.vjp(lambda x, w: product(x, w), x, w)
        d_x, d_w = backward(direction)
    if platform == "tpu":
        assert np.isnan(out[256:]).all()  # tiles behind the last one in use, or the next test would show nothing
    np.testing.assert_allclose(out[:used], np.einsum("rd,rdf->rf", x[:used], w[group]), atol=1e-4)
    np.testing.assert_allclose(d_x[:used], np.einsum("rf,rdf->rd", direction[:used], w[group]), atol=1e-4)
    for expert in range(4):
        rows = np.flatnonzero(group == expert)
        np.testing.assert_allclose(d_w[expert], x[rows].T @ direction[rows], atol=1e-4)


@pytest.mark.parametrize("experts", [1, 2])
def test_memory_that_tpu_kernels_leave_does_not_matter(experts: int) -> None:
    """The whole layer with the TPU's kernels, interpreted, in which memory that was not written holds NaN."""
    config, plain, params = make("softmax")
    graphdef = nnx.split(nnx.eval_shape(lambda: module(config, platform="tpu", exchange="padded")))[0]
    # Most of it padding: whole tiles of the kernels stay unused.
    x, directions = np.tile(X, (1, 6, 1)), np.tile(DIRECTIONS, (1, 6, 1))
    segments = np.pad(SEGMENTS, ((0, 0), (0, 40)))
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        found = run(graphdef, params, mesh_of(expert=experts), x, segments, directions)
    assert_close(found, run(plain, params, None, x, segments, directions), 1e-5)


def test_bfloat16_routes_in_float32() -> None:
    layer = MoE(model_config(moe=MOE), 0.02, jax.random.key(0), jnp.bfloat16)
    assert layer.router.dtype == jnp.float32 and layer.gate.dtype == jnp.bfloat16
    out, stats = jax.eval_shape(lambda x: layer(x, SEGMENTS), jnp.asarray(X, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16 and stats.penalty.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts_per_token": 9}, "experts_per_token must be at most num_experts, found 9 and 8"),
        ({"experts_per_token": 1}, "normalize must be false with experts_per_token 1"),
        ({"groups": 3}, "groups must divide num_experts and groups_per_token be at most groups, found 3, 8 and 1"),
        ({"groups": 4, "groups_per_token": 5}, "groups_per_token be at most groups, found 4, 8 and 5"),
        ({"groups": 8}, "found 1 groups of 1 experts for 2 per token with group_score max; expected enough experts"),
        ({"groups": 8, "groups_per_token": 2, "group_score": "top2"}, "two or more in a group for top2"),
        ({"first_dense": 1, "every": 2}, "2 layers less first_dense = 1 are 1; expected a multiple of 2"),
    ],
)
def test_configuration_is_checked(changes: dict, message: str) -> None:
    values = model_config().model_dump() | {"moe": MOE | changes}
    with pytest.raises(ConfigError, match=message):
        validate(values, ModelConfig, "tiny")


@pytest.mark.parametrize("changes", [{"mlp_gated": False}, {"mlp_bias": True}])
def test_experts_without_gate_or_with_bias_are_refused(changes: dict) -> None:
    values = model_config().model_dump() | {"moe": MOE} | changes
    with pytest.raises(ConfigError, match="experts are gated and have no bias"):
        validate(values, ModelConfig, "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["padded", "ragged"])
@pytest.mark.parametrize("sizes", [{"expert": 4, "fsdp": 2}, {"pipeline": 2, "expert": 2, "fsdp": 2}], ids=str)
def test_compiles_for_tpu(sizes: dict[str, int], exchange: str) -> None:
    """Forward and backward with TPU kernels, for chips that are not there; experts are reduced into their shards."""
    pytest.importorskip("libtpu")
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    mesh = Mesh(np.array(topology_devices("v5p:2x2x2")).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 6)
    stage_mesh = AbstractMesh((1, *shape[1:]), AXES, axis_types=(AxisType.Auto,) * 6)
    # Narrower experts' collectives are merged, and then no longer what the program says.
    groups = {"groups": 4, "groups_per_token": 2, "group_score": "top2"}
    config = model_config(embed_dim=512, moe=MOE | groups | {"mlp_dim": 512})
    graphdef, state = nnx.split(nnx.eval_shape(lambda: module(config, platform="tpu", exchange=exchange)))

    def argument(shape, dtype, axes):
        # Every stage of a pipeline has its own.
        sharding = NamedSharding(mesh, PartitionSpec("pipeline", *partition_spec(axes, stage_mesh)))
        return jax.ShapeDtypeStruct((mesh.shape["pipeline"], *shape), dtype, sharding=sharding)

    params = {
        name: argument(leaf.get_value().shape, leaf.dtype, leaf.get_metadata("logical_axes"))
        for name, leaf in state.items()
    }
    x = argument((8, 128, 512), jnp.bfloat16, ("batch", "sequence", None))
    segments = argument((8, 128), jnp.int32, ("batch", "sequence"))

    def outer(params, x, segments):
        params, x, segments = jax.tree.map(lambda leaf: leaf[0], (params, x, segments))
        layer = lambda params, x, segments: nnx.merge(graphdef, params)(x, segments)  # noqa: E731
        gradients = with_gradient(layer, params, x, segments, 1.0)[2]
        return jax.tree.map(lambda leaf: leaf[None], gradients)

    stage = PartitionSpec("pipeline")
    program = jax.shard_map(outer, in_specs=stage, out_specs=stage, axis_names={"pipeline"}, check_vma=False)
    with jax.set_mesh(mesh):
        traced = jax.jit(program, out_shardings=(jax.tree.map(lambda a: a.sharding, params), x.sharding))
        text = traced.trace(params, x, segments).lower(lowering_platforms=("tpu",)).compile().as_text()
    assert {"padded": " all-to-all(", "ragged": " ragged-all-to-all("}[exchange] in text
    assert text.count("tpu_custom_call") >= 9  # three products, each with two gradients
    # gate, up and down
    assert text.count(" reduce-scatter(") >= 3 and text.count(" all-gather(") >= 3
