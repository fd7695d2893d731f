"""Decoding with key/value caches: prompts in, token ids out. Axis letters as in model/layers.py; C tokens of a chunk.

    texts = generate(graphdef, params, prompts, max_tokens=256, sampling=Sampling(temperature=0), stop_ids=[2])
    for drawn in stream(graphdef, params, prompts, max_tokens=256): ...

Prompts of similar length are decoded together. They stand at the right end of their rows: what is before them is
padding of segment 0, which no token sees, so that a text depends on its prompt, the seed and its number alone. Two
programs run, on the mesh that the parameters are on: one reads the prompts, the other draws up to CHUNK tokens per row
before the host looks at them. Widths, caches and numbers of rows are rounded up, so that few programs are compiled.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.errors import ConfigError
from maxlm.evaluate.sampling import Sampling, sample
from maxlm.model.cache import Caches
from maxlm.parallel.sharding import RULES, shard

CHUNK = 64  # most tokens that are drawn between two looks of the host
CHUNK_SECONDS = 0.1  # what a chunk should take, so that a text that is shown as it comes comes smoothly
# Tokens of a prompt that are read at one time: attention over a cache holds their scores against all of its slots.
PREFILL = 512
LEAST_WIDTH = 16  # of a batch of prompts, in tokens
BATCH_SIZE = 16
DEFAULT = Sampling()
SORTED_BATCHES = 16  # so many batches are sorted by length together; texts come out in about the order of the prompts


class Drawn(NamedTuple):
    """New tokens of one prompt."""

    number: int  # of the prompt
    ids: list[int]  # without the one that ends the text
    logprobs: list[float]  # natural logarithms of their probabilities, before temperature and truncation
    finish: str | None  # why the text ends here: "stop" or "length"; None while it goes on


@dataclass
class Generated:
    """What continues one prompt; the fields are those of `Drawn`."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None


class FirstTokens(NamedTuple):
    """What the first token of some prompts has to be."""

    allowed_V: np.ndarray  # bool, of the ids from 0 on; others are not allowed
    numbers: AbstractSet[int]  # of those prompts


def generate(graphdef: nnx.GraphDef, params: dict, prompts: Sequence[Sequence[int]], **options: Any) -> list[Generated]:
    """What continues each prompt, in their order; options and errors as of `stream`."""
    results = [Generated() for _ in prompts]
    for drawn in stream(graphdef, params, prompts, **options):
        result = results[drawn.number]
        result.ids += drawn.ids
        result.logprobs += drawn.logprobs
        result.finish = drawn.finish
    return results


def stream(
    graphdef: nnx.GraphDef,
    params: dict,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling = DEFAULT,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    vocab_size: int | None = None,
    first: FirstTokens | None = None,
    batch_size: int = BATCH_SIZE,
    ended: AbstractSet[int] = frozenset(),
) -> Iterator[Drawn]:
    """Tokens that continue the prompts, as they are drawn.

    Token i of prompt n is drawn with the key fold_in(fold_in(key(seed), n), i): the same whatever batch it is in.

    Args:
        max_tokens: most tokens per prompt.
        stop_ids: a text ends before the first of these.
        vocab_size: ids from here on, rows of the table that pad it, are never drawn; None for no such rows.
        first: what first tokens are restricted to.
        batch_size: prompts that are decoded together, rounded up to what the mesh divides.
        ended: numbers of prompts of which the caller wants no more; it may add to them between two results.

    Raises `ConfigError` for a prompt without a token, or one that needs more learned positions than there are.
    """
    decoding = Decoding(graphdef, params, sampling, seed, stop_ids, vocab_size, first)
    for number, prompt in enumerate(prompts):
        decoding.check(number if len(prompts) > 1 else None, prompt, max_tokens)
    batch_size = math.ceil(batch_size / decoding.shards) * decoding.shards
    for start in range(0, len(prompts), SORTED_BATCHES * batch_size):
        numbers = range(start, min(start + SORTED_BATCHES * batch_size, len(prompts)))
        by_length = sorted(numbers, key=lambda number: len(prompts[number]))
        for first_row in range(0, len(by_length), batch_size):
            batch = {number: prompts[number] for number in by_length[first_row : first_row + batch_size]}
            yield from _continue(decoding, batch, max_tokens, ended)


def _continue(
    decoding: "Decoding", prompts: dict[int, Sequence[int]], max_tokens: int, ended: AbstractSet[int]
) -> Iterator[Drawn]:
    """`stream` of one batch."""
    numbers, counts, steps = list(prompts), dict.fromkeys(prompts, 0), 1
    chunk, before = decoding.read(prompts, max_tokens), time.monotonic()
    while True:
        for row, number in enumerate(numbers):
            if number not in counts:
                continue
            ids = chunk.tokens_BC[row].tolist()
            end = next((place for place, token in enumerate(ids) if token in decoding.stop_ids), None)
            counts[number] += len(ids[:end])
            finish = "length" if counts[number] == max_tokens else None
            finish = finish if end is None else "stop"
            yield Drawn(number, ids[:end], chunk.logprobs_BC[row, :end].tolist(), finish)
            if finish or number in ended:
                del counts[number]
        if not counts:
            return
        now = time.monotonic()
        steps = max(1, min(2 * steps, round(steps * CHUNK_SECONDS / max(now - before, 1e-6)), CHUNK))
        steps = CHUNK if jax.process_count() > 1 else steps  # processes have clocks of their own
        before = now
        chunk = decoding.draw(
            min(steps, max_tokens - max(counts.values())), np.array([number not in counts for number in numbers])
        )


class Chunk(NamedTuple):
    """What the host sees: every row's tokens, int32, and their log-probabilities; nothing after the last row's end."""

    tokens_BC: np.ndarray
    logprobs_BC: np.ndarray


class Rules(NamedTuple):
    """How tokens are drawn, on the device."""

    keys_B: jax.Array  # one of each prompt
    stop_N: jax.Array  # int32, with -1 where there are fewer
    allowed_V: jax.Array  # bool
    first_V: jax.Array  # bool, of the rows below
    restricted_B: jax.Array  # bool, rows whose first token is one of first_V


class State(NamedTuple):
    """What goes from token to token, on the device."""

    caches: Caches
    token_B: jax.Array  # int32, drawn and not read yet
    position_B: jax.Array  # int32, its own
    done_B: jax.Array  # bool
    count: jax.Array  # int32 scalar, tokens drawn per row


class Decoding:
    """The programs for one model and one way to draw, with the state of the batch that they work on."""

    def __init__(self, graphdef, params, sampling: Sampling, seed: int, stop_ids, vocab_size, first):
        self.graphdef, self.params, self.sampling = graphdef, params, sampling
        self.stop_ids, self.first, self.key = frozenset(stop_ids), first, jax.random.key(seed)
        self.allowed_V = np.arange(params["embedding"].shape[0]) < (vocab_size or math.inf)
        sharding = params["embedding"].sharding
        self.mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        self.shards = 1 if self.mesh is None else _batch_shards(self.mesh)

    def check(self, number: int | None, prompt: Sequence[int], max_tokens: int) -> None:
        name = "the prompt" if number is None else f"prompt {number + 1}"
        if not len(prompt):
            raise ConfigError(f"{name} holds no token; give some text")
        # The last token drawn is not read.
        needed, rows = len(prompt) + max_tokens - 1, self.params.get("positions", np.empty(0)).shape[0]
        if rows and needed > rows:
            raise ConfigError(
                f"{len(prompt)} tokens of {name} and {max_tokens} more need {needed} positions, the model has {rows}; "
                "give a shorter prompt or fewer tokens"
            )

    def read(self, prompts: dict[int, Sequence[int]], max_tokens: int) -> Chunk:
        """Begin with these prompts, by their numbers; the first token of each."""
        longest = max(map(len, prompts.values()))
        width = max(LEAST_WIDTH, 1 << (longest - 1).bit_length())
        piece = width if self._by_length() else min(width, PREFILL)
        slots = rounded(math.ceil(longest / piece) * piece + max_tokens)
        rows = self.shards * (1 << (math.ceil(len(prompts) / self.shards) - 1).bit_length())
        tokens_BS, lengths_B = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts.values()):
            tokens_BS[row, width - len(prompt) :], lengths_B[row] = prompt, len(prompt)
        self.rules = self._rules(list(prompts), rows)
        with self._on_mesh():
            self.state, logprob_B = _read(
                self.graphdef, self.params, tokens_BS, lengths_B, self.rules, self.sampling, slots=slots, piece=piece
            )
        token_B = jnp.copy(self.state.token_B)  # the state is donated
        # No step: the other program is compiled while the device reads the prompts.
        self.draw(0, np.zeros(len(prompts), bool))
        token_B, logprob_B = self._to_host((token_B, logprob_B))
        return Chunk(token_B[:, None], logprob_B[:, None])

    def draw(self, steps: int, ended_B: np.ndarray) -> Chunk:
        """Up to `steps` more tokens, fewer where all rows end before; rows in `ended_B` draw no more."""
        ended_B = np.pad(ended_B, (0, len(self.state.token_B) - len(ended_B)), constant_values=True)
        with self._on_mesh():
            self.state, count, *arrays = _draw(
                self.graphdef, self.params, self.state, self.rules, self.sampling, np.int32(steps), ended_B
            )
        count, tokens_BC, logprobs_BC = self._to_host((count, *arrays))
        return Chunk(tokens_BC[:, :count], logprobs_BC[:, :count])

    def _rules(self, numbers: list[int], rows: int) -> Rules:
        first_V, restricted = np.zeros_like(self.allowed_V), frozenset()
        if self.first is not None:
            first_V[: len(self.first.allowed_V)], restricted = self.first
        stop_N = np.full(rounded(len(self.stop_ids)), -1, np.int32)
        stop_N[: len(self.stop_ids)] = sorted(self.stop_ids)
        padded = np.array(numbers + numbers[:1] * (rows - len(numbers)), np.uint32)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(self.key, padded)
        restricted_B = np.isin(padded, list(restricted))
        return Rules(keys_B, stop_N, self.allowed_V, first_V, restricted_B)

    def _by_length(self) -> bool:
        return nnx.merge(self.graphdef, self.params).config.rope.by_length

    def _to_host(self, arrays: tuple[jax.Array, ...]) -> tuple[np.ndarray, ...]:
        """The arrays in every process, of which each holds a part where there are several."""
        if jax.process_count() > 1:
            with self._on_mesh():
                arrays = _replicated(arrays)
        return jax.device_get(arrays)

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


@partial(jax.jit, out_shardings=PartitionSpec())
def _replicated(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return arrays


def rounded(size: int) -> int:
    """The least of 16, 20, 24, 28, 32, 40, ... that is at least so large: at most a quarter more."""
    step = max(4, 1 << max(size - 1, 0).bit_length() >> 3)
    return max(16, math.ceil(size / step) * step)


def _batch_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[name] for name in RULES["batch"])


@partial(jax.jit, static_argnames=("graphdef", "sampling", "slots", "piece"))
def _read(graphdef, params, tokens_BS, lengths_B, rules: Rules, sampling: Sampling, *, slots: int, piece: int):
    """Read the prompts piece by piece, leaving out pieces that are padding in all rows, and draw a token of each.

    Returns: the state and the log-probabilities of the tokens, float32 [B].
    """
    model = nnx.merge(graphdef, params)
    batch, width = tokens_BS.shape
    positions_BS = jnp.arange(width) - (width - lengths_B[:, None])

    def read(number, carry):
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=number * piece, slice_size=piece, axis=1)
        positions_BP = part(positions_BS)
        segment_ids_BP = (positions_BP >= 0).astype(jnp.int32)
        hidden = model.hidden(part(tokens_BS), segment_ids_BP, jnp.maximum(positions_BP, 0), carry[1])
        return hidden.x_BSD[:, -1], hidden.caches

    x_BD = shard(jnp.zeros((batch, model.config.embed_dim), model.options.dtype), "batch", None)
    first = (width - jnp.max(lengths_B)) // piece
    x_BD, caches = jax.lax.fori_loop(first, width // piece, read, (x_BD, model.empty_caches(batch, slots)))
    allowed_BV = rules.allowed_V & (rules.first_V | ~rules.restricted_B[:, None])
    token_B, logprob_B = _next(model, x_BD, 0, rules, allowed_BV, sampling)
    done_B = (lengths_B == 0) | jnp.isin(token_B, rules.stop_N)
    return State(caches, token_B, shard(lengths_B, "batch"), shard(done_B, "batch"), jnp.int32(1)), logprob_B


@partial(jax.jit, static_argnames=("graphdef", "sampling"), donate_argnames="state")
def _draw(graphdef, params, state: State, rules: Rules, sampling: Sampling, steps, ended_B):
    """Draw until all rows are done, `steps` times at most.

    Returns: the state, the number of tokens, and tokens and log-probabilities [B, CHUNK].
    """
    model = nnx.merge(graphdef, params)
    shape = (state.token_B.shape[0], CHUNK)
    buffers = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    buffers = tuple(shard(buffer, "batch", None) for buffer in buffers)

    def goes_on(carry):
        number, state, _ = carry
        return (number < steps) & ~jnp.all(state.done_B)

    def draw(carry):
        number, state, buffers = carry
        # Rows that are done read padding, which takes no part in anything.
        live_B1 = (~state.done_B[:, None]).astype(jnp.int32)
        hidden = model.hidden(state.token_B[:, None], live_B1, state.position_B[:, None], state.caches)
        found = _next(model, hidden.x_BSD[:, 0], state.count, rules, rules.allowed_V, sampling)
        done_B = state.done_B | jnp.isin(found[0], rules.stop_N)
        buffers = tuple(buffer.at[:, number].set(new) for buffer, new in zip(buffers, found, strict=True))
        return (
            number + 1,
            State(hidden.caches, found[0], state.position_B + live_B1[:, 0], done_B, state.count + 1),
            buffers,
        )

    state = state._replace(done_B=state.done_B | ended_B)
    number, state, buffers = jax.lax.while_loop(goes_on, draw, (jnp.int32(0), state, buffers))
    return state, number, *buffers


def _next(model, x_BD, count, rules: Rules, allowed_V, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """The next token of every row and its log-probability, [B] each."""
    logits_BV = model.logits(x_BD[:, None])[:, 0]
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(rules.keys_B, count)
    token_B = sample(jnp.where(allowed_V, logits_BV, -jnp.inf), keys_B, sampling)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    return shard(token_B, "batch"), shard(chosen_B - jax.nn.logsumexp(logits_BV, axis=-1), "batch")
