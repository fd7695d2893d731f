"""How the next token is drawn. Axis letters as in model/layers.py."""

import jax
import jax.numpy as jnp
from pydantic import Field

from maxlm.config import Section


class Sampling(Section):
    """How the next token is drawn; temperature 0 takes the most likely one."""

    temperature: float = Field(0.8, ge=0, description="Divides the logits; 0 is greedy.")
    top_k: int | None = Field(None, gt=0, description="Draw from the k most likely tokens.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the fewest tokens that hold this probability.")


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """One id per row, int32 [B]; each row is drawn with a key of its own, so no row changes another's draw."""
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
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
