"""What the policies of recomputation keep."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend import core
from tiny import model_config

from maxlm.model.decoder import Decoder
from maxlm.model.layers import Options


def products(jaxpr: core.Jaxpr) -> int:
    """Products of a matrix without batch dimensions in a program, with those of all that it calls."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (_, batch) = equation.params["dimension_numbers"]
            found += not batch[0]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                found += products(inner)
    return found


def gradient_products(remat) -> int:
    """Of the loss's gradient, under a policy."""
    build = partial(Decoder, model_config(), jax.random.key(0), Options(remat=remat))
    graphdef, params = nnx.split(nnx.eval_shape(build))

    def loss(params, tokens):
        return jnp.sum(nnx.merge(graphdef, params)(tokens))

    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    return products(jax.make_jaxpr(jax.grad(loss))(params, tokens).jaxpr)


def test_dots_computes_no_product_with_a_parameter_again() -> None:
    assert gradient_products("dots") == gradient_products("none") < gradient_products("full")


@pytest.mark.parametrize(("names", "saved"), [(("query",), 1), (("mlp_gate", "mlp_up"), 2), (("attention_out",), 1)])
def test_a_named_product_is_not_computed_again(names: tuple, saved: int) -> None:
    assert gradient_products(names) == gradient_products("full") - saved
