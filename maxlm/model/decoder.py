"""The one decoder: embedding, repeating blocks of layers, final norm, output matrix.

Layers form blocks of a repeating pattern (`ModelConfig.period`); each position of the pattern has its own stack of
parameters with a leading axis over the blocks, so layer b * period + p is entry b of stack p. A scan runs the blocks:
the compiled program, and the time to compile it, do not grow with depth. Layers that do not repeat (the first ones of
a model with experts, where they are dense; what num_layers has beyond whole patterns of windows) stand before the
blocks, and are not part of a pipeline's stages.

    graphdef, shapes, axes = abstract(config.model)    # structure, and the logical axes of every parameter
    params = initial_parameters(config.model, key)     # nested dict of arrays
    logits = nnx.merge(graphdef, params)(tokens)       # [B, S, V]
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config import ModelConfig
from maxlm.model.block import Layer, Places, Routers, checkpointed, checkpointed_stage, run_blocks
from maxlm.model.cache import Caches, KeyValues, empty_keys, empty_text
from maxlm.model.layers import POSITIONS, TABLE, Options, look_up, parameter, weight, whole
from maxlm.model.mask import capped
from maxlm.model.norms import stream_norm
from maxlm.model.positions import rotation_lengths, rotations
from maxlm.parallel.pipeline import pipeline
from maxlm.parallel.sharding import axis_size, replicated, shard

DEFAULT = Options()

# Names of the leading axes of stacked parameters, the last one where there is one alone.
STACK_AXES = ("repeats", "layers")

TEXT = "text"  # the name of the tokens themselves among the caches


class Hidden(NamedTuple):
    """What the layers make of tokens."""

    x_BSD: jax.Array  # final hidden states, before the output matrix
    caches: Caches | None  # extended by the tokens
    routers: Routers  # statistics per position with experts, with a leading axis over the blocks


class Decoder(nnx.Module):
    """A causal language model, whose batches may have prefixes within which every token sees every other."""

    def __init__(self, config: ModelConfig, key: jax.Array, options: Options = DEFAULT):
        embedding_key, layers_key, output_key = jax.random.split(key, 3)
        table, std, dtype = (config.vocab_size, config.embed_dim), config.init_std, options.params_dtype
        self.config, self.options = config, options
        self.embedding = parameter(embedding_key, table, TABLE, std, dtype)
        if config.learned_positions is None:
            self.positions = None
        else:
            rows = (config.learned_positions, config.embed_dim)
            self.positions = parameter(jax.random.fold_in(embedding_key, 1), rows, POSITIONS, std, dtype)
        # One key per layer, so that a layer's parameters depend on its number alone.
        keys, first = jax.random.split(layers_key, config.num_layers), config.first_layers
        self.first = nnx.List([Layer(config, number, keys[number], options) for number in range(first)])
        repeats = (options.pipeline.repeats,) if options.pipeline.repeats > 1 else ()
        keys = keys[first:].reshape(*repeats, -1, config.period)
        self.blocks = nnx.Dict()
        for position in range(config.period):
            build = functools.partial(Layer, config, first + position, options=options)
            for _ in range(1 + len(repeats)):
                build = nnx.vmap(build)
            self.blocks[str(position)] = build(keys[..., position])
        self.final_norm = stream_norm(config, dtype)
        if config.tie_embeddings:
            self.output = None
        else:
            self.output = parameter(output_key, table[::-1], TABLE[::-1], std, dtype)

    def __call__(self, tokens_BS, segment_ids=None, positions=None, prefix=None) -> jax.Array:
        """Logits, float32 [B, S, V], of int32 tokens [B, S]; by default each row is one document without a prefix."""
        return self.logits(self.hidden(tokens_BS, segment_ids, positions, prefix=prefix).x_BSD)

    def hidden(self, tokens_BS, segment_ids=None, positions=None, caches: Caches | None = None, prefix=None) -> Hidden:
        """Everything but the output matrix. On a mesh with a context axis columns are in `sequence_order`.

        Positions are below `ModelConfig.learned_positions` where there are such. `prefix`, bool [B, S], marks the
        tokens of a document that see each other in both directions; decoding (caches) is causal and takes none.
        """
        if prefix is not None and caches is not None:
            raise ValueError("found a prefix and caches; decoding with a cache is causal, leave one of them out")
        if caches is not None and axis_size("pipeline") * axis_size("context") > 1:
            raise ValueError("found caches on a mesh with pipeline or context; decode on one without these axes")
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens_BS)
        if positions is None:
            rows = self.config.learned_positions
            if rows is not None and tokens_BS.shape[1] > rows:
                raise ValueError(f"{tokens_BS.shape[1]} tokens in a row, found {rows} learned positions")
            positions = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        if caches is not None and TEXT in caches:
            return self._extend(tokens_BS, segment_ids, positions, caches)
        lengths = rotation_lengths(segment_ids, positions, self.config)
        return self._pass(tokens_BS, Places(segment_ids, positions, prefix, lengths), caches)

    def _pass(self, tokens_BS, places: Places, caches: Caches | None) -> Hidden:
        """Tokens through all layers."""
        x_BSD, options = self._embed(tokens_BS, places.positions_BS), self.options
        x_BSD, caches = self._run_first(x_BSD, places, caches)
        blocks = None if caches is None else {position: caches[position] for position in self.blocks}
        x_BSD, blocks, routers = self._run_blocks(x_BSD, places, blocks)
        caches = None if caches is None else caches | blocks
        return Hidden(whole(self.final_norm(x_BSD), options.residual), caches, routers)

    def _extend(self, tokens_BS, segment_ids_BS, positions_BS, caches: Caches) -> Hidden:
        """Decoding where rotations depend on the length of a document.

        Whenever new tokens change them for earlier ones, all tokens pass the layers again. With longrope that is once,
        where a document outgrows `original_length`; with dynamic at every call from there on.
        """
        before, caches = caches[TEXT], {name: cache for name, cache in caches.items() if name != TEXT}
        text, count = before.extend(tokens_BS, segment_ids_BS, positions_BS, self.config), tokens_BS.shape[1]

        def new_ones(caches: Caches) -> Hidden:
            lengths_BS = jax.lax.dynamic_slice_in_dim(text.lengths_BT, before.length, count, axis=1)
            return self._pass(tokens_BS, Places(segment_ids_BS, positions_BS, None, lengths_BS), caches)

        def all_of_them(caches: Caches) -> Hidden:
            # The new tokens come last, and the next ones take the slots of the padding before the text.
            tokens_BT, segment_ids_BT, positions_BT, lengths_BT = text.right_aligned()
            places = Places(segment_ids_BT, positions_BT, None, lengths_BT)
            hidden = self._pass(tokens_BT, places, jax.tree.map(jnp.zeros_like, caches))
            return hidden._replace(x_BSD=hidden.x_BSD[:, -count:])

        hidden = jax.lax.cond(text.outdates(before), all_of_them, new_ones, caches)
        return hidden._replace(caches=hidden.caches | {TEXT: text})

    def output_matrix(self) -> jax.Array:
        """[D, V] in the compute type; the transposed embedding table where the two are tied."""
        if self.output is None:
            return weight(self.embedding, self.options.dtype).T
        return weight(self.output, self.options.dtype)

    def stored_output(self) -> tuple[jax.Array, tuple[str | None, str | None]]:
        """The output matrix [D, V] in the compute type as it is sharded, and its logical axes so."""
        axes = TABLE[::-1] if self.options.parallel.zero == 3 else replicated(TABLE[::-1])
        matrix_DV = self.embedding[...].T if self.output is None else self.output[...]
        return matrix_DV.astype(self.options.dtype), axes

    def logits(self, x_BSD: jax.Array) -> jax.Array:
        """Float32 [B, S, V] of final hidden states, capped where the model caps them."""
        logits_BSV = jnp.einsum("BSD,DV->BSV", x_BSD, self.output_matrix(), preferred_element_type=jnp.float32)
        return shard(capped(logits_BSV, self.config.logit_softcap), "batch", "sequence", "vocab")

    def empty_caches(self, batch: int, slots: int) -> Caches:
        """Caches for `slots` tokens of `batch` rows; at most as many as its window is wide in a layer that has one.

        A layer takes 2 K E numbers of the compute type a slot and row, or with `latent` those of the latent and the
        rotated key. On the mesh set by `jax.set_mesh` rows are
        sharded as a batch and heads over `tensor`.
        """
        config = self.config

        def empty(number: int, *stack: int) -> KeyValues:
            window, heads, width = config.window_of(number), config.num_kv_heads, config.head_dim
            if config.latent is not None:  # one key for all heads, whose first part is the value
                heads, width = 1, config.latent.kv_rank + config.latent.rope_head_dim
            shape = (batch, min(slots, window or slots), heads, width)
            return empty_keys(shape, config.latent is None, self.options.dtype, stack)

        first = config.first_layers
        caches: Caches = {f"first{number}": empty(number) for number in range(first)}
        caches |= {position: empty(first + int(position), config.num_blocks) for position in self.blocks}
        by_length = config.rope.by_length and config.learned_positions is None
        return caches | ({TEXT: empty_text(batch, slots)} if by_length else {})

    def _embed(self, tokens_BS, positions) -> jax.Array:
        """The rows [B, S, D] that the layers begin with."""
        x_BSD = self._rows(self.embedding, tokens_BS)
        if self.config.scale_embeddings:
            # The factor is rounded to the compute type, as where these models come from.
            x_BSD = x_BSD * self.config.embed_dim**0.5
        if self.positions is not None:
            x_BSD = x_BSD + self._rows(self.positions, positions)
        return x_BSD

    def _rows(self, table: nnx.Param, index_BS) -> jax.Array:
        axes = table.get_metadata("logical_axes")
        axes = axes if self.options.parallel.zero == 3 else replicated(axes)
        return shard(look_up(table[...].astype(self.options.dtype), axes, index_BS), *self.options.residual)

    def _run_first(self, x_BSD, places: Places, caches: Caches | None):
        """The layers before the blocks, which every device runs on its part of the batch."""
        rope = rotations(places.positions_BS, self.config, places.lengths_BS)
        for number, layer in enumerate(self.first):
            graphdef, params = nnx.split(layer)

            def run(params, x_BSD, cache, graphdef=graphdef):
                return nnx.merge(graphdef, params)(x_BSD, rope, places.segment_ids_BS, cache, places.prefix_BS)

            cache = None if caches is None else caches[f"first{number}"]
            x_BSD, cache, _ = checkpointed(run, self.options.remat, in_scan=False)(params, x_BSD, cache)
            caches = None if caches is None else caches | {f"first{number}": cache}
        return x_BSD, caches

    def _run_blocks(self, x_BSD, places: Places, caches: Caches | None):
        config, options = self.config, self.options
        stacks = {position: nnx.split(stack) for position, stack in self.blocks.items()}
        if axis_size("pipeline") == 1:
            return run_blocks(stacks, x_BSD, places, config, options, caches)
        schedule = options.pipeline

        def stage(params, repeat, x_bSD, places):
            own = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, repeat, 0, keepdims=False), params)
            stacks_of_stage = {position: (graphdef, own[position]) for position, (graphdef, _) in stacks.items()}
            x_bSD, _, routers = run_blocks(stacks_of_stage, x_bSD, places, config, options)
            return x_bSD, routers

        stage = checkpointed_stage(stage, options.remat, whole=schedule.remat_stages or schedule.repeats > 1)
        params = {position: state for position, (_, state) in stacks.items()}
        if schedule.repeats == 1:
            params = jax.tree.map(lambda p: p[None], params)
        x_BSD, routers = pipeline(
            stage,
            params,
            x_BSD,
            places,
            microbatches=schedule.microbatches,
            repeats=schedule.repeats,
            rest=options.residual[1:],
        )
        return x_BSD, None, jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), routers)


def abstract(config: ModelConfig, **options) -> tuple[nnx.GraphDef, dict, dict]:
    """Structure of the decoder without computing anything: graphdef, parameter shapes, and their logical axes.

    The two nested dicts have the same structure; their leaves are `jax.ShapeDtypeStruct` and tuples of names.
    """
    build = functools.partial(Decoder, config, options=Options(**options))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def axes_of(_, variable):
        axes = tuple(variable.get_metadata("logical_axes"))
        stacked = len(variable.get_value().shape) - len(axes)
        return STACK_AXES[len(STACK_AXES) - stacked :] + axes

    return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(nnx.map_state(axes_of, state))


def initial_parameters(config: ModelConfig, key: jax.Array, **options) -> dict:
    """Nested dict of parameters; equal on every mesh when run under jit with the parameters' shardings."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, key, Options(**options))))
