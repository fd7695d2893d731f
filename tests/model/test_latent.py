"""Latent attention: what decoding caches, what a remat policy keeps, how its parameters are made, split and trained."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import DEEPSEEK
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from optax.contrib import MuonDimensionNumbers
from pydantic import ValidationError
from tiny import model_config

from maxlm.config import SAVEABLE, ModelConfig
from maxlm.model.counts import forward_flops_per_token, mean_keys, parameters_by_part
from maxlm.model.decoder import abstract, initial_parameters
from maxlm.parallel.sharding import check_divisible, tree_shardings
from maxlm.train.optimizer import muon_dimensions

QUERY, RANK, NOPE, ROPE, VALUE = 12, 8, 6, 4, 5
DENSE = {"num_layers": 2, "moe": None}
WITHOUT = {"latent": {"kv_rank": RANK, "nope_head_dim": NOPE, "rope_head_dim": ROPE, "value_head_dim": VALUE}}
WITH = {"latent": WITHOUT["latent"] | {"query_rank": QUERY}}


def config_of(**changes: object) -> ModelConfig:
    return model_config(**DEEPSEEK | DENSE | changes)


def attention_of(tree: dict) -> dict:
    return tree["blocks"]["0"]["attention"]


def test_a_cache_holds_the_latent_and_one_rotated_key_of_a_token() -> None:
    graphdef, shapes, _ = abstract(config_of(window=(5, None)), dtype=jnp.bfloat16)
    caches = jax.eval_shape(lambda params: nnx.merge(graphdef, params).empty_caches(3, 14), shapes)
    for position, slots in (("0", 5), ("1", 14)):
        (key, value, *_), one = caches[position], 1  # one block
        assert value is None and key.shape == (one, 3, slots, 1, RANK + ROPE) and key.dtype == jnp.bfloat16


def test_decoding_works_on_the_latents_alone() -> None:
    """No array of the program for a token has a key or a value for every head and slot."""
    config, slots = config_of(num_layers=3), 48
    graphdef, shapes, _ = abstract(config)

    def step(params, caches, token):
        return nnx.merge(graphdef, params).hidden(token, caches=caches).x_BSD

    caches = jax.eval_shape(lambda params: nnx.merge(graphdef, params).empty_caches(1, slots), shapes)
    program = jax.make_jaxpr(step)(shapes, caches, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    shapes = {variable.aval.shape for equation in equations(program.jaxpr) for variable in equation.outvars}
    sizes = {math.prod(shape) for shape in shapes if slots in shape}
    assert slots * (RANK + ROPE) in sizes and slots * config.num_heads in sizes  # cache, scores
    assert not {slots * config.num_heads * width for width in (NOPE, VALUE, NOPE + ROPE)} & sizes


def equations(jaxpr) -> Iterator:
    """Of a program and all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def residual_bytes(config: ModelConfig, remat: str | tuple[str, ...]) -> int:
    """Bytes that the forward pass hands to the backward pass."""
    graphdef, shapes, _ = abstract(config, remat=remat)

    def pull_back(params, tokens):
        return jax.vjp(lambda p: nnx.merge(graphdef, p)(tokens), params)[1]

    residuals = jax.eval_shape(pull_back, shapes, jax.ShapeDtypeStruct((4, 32), jnp.int32))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


def test_remat_policies_keep_what_they_say() -> None:
    config = config_of(**WITH)
    full = residual_bytes(config, "full")
    widths = {"latent": QUERY + RANK + ROPE, "query": 4 * 10, "key": 4 * 10, "value": 4 * VALUE, "attention": 4 * VALUE}
    widths |= {"attention_out": 16, "mlp_gate": 32, "mlp_up": 32}
    assert set(widths) == set(SAVEABLE)
    for name, width in widths.items():
        # float32 activations of 4 x 32 positions in 2 layers.
        assert residual_bytes(config, (name,)) - full == 4 * 2 * 4 * 32 * width, name


@pytest.mark.parametrize(("latent", "queries"), [(WITH, 16 * QUERY + QUERY * 40), (WITHOUT, 16 * 40)])
def test_counts_are_those_of_the_hand(latent: dict, queries: int) -> None:
    config = config_of(**latent)
    parts = parameters_by_part(config)
    assert parts["attention"] == 2 * (queries + 16 * (RANK + ROPE) + RANK * 4 * (NOPE + VALUE) + 4 * VALUE * 16)
    norms = RANK + (QUERY if latent is WITH else 0)
    assert parts["norms"] == 5 * 16 + 2 * norms
    assert forward_flops_per_token(config, 32)["attention"] == 2 * 4 * (10 + VALUE) * 2 * mean_keys(32, None)


def test_initial_parameters_have_the_scale_that_is_asked_for() -> None:
    wide = {"query_rank": 64, "kv_rank": 64, "nope_head_dim": 16, "rope_head_dim": 16, "value_head_dim": 24}
    config = config_of(embed_dim=64, head_dim=32, init_std=0.1, latent=wide)
    params = attention_of(jax.jit(initial_parameters, static_argnums=0)(config, jax.random.key(0)))
    cut = 0.8796  # standard deviation of a normal variable cut at two of its own
    for name in ("query_down", "query_up", "kv_down", "key_rope", "key_up", "value_up"):
        assert float(jnp.std(params[name])) == pytest.approx(0.1 * cut, rel=0.04), name
    assert float(jnp.std(params["out"])) == pytest.approx(0.1 * cut / math.sqrt(2 * 2), rel=0.04)
    assert (params["query_norm"]["scale"] == 1).all() and (params["kv_norm"]["scale"] == 1).all()
    assert not np.array_equal(params["key_up"][0], params["key_up"][1])


def test_matrices_are_split_along_the_stream_or_the_latent_and_over_heads() -> None:
    _, shapes, axes = abstract(config_of(**WITH))
    mesh = AbstractMesh((2, 2, 2), ("fsdp", "expert", "tensor"))
    found = {name: sharding.spec for name, sharding in attention_of(tree_shardings(axes, shapes, mesh)).items()
             if not name.endswith("norm")}  # fmt: skip
    rows = ("fsdp", "expert")
    narrow, wide = PartitionSpec(None, rows, None), PartitionSpec(None, rows, ("tensor",), None)
    assert found == {
        **dict.fromkeys(("query_down", "kv_down", "key_rope"), narrow),
        **dict.fromkeys(("query_up", "key_up", "value_up"), wide),
        "out": PartitionSpec(None, ("tensor",), None, rows),
    }


def test_latents_that_are_narrower_than_the_mesh_are_split_over_some_of_its_axes() -> None:
    _, shapes, axes = abstract(config_of(**WITH))
    for sizes, query, key in (((4, 4), "fsdp", "fsdp"), ((2, 4), "fsdp", ("fsdp", "expert")), ((16, 1), None, None)):
        mesh = AbstractMesh(sizes, ("fsdp", "expert"))
        found = attention_of(tree_shardings(axes, shapes, mesh))
        assert (found["query_up"].spec[1], found["key_up"].spec[1]) == (query, key)
        check_divisible(attention_of(axes)["key_up"], attention_of(shapes)["key_up"].shape, mesh)


def test_muon_takes_every_matrix_as_input_by_output() -> None:
    _, _, axes = abstract(config_of(**WITH))
    found = {name: muon_dimensions(names) for name, names in attention_of(axes).items() if not name.endswith("norm")}
    assert found == {
        **dict.fromkeys(("query_down", "kv_down", "key_rope"), MuonDimensionNumbers((1,), (2,))),
        **dict.fromkeys(("query_up", "key_up", "value_up"), MuonDimensionNumbers((1,), (2, 3))),
        "out": MuonDimensionNumbers((1, 2), (3,)),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_bias": True}, "takes no learned_positions, qk_norm, qkv_bias, out_bias"),
        ({"num_kv_heads": 2}, "num_kv_heads must be num_heads with latent, found 2 and 4"),
        ({"head_dim": 12}, "head_dim must be latent.nope_head_dim"),
    ],
)
def test_what_does_not_go_with_latents_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(**changes)
