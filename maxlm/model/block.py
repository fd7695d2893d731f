"""A decoder layer, and the scan over repeating blocks of layers."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config import ModelConfig
from maxlm.model.cache import Caches, KeyValues
from maxlm.model.latent import LatentAttention
from maxlm.model.layers import MLP, Attention, Options, RematPolicy, is_matrix, whole
from maxlm.model.moe import MoE, RouterStats
from maxlm.model.norms import Norm, stream_norm
from maxlm.model.positions import Rotations, rotations
from maxlm.parallel.sharding import shard

LAYER_INPUT = "layer_input"  # name of what a layer needs to be computed again

REMAT_POLICIES = {
    # By name what a policy cannot see: attention's products have batch dimensions, or stand in a kernel that would run
    # again; the MLP's stand in functions with a gradient of their own.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention", "mlp_gate", "mlp_up"),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Places(NamedTuple):
    """Where tokens stand, each of the shape [B, S]."""

    segment_ids_BS: jax.Array  # documents of a row, numbered from 1; 0 is padding
    positions_BS: jax.Array  # in the document
    prefix_BS: jax.Array | None = None  # bool, tokens of a document's bidirectional prefix
    lengths_BS: jax.Array | None = None  # of the document, where rotations depend on it: `rotation_lengths`


Routers = dict[str, RouterStats]  # per position with experts, every leaf with a leading axis over the blocks


class Layer(nnx.Module):
    """Residual layer: x + attention(norm(x)), then x + mlp(norm(x)); or x + norm(attention(x)); or with both norms."""

    def __init__(self, config: ModelConfig, number: int, key: jax.Array, options: Options):
        attention, mlp = jax.random.split(key)
        dtype = options.params_dtype
        # GPT-2's scaling of what is added to the residual stream, two additions a layer.
        out_std = config.init_std / (2 * config.num_layers) ** 0.5
        before, after = config.norm_place != "after", config.norm_place != "before"
        self.attention_norm = stream_norm(config, dtype) if before else None
        self.attention_out_norm = stream_norm(config, dtype) if after else None
        attend = Attention if config.latent is None else LatentAttention
        self.attention = attend(config, config.window_of(number), out_std, attention, options)
        self.mlp_norm = stream_norm(config, dtype) if before else None
        self.mlp_out_norm = stream_norm(config, dtype) if after else None
        self.routed = config.has_experts(number)
        if self.routed:
            exchange, pieces = options.parallel.exchange, options.parallel.exchange_pieces
            self.mlp = MoE(config, out_std, mlp, dtype, platform=options.platform, exchange=exchange, pieces=pieces)
        else:
            self.mlp = MLP(config, config.mlp_dim, out_std, mlp, dtype)
        self.residual, self.mlp_chunks = options.residual, options.mlp_chunks

    def __call__(self, x_BSD, rope: Rotations, segment_ids_BS, cache: KeyValues | None, prefix_BS=None):
        """The rows after the layer, the extended cache, and what the router did (None without experts)."""
        x_BSD, stats = shard(x_BSD, *self.residual), None
        normed_BSD = _normed(x_BSD, self.attention_norm)
        mixed_BSD, cache = self.attention(normed_BSD, rope, segment_ids_BS, cache, prefix_BS)
        mixed_BSD = checkpoint_name(shard(mixed_BSD, *self.residual), "attention_out")
        x_BSD = x_BSD + _normed(mixed_BSD, self.attention_out_norm)
        normed_BSD = whole(_normed(x_BSD, self.mlp_norm), self.residual)
        if self.routed:
            out_BSD, stats = self.mlp(normed_BSD, segment_ids_BS)
        else:
            out_BSD = self.mlp(normed_BSD, self.mlp_chunks)
        return x_BSD + _normed(shard(out_BSD, *self.residual), self.mlp_out_norm), cache, stats


def _normed(x_BSD: jax.Array, norm: Norm | None) -> jax.Array:
    return x_BSD if norm is None else norm(x_BSD)


def _cast(dtype, _, param):
    """A matrix in the compute type; the router's, as all that is small, in its own."""
    axes = param.get_metadata("logical_axes")
    return param.replace(param[...].astype(dtype)) if is_matrix(axes) and "experts_router" not in axes else param


def run_blocks(
    stacks: dict, x_BSD, places: Places, config: ModelConfig, options: Options, caches: Caches | None = None
):
    """Blocks of layers, one after the other.

    Args:
        stacks: per position of the pattern (graphdef, parameters with a leading axis over the blocks).
        caches: per position of the pattern, likewise with a leading axis; or None.
    Returns: the rows, the extended caches, and the routers' statistics with a leading axis over the blocks.
    """
    rope = rotations(places.positions_BS, config, places.lengths_BS)

    def layer(graphdef, params, x_BSD, cache):
        return nnx.merge(graphdef, params)(x_BSD, rope, places.segment_ids_BS, cache, places.prefix_BS)

    def block(carry, repeat):
        (x_BSD, caches), (params, number), routers = carry, repeat, {}
        for position, (graphdef, _) in stacks.items():
            run = checkpointed(functools.partial(layer, graphdef), options.remat)
            cache = None if caches is None else jax.tree.map(lambda kept: kept[number], caches[position])
            x_BSD = checkpoint_name(x_BSD, LAYER_INPUT)
            x_BSD, cache, stats = run(params[position], x_BSD, cache)
            if caches is not None:
                caches |= {position: jax.tree.map(lambda kept, one: kept.at[number].set(one), caches[position], cache)}
            if stats is not None:
                routers[position] = stats
        return (x_BSD, caches), routers

    # In the compute type before the scan, so that it stacks the layers' gradients in the type in which they travelled.
    params = {
        position: nnx.map_state(functools.partial(_cast, options.dtype), state)
        for position, (_, state) in stacks.items()
    }
    # Carried along, caches are written where they are; what a scan reads and what it writes would be two copies.
    numbers = None if caches is None else jnp.arange(config.num_blocks)
    (x_BSD, caches), routers = jax.lax.scan(block, (x_BSD, caches), (params, numbers))
    return x_BSD, caches, routers


def checkpointed(function, remat: RematPolicy, in_scan: bool = True):
    """A layer that keeps for its backward pass what the policy says, and its inputs."""
    if remat == "none":
        return function
    if remat == "offload":
        function = _from_named_input(function)
    # A scan around it keeps XLA from merging the two forward passes; elsewhere that has to be asked for.
    return jax.checkpoint(function, policy=_policy(remat), prevent_cse=not in_scan)


def _from_named_input(function):
    """The layer, with its input named inside: what a policy may move away."""
    return lambda params, x_BSD, cache: function(params, checkpoint_name(x_BSD, LAYER_INPUT), cache)


def checkpointed_stage(function, remat: RematPolicy, whole: bool):
    """A stage of a pipeline, whose layers keep as much as elsewhere; with `whole` it keeps its own input alone.

    Recomputation takes the stage's parameters out of the stack again. Otherwise each tick would keep a copy of them;
    or, were they the same at every tick, JAX would gather them before the loop over ticks and keep them whole.
    """
    if whole:
        return jax.checkpoint(function, policy=_policy("full"), prevent_cse=False)
    if remat == "none":
        return function
    if remat == "offload":  # names the layers' inputs itself
        return jax.checkpoint(function, policy=_policy(remat), prevent_cse=False)
    kept = jax.checkpoint_policies.save_from_both_policies(
        _policy(remat), jax.checkpoint_policies.save_only_these_names(LAYER_INPUT)
    )
    return jax.checkpoint(function, policy=kept, prevent_cse=False)


def _policy(remat: RematPolicy):
    if isinstance(remat, tuple):
        return jax.checkpoint_policies.save_only_these_names(*remat)
    return REMAT_POLICIES[remat]
