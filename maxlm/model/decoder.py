"""The one decoder: embedding, repeating blocks of layers run by a scan, final norm, output matrix.

Layers form blocks of a repeating pattern (`ModelConfig.window_pattern`); each position of the pattern has its own
stack of parameters with a leading axis over the repeats, so layer r * period + p is entry r of stack p. The
compiled program, and the time to compile it, do not grow with depth.

    graphdef, axes = abstract(config.model)            # structure, and the logical axes of every parameter
    params = initial_parameters(config.model, key)     # nested dict of arrays
    logits = nnx.merge(graphdef, params)(tokens)       # [B, S, V]
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config import ModelConfig
from maxlm.model.attention import KeyValues
from maxlm.model.layers import Layer, RMSNorm, parameter, rope_tables
from maxlm.parallel.sharding import shard

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

RematPolicy = str | tuple[str, ...]
Caches = dict[str, KeyValues]  # per position of the pattern, every leaf with a leading axis over the repeats


class Decoder(nnx.Module):
    """A causal language model; `dtype` is the type of activations and matrix products."""

    def __init__(
        self,
        config: ModelConfig,
        key: jax.Array,
        *,
        params_dtype: Any = jnp.float32,
        dtype: Any = jnp.float32,
        remat: RematPolicy = "none",
    ):
        embedding_key, layers_key, output_key = jax.random.split(key, 3)
        table, std = (config.vocab_size, config.embed_dim), config.init_std
        self.config, self.dtype, self.remat = config, dtype, remat
        self.embedding = parameter(embedding_key, table, ("vocab", "embed"), std, params_dtype)
        self.blocks = nnx.Dict()
        period = len(config.window_pattern)
        # One key per layer, so that a layer's parameters depend on its number alone.
        keys = jax.random.split(layers_key, config.num_layers).reshape(-1, period)
        for position, window in enumerate(config.window_pattern):
            build = functools.partial(Layer, config, window, dtype=params_dtype)
            self.blocks[str(position)] = nnx.vmap(build)(keys[:, position])
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps, params_dtype)
        if config.tie_embeddings:
            self.output = None
        else:
            self.output = parameter(output_key, table[::-1], ("embed", "vocab"), std, params_dtype)

    def __call__(self, tokens_BS, segment_ids=None, positions=None) -> jax.Array:
        """Logits, float32 [B, S, V], of int32 tokens [B, S]; by default each row is one document."""
        x_BSD, _ = self.hidden(tokens_BS, segment_ids, positions)
        return self.logits(x_BSD)

    def hidden(self, tokens_BS, segment_ids=None, positions=None, caches: Caches | None = None):
        """Final hidden states [B, S, D] before the output matrix, and the caches extended by these tokens."""
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens_BS)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        # Gathered over the batch's axes first: looking rows up in a table split by width would move activations.
        table_VD = shard(self.embedding[...].astype(self.dtype), "vocab", None)
        x_BSD = shard(table_VD[tokens_BS], "batch", "sequence", "residual")
        rope = rope_tables(positions, self.config.head_dim, self.config.rope.theta)
        x_BSD, caches = self._run_blocks(x_BSD, rope, segment_ids, caches)
        return self.final_norm(x_BSD), caches

    def output_matrix(self) -> jax.Array:
        """[D, V] in the compute type; the transposed embedding table where the two are tied."""
        matrix = self.embedding[...].T if self.output is None else self.output[...]
        return shard(matrix.astype(self.dtype), None, "vocab")

    def logits(self, x_BSD: jax.Array) -> jax.Array:
        logits_BSV = jnp.einsum("BSD,DV->BSV", x_BSD, self.output_matrix(), preferred_element_type=jnp.float32)
        return shard(logits_BSV, "batch", "sequence", "vocab")

    def empty_caches(self, batch: int, slots: int) -> Caches:
        """Caches for `slots` tokens of `batch` rows."""
        config = self.config
        repeats = config.num_layers // len(self.blocks)
        kv_shape = (repeats, batch, slots, config.num_kv_heads, config.head_dim)

        def empty() -> KeyValues:
            # Arrays of their own: callers donate them.
            key, value = jnp.zeros(kv_shape, self.dtype), jnp.zeros(kv_shape, self.dtype)
            return KeyValues(key, value, jnp.zeros((repeats, batch, slots), jnp.int32), jnp.zeros(repeats, jnp.int32))

        return {position: empty() for position in self.blocks}

    def _run_blocks(self, x_BSD, rope, segment_ids, caches: Caches | None):
        stacks = {position: nnx.split(stack) for position, stack in self.blocks.items()}

        def layer(graphdef, params, x_BSD, cache):
            return nnx.merge(graphdef, params)(x_BSD, rope, segment_ids, cache)

        def block(x_BSD, repeat):
            params, caches = repeat
            extended = {}
            for position, (graphdef, _) in stacks.items():
                run = _checkpointed(functools.partial(layer, graphdef), self.remat)
                cache = None if caches is None else caches[position]
                x_BSD, extended[position] = run(params[position], x_BSD, cache)
            return x_BSD, None if caches is None else extended

        params = {position: state for position, (_, state) in stacks.items()}
        return jax.lax.scan(block, x_BSD, (params, caches))


def _checkpointed(function, remat: RematPolicy):
    if remat == "none":
        return function
    if isinstance(remat, tuple):
        policy = jax.checkpoint_policies.save_only_these_names(*remat)
    else:
        policy = REMAT_POLICIES[remat]
    # The scan around it already keeps XLA from merging the two forward passes.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def abstract(config: ModelConfig, **options) -> tuple[nnx.GraphDef, dict, dict]:
    """Structure of the decoder without computing anything: graphdef, parameter shapes, and their logical axes.

    The two nested dicts have the same structure; their leaves are `jax.ShapeDtypeStruct` and tuples of names.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, jax.random.key(0), **options)))

    def axes_of(_, variable):
        axes = tuple(variable.get_metadata("logical_axes"))
        stacked = len(variable.get_value().shape) - len(axes)
        return ("layers",) * stacked + axes

    return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(nnx.map_state(axes_of, state))


def initial_parameters(config: ModelConfig, key: jax.Array, **options) -> dict:
    """Nested dict of parameters; equal on every mesh when run under jit with the parameters' shardings."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, key, **options)))
