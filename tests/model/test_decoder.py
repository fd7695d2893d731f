"""The decoder against a plain float64 implementation, and what must not change its results."""

import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES
from flax import nnx
from float64_decoder import Float64Decoder
from jax.sharding import Mesh
from scalings import DYNAMIC, LLAMA3, LONGROPE, YARN
from tiny import model_config

from maxlm.config import SAVEABLE, MeshConfig, ModelConfig
from maxlm.model.decoder import abstract, initial_parameters
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings

VARIANTS = {
    "untied": {},
    "tied": {"tie_embeddings": True},
    "windows": {"num_layers": 4, "window": (3, None), "qk_norm": True, "num_kv_heads": 1, "attention_softcap": 0.7},
    "experts": {"moe": {"num_experts": 8, "experts_per_token": 2, "mlp_dim": 8}},
    "shared": {
        "num_layers": 3,
        "moe": {
            "num_experts": 4,
            "experts_per_token": 1,
            "mlp_dim": 8,
            "shared_experts": 2,
            "normalize": False,
            "first_dense": 1,
        },
    },
    "biased": {
        "num_layers": 6,
        "window": (3, None),
        "moe": {
            "num_experts": 8,
            "experts_per_token": 3,
            "mlp_dim": 8,
            "scores": "sigmoid",
            "scale": 2.5,
            "balance": "bias",
            "first_dense": 2,
            "every": 2,
        },
    },
    "groups by their best": {
        "moe": {
            "num_experts": 8,
            "experts_per_token": 2,
            "mlp_dim": 8,
            "groups": 4,
            "groups_per_token": 2,
            "scale": 4.0,
        }
    },
    "groups by their two best": {
        "num_layers": 3,
        "moe": {
            "num_experts": 12,
            "experts_per_token": 3,
            "mlp_dim": 8,
            "scores": "sigmoid",
            "groups": 3,
            "groups_per_token": 1,
            "group_score": "top2",
            "balance": "bias",
            "first_dense": 1,
        },
    },
    "exact gelu": {"activation": "gelu_exact", "mlp_bias": True},
    "experts of another kind": {
        "activation": "gelu_exact",
        "norm": "layer",
        "norm_place": "after",
        "moe": {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 8, "shared_experts": 1},
    },
    **FAMILIES,
    # Of the documents below one is longer than the original length.
    "dynamic": {"head_dim": 8, "rope": DYNAMIC, "window": (4, None)},
    "longrope": {"head_dim": 8, "rope": LONGROPE, "num_layers": 3, "window": (4, None), "qk_norm": True},
    "yarn": {"head_dim": 8, "rope": YARN | {"fraction": 0.75}},
    "llama3": {"head_dim": 8, "rope": LLAMA3},
    "latents of keys alone": {
        "num_kv_heads": 4,
        "head_dim": 6,
        "latent": {"kv_rank": 6, "nope_head_dim": 2, "rope_head_dim": 4, "value_head_dim": 8},
        "window": (3, None),
        "query_scale": 0.3,
    },
}


class Case(NamedTuple):
    config: ModelConfig
    graphdef: nnx.GraphDef
    params: dict


def make_case(variant: str) -> Case:
    """A model whose parameters are large enough for every part of it to show in the logits."""
    config, random = model_config(**{"rope": {"theta": 100.0}} | VARIANTS[variant]), np.random.default_rng(1)
    graphdef, shapes, _ = abstract(config)

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        mean = path[-1].key == "scale" and not config.norm_offset
        return jnp.asarray(random.normal(mean, 0.3, shape.shape), jnp.float32)

    return Case(config, graphdef, jax.tree.map_with_path(draw, shapes))


@pytest.fixture(params=VARIANTS, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


# A row of three documents and padding.
TOKENS = np.random.default_rng(0).integers(64, size=(1, 18)).astype(np.int32)
SEGMENTS = np.array([1] * 5 + [2] * 7 + [3] * 4 + [0] * 2, np.int32)[None]
POSITIONS = np.array([*range(5), *range(7), *range(4), 0, 0], np.int32)[None]
BOUNDS = [(0, 5), (5, 12), (12, 16)]
# Of a scalar made of the logits, by which gradients are taken; padding has no part in it.
DIRECTIONS = np.random.default_rng(2).normal(size=(1, 18, 64)).astype(np.float32) * (SEGMENTS > 0)[..., None]


@partial(jax.jit, static_argnums=0)
def forward(graphdef: nnx.GraphDef, params: dict, tokens, segment_ids=None, positions=None) -> jax.Array:
    return nnx.merge(graphdef, params)(tokens, segment_ids, positions)


@partial(jax.jit, static_argnums=0)
def with_gradient(graphdef: nnx.GraphDef, params: dict, tokens, segment_ids, positions, directions):
    """Logits, and the gradient of their product with the directions."""

    def scalar(params):
        logits = forward(graphdef, params, tokens, segment_ids, positions)
        return jnp.sum(logits * directions), logits

    gradient, logits = jax.grad(scalar, has_aux=True)(params)
    return logits, gradient


def root_mean_square(x: jax.Array) -> float:
    return math.sqrt(float(jnp.mean(jnp.square(x))))


def assert_trees_close(found: dict, wanted: dict, tolerance: float) -> None:
    """Every leaf within the tolerance times its root mean square; of all leaves' a hundredth is the least.

    The gradient of a key's bias is zero without rotary positions, and then holds rounding alone.
    """
    least = 1e-2 * root_mean_square(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(wanted)]))
    for (path, one), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        scale = max(root_mean_square(other), least)
        np.testing.assert_allclose(one, other, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


def test_logits_equal_a_float64_implementation(case: Case) -> None:
    exact = Float64Decoder(case.config, case.params)
    packed, _ = with_gradient(case.graphdef, case.params, TOKENS, SEGMENTS, POSITIONS, DIRECTIONS)
    wanted = exact(TOKENS[0], SEGMENTS[0], POSITIONS[0])
    assert np.std(wanted) > 1
    np.testing.assert_allclose(packed[0], wanted, atol=1e-4)
    # Without segments and positions a row is one document.
    plain = forward(case.graphdef, case.params, TOKENS)
    np.testing.assert_allclose(plain[0], exact(TOKENS[0], np.ones(18), np.arange(18)), atol=1e-4)


def test_packed_equals_alone_in_values_and_gradients(case: Case) -> None:
    packed, packed_gradient = with_gradient(case.graphdef, case.params, TOKENS, SEGMENTS, POSITIONS, DIRECTIONS)
    gradients = []
    for start, stop in BOUNDS:

        def alone_in_a_row(array: np.ndarray, span=slice(start, stop)) -> np.ndarray:
            row = np.zeros_like(array)
            row[:, : span.stop - span.start] = array[:, span]
            return row

        row = map(alone_in_a_row, (TOKENS, np.ones_like(SEGMENTS), POSITIONS, DIRECTIONS))
        alone, gradient = with_gradient(case.graphdef, case.params, *row)
        np.testing.assert_allclose(alone[:, : stop - start], packed[:, start:stop], atol=1e-4)
        gradients.append(gradient)
    assert_trees_close(packed_gradient, jax.tree.map(lambda *parts: sum(parts), *gradients), 1e-4)


def test_padding_does_not_matter(case: Case) -> None:
    others = np.where(SEGMENTS > 0, TOKENS, (TOKENS + 1) % 64)
    results = [
        with_gradient(case.graphdef, case.params, tokens, SEGMENTS, POSITIONS, DIRECTIONS)
        for tokens in (TOKENS, others)
    ]
    np.testing.assert_array_equal(results[0][0][:, :16], results[1][0][:, :16])
    jax.tree.map(np.testing.assert_array_equal, results[0][1], results[1][1])


@pytest.mark.parametrize("remat", ["dots", "full", ("query", "attention_out")])
def test_remat_changes_neither_logits_nor_gradient(remat: str | tuple[str, ...]) -> None:
    case = make_case("untied")
    graphdefs = case.graphdef, abstract(case.config, remat=remat)[0]
    wanted, found = (with_gradient(g, case.params, TOKENS, SEGMENTS, POSITIONS, DIRECTIONS) for g in graphdefs)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-4)
    assert_trees_close(found[1], wanted[1], 1e-4)


def residual_bytes(config: ModelConfig, remat: str | tuple[str, ...]) -> int:
    """Bytes that the forward pass hands to the backward pass."""
    graphdef, shapes, _ = abstract(config, remat=remat)
    tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)
    residuals = jax.eval_shape(
        lambda params, tokens: jax.vjp(lambda p: forward(graphdef, p, tokens), params)[1], shapes, tokens
    )
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


def test_remat_policies_keep_what_they_say() -> None:
    config = model_config()
    none, dots, full = (residual_bytes(config, policy) for policy in ("none", "dots", "full"))
    assert none > dots > full
    widths = {"query": 16, "key": 8, "value": 8, "attention": 16, "attention_out": 16, "mlp_gate": 32, "mlp_up": 32}
    assert {*widths, "latent"} == set(SAVEABLE)
    for name, width in widths.items():
        # float32 activations of 4 x 32 positions in 2 layers.
        assert residual_bytes(config, (name,)) - full == 4 * 2 * 4 * 32 * width, name


@pytest.mark.parametrize("tied", [False, True])
def test_first_loss_is_near_that_of_a_uniform_guess(tied: bool) -> None:
    config = model_config(tie_embeddings=tied)
    params = jax.jit(initial_parameters, static_argnums=0)(config, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(64, size=(8, 33))
    log_likelihood = jax.nn.log_softmax(forward(abstract(config)[0], params, tokens[:, :-1]))
    loss = -np.take_along_axis(np.asarray(log_likelihood), tokens[:, 1:, None], -1).mean()
    assert loss == pytest.approx(math.log(64), abs=0.02)


FACTORISATIONS = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(sizes) == 8]
MESHES = {
    "untied": [{"data": data, "fsdp": fsdp, "tensor": tensor} for data, fsdp, tensor in FACTORISATIONS],
    "experts": [{"expert": 8}, {"expert": 2, "pipeline": 2, "fsdp": 2}, {"expert": 2, "context": 2, "tensor": 2}],
}


@pytest.mark.parametrize("model", MESHES)
def test_initial_parameters_are_equal_on_every_mesh(model: str) -> None:
    config = model_config(num_heads=8, num_kv_heads=8, **VARIANTS[model])
    _, shapes, axes = abstract(config)

    def build(mesh: Mesh) -> dict:
        shardings = tree_shardings(axes, shapes, mesh)
        # Ten programs that run once: their machine code need not be fast.
        options = {"xla_backend_optimization_level": 0}
        initialise = jax.jit(partial(initial_parameters, config), out_shardings=shardings, compiler_options=options)
        return initialise(jax.random.key(3))

    alone = build(build_mesh(MeshConfig(), jax.devices()[:1]))
    for sizes in MESHES[model]:
        params = build(build_mesh(MeshConfig(**{"fsdp": 1} | sizes)))
        jax.tree.map(np.testing.assert_array_equal, params, alone)
        shards = 8 // sizes.get("data", 1) // sizes.get("tensor", 1)
        assert params["output"].sharding.shard_shape((16, 64)) == (16 // shards, 64 // sizes.get("tensor", 1))


def test_initial_parameters_have_the_scale_that_is_asked_for() -> None:
    config = model_config(num_layers=8, embed_dim=64, mlp_dim=128, init_std=0.1)
    params = jax.jit(initial_parameters, static_argnums=0)(config, jax.random.key(0))
    layer = params["blocks"]["0"]
    cut = 0.8796  # standard deviation of a normal variable cut at two of its own
    for matrix in (params["embedding"], layer["attention"]["query"], layer["mlp"]["up"]):
        assert float(jnp.std(matrix)) == pytest.approx(0.1 * cut, rel=0.03) and float(jnp.max(jnp.abs(matrix))) <= 0.2
    for matrix in (layer["attention"]["out"], layer["mlp"]["down"]):
        assert float(jnp.std(matrix)) == pytest.approx(0.1 * cut / math.sqrt(2 * 8), rel=0.03)
    assert not np.array_equal(layer["mlp"]["up"][0], layer["mlp"]["up"][1])


def test_the_scale_of_embeddings_is_of_the_compute_type() -> None:
    """sqrt(24) is 4.899, in bfloat16 4.906; of Gemma 2 9B sqrt(3584) = 59.87 becomes 60."""
    config = model_config(scale_embeddings=True, embed_dim=24)
    table = np.random.default_rng(0).normal(size=(64, 24)).astype(np.float32)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract(config)[1]) | {"embedding": jnp.asarray(table)}
    for dtype, factor in ((jnp.float32, np.float32(24**0.5)), (jnp.bfloat16, np.float32(4.90625))):
        model = nnx.merge(abstract(config, dtype=dtype)[0], params)
        wanted = jnp.asarray(table).astype(dtype).astype(np.float32) * factor
        np.testing.assert_array_equal(jax.jit(model._embed)(np.arange(64)[None], None)[0], wanted.astype(dtype))


def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits() -> None:
    case = make_case("untied")
    low = abstract(case.config, dtype=jnp.bfloat16)[0]
    hidden = jax.eval_shape(lambda params: nnx.merge(low, params).hidden(jnp.asarray(TOKENS)).x_BSD, case.params)
    assert hidden.dtype == jnp.bfloat16
    logits, exact = (forward(graphdef, case.params, TOKENS) for graphdef in (low, case.graphdef))
    assert logits.dtype == exact.dtype == jnp.float32
    assert 1e-3 < float(jnp.std(logits - exact) / jnp.std(exact)) < 0.1
