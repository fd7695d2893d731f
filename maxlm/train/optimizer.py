"""AdamW and Muon from optax, told by logical axes which parameter is a matrix and which one decays.

The transformation gives the direction for a learning rate of 1; the step multiplies by the learning rate.
"""

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from maxlm.config import OptimizerConfig
from maxlm.model.layers import is_matrix

# Root mean square of AdamW's update, to which Muon's is scaled so that one learning rate serves both
# (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
ADAM_RMS = 0.2

# Axes of a layer's matrices that a product sums over, by the axes in the order in which they are stored. The router is
# none of them: few columns, each of which should move by what its own expert was given, are AdamW's.
REDUCED = {
    ("embed", "heads", "head_dim"): (0,),
    ("embed", "kv_heads", "head_dim"): (0,),
    ("heads", "head_dim", "embed"): (0, 1),
    ("embed", "latent"): (0,),
    ("embed", "head_dim"): (0,),
    ("query_rank", "heads", "head_dim"): (0,),
    ("kv_rank", "heads", "head_dim"): (0,),
    ("embed", "mlp"): (0,),
    ("mlp", "embed"): (0,),
    ("expert_embed", "mlp"): (0,),
    ("mlp", "expert_embed"): (0,),
}

# Leading axes, over which there is one matrix each.
STACKED = ("repeats", "layers", "experts")


def build(config: OptimizerConfig, axes: dict) -> optax.GradientTransformation:
    """Direction (the negative update) for parameters with these logical axes."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.name == "muon":
        dims = jax.tree.map(muon_dimensions, axes, is_leaf=_is_axes)
        labels = jax.tree.map(lambda d: "adamw" if isinstance(d, optax.MaskedNode) else "muon", dims, is_leaf=_is_dims)
        muon = optax.chain(
            scale_by_muon(beta=config.momentum, weight_dimension_numbers=dims),
            optax.stateless(lambda updates, _: jax.tree.map(_match_adam, updates, dims, is_leaf=_is_dims)),
        )
        adam = optax.partition({"muon": muon, "adamw": adam}, labels)
    # Norms, biases and tables, that of the embeddings tied or not, do not decay.
    decay = optax.add_decayed_weights(config.weight_decay, jax.tree.map(is_matrix, axes, is_leaf=_is_axes))
    return optax.chain(adam, decay, optax.scale(-1.0))


def muon_dimensions(axes: tuple[str, ...]) -> MuonDimensionNumbers | optax.MaskedNode:
    """How a layer's matrix is seen as input x output, one per entry of leading axes; masked where AdamW takes it."""
    stack = sum(axis in STACKED for axis in axes)
    if axes[stack:] not in REDUCED:
        return optax.MaskedNode()
    reduced = tuple(stack + axis for axis in REDUCED[axes[stack:]])
    output = tuple(axis for axis in range(stack, len(axes)) if axis not in reduced)
    return MuonDimensionNumbers(reduction_axis=reduced, output_axis=output)


def _match_adam(update: jax.Array, dims: MuonDimensionNumbers | optax.MaskedNode):
    if isinstance(dims, optax.MaskedNode):
        return update
    sides = [jnp.prod(jnp.array([update.shape[axis] for axis in side])) for side in dims]
    return update * (ADAM_RMS * jnp.sqrt(jnp.maximum(*sides).astype(jnp.float32)))


def _is_axes(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(axis, str) for axis in node)


def _is_dims(node) -> bool:
    return isinstance(node, MuonDimensionNumbers | optax.MaskedNode)
