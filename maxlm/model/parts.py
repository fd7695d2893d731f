"""A function of positions, applied to one part of the sequence after the other. Axis letters as in layers.py, P parts,
C positions of a part.

Nothing that the function makes exists for more than one part: the backward pass computes each part again, beside its
gradient. Where the whole layer is recomputed anyway this costs nothing, for the layer's own recomputation then stops at
the function's inputs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maxlm.parallel.sharding import join_sequence, manual, replicated, split_sequence, sum_gradient

# Left to the partitioner inside the function, as elsewhere; all other axes are split by hand.
AUTOMATIC = ("tensor",)

TOKENS = ("batch", "sequence")
ROWS = (*TOKENS, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def in_parts(function: Callable, parts: int, axes: Any, params: Any, x_BSD: jax.Array) -> jax.Array:
    """function(params, x) of arrays [B, S, D], in so many parts of every device's own positions.

    Args:
        function: closes over no array.
        axes: logical axes of `params`, which arrive gathered. Gradients of them add up on each device, in their own
            type, and are exchanged once: the partitioner would do that for every part.
    """

    def run(params, x_BSD):
        x_PBCD = split_sequence(x_BSD, parts, None)
        _, out_PBCD = jax.lax.scan(lambda _, x_BCD: (None, function(params, x_BCD)), None, x_PBCD)
        return join_sequence(out_PBCD, None)

    return manual(run, (_whole(axes), ROWS), ROWS, AUTOMATIC)(params, x_BSD)


def _forward(function: Callable, parts: int, axes: Any, params: Any, x_BSD: jax.Array):
    return in_parts(function, parts, axes, params, x_BSD), (params, x_BSD)


def _backward(function: Callable, parts: int, axes: Any, inputs, d_out_BSD: jax.Array):
    def run(params, x_BSD, d_out_BSD):
        def step(total, part):
            x_BCD, d_out_BCD = part
            _, pull_back = jax.vjp(function, params, x_BCD)
            gradients, dx_BCD = pull_back(d_out_BCD)
            return jax.tree.map(jnp.add, total, gradients), dx_BCD

        both = tuple(split_sequence(array, parts, None) for array in (x_BSD, d_out_BSD))
        gradients, dx_PBCD = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, params), both)
        return jax.tree.map(lambda leaf: leaf[None, None], gradients), join_sequence(dx_PBCD, None)

    whole = _whole(axes)
    # One gradient per device. They are added up where no axis is automatic, or they would be gathered over tensor.
    own = jax.tree.map(lambda names: (*TOKENS, *names), whole, is_leaf=_is_axes)
    run = manual(run, (whole, ROWS, ROWS), (own, ROWS), AUTOMATIC)
    gradients, dx_BSD = run(*inputs, d_out_BSD)
    total = manual(lambda tree: jax.tree.map(lambda g, names: sum_gradient(g[0, 0], names), tree, axes), (own,), axes)
    return total(gradients), dx_BSD


in_parts.defvjp(_forward, _backward)


def _whole(axes: Any) -> Any:
    return jax.tree.map(replicated, axes, is_leaf=_is_axes)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)
