"""Sampling with a key/value cache: one prefill over the prompt, then one token at a time."""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field

from maxlm.config import Section
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError


class Sampling(Section):
    """How the next token is drawn; temperature 0 takes the most likely one."""

    temperature: float = Field(0.8, ge=0, description="Divides the logits; 0 is greedy.")
    top_k: int | None = Field(None, gt=0, description="Draw from the k most likely tokens.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the fewest tokens that hold this probability.")


def generate(
    graphdef: nnx.GraphDef,
    params: dict,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    eos_id: int | None = None,
    first: np.ndarray | None = None,
) -> Iterator[int]:
    """Ids that continue the prompt, as they are drawn, up to `max_tokens` or the end-of-document token.

    `first` (bool [V]) says which ids the first token may be; None for all. Token i is drawn with key
    fold_in(seed, i): the same seed gives the same text. The cache holds prompt and
    continuation, rounded up to a power of two so that few programs are compiled.
    """
    if not prompt:
        raise ConfigError("the prompt holds no token; give some text")
    if "positions" in params and (needed := len(prompt) + max_tokens - 1) > (rows := params["positions"].shape[0]):
        raise ConfigError(
            f"{len(prompt)} tokens of the prompt and {max_tokens} more need {needed} positions, the model has {rows}; "
            "give a shorter prompt or fewer tokens"
        )
    slots = 1 << (len(prompt) + max_tokens - 1).bit_length()
    # The prompt is padded on the left with slots of segment 0, which no token of the text sees.
    width = min(slots, 1 << (len(prompt) - 1).bit_length())
    slots = max(slots, width + max_tokens)
    padding = width - len(prompt)
    tokens = np.zeros((1, width), np.int32)
    tokens[0, padding:] = prompt
    segment_ids = (np.arange(width) >= padding).astype(np.int32)[None]
    positions = np.maximum(np.arange(width) - padding, 0).astype(np.int32)[None]

    key = jax.random.key(seed)
    caches = nnx.merge(graphdef, params).empty_caches(1, slots)
    every = np.ones(params["embedding"].shape[0], bool)
    allowed = every if first is None else first
    for number in range(max_tokens):
        token, caches = _next_token(
            graphdef, sampling, params, caches, tokens, segment_ids, positions, jax.random.fold_in(key, number), allowed
        )
        drawn = int(token[0])
        if drawn == eos_id:
            return
        yield drawn
        tokens, segment_ids = np.array([[drawn]], np.int32), np.ones((1, 1), np.int32)
        positions, allowed = np.array([[len(prompt) + number]], np.int32), every


def stream_text(tokenizer: Tokenizer, prompt: Sequence[int], ids: Iterator[int]) -> Iterator[str]:
    """Text of the ids as they come; a character split over tokens waits until it is whole."""
    known = list(prompt)
    shown = tokenizer.decode(known)
    for drawn in ids:
        known.append(drawn)
        text = tokenizer.decode(known)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(known)[len(shown) :]
    if rest:
        yield rest


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _next_token(graphdef, sampling: Sampling, params, caches, tokens, segment_ids, positions, key, allowed_V):
    model = nnx.merge(graphdef, params)
    hidden = model.hidden(tokens, segment_ids, positions, caches)
    logits_BV = jnp.where(allowed_V, model.logits(hidden.x_BSD[:, -1:])[:, 0], -jnp.inf)
    return sample(logits_BV, key, sampling), hidden.caches


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """One id per row, int32 [B]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        least = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least, logits_BV, -jnp.inf)
    if sampling.top_p is not None:
        ordered_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        before_BV = jnp.cumsum(jax.nn.softmax(ordered_BV, axis=-1), axis=-1) - jax.nn.softmax(ordered_BV, axis=-1)
        # A token is kept while those before it hold less than top_p; the most likely one always is.
        least = jnp.min(jnp.where(before_BV < sampling.top_p, ordered_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least, logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)
