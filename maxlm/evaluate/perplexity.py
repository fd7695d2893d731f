"""Held-out loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from maxlm.data.loader import num_sequences, sequential
from maxlm.data.shards import Shards
from maxlm.model.loss import cross_entropy
from maxlm.parallel.batch import addressed_rows, place


class Result(NamedTuple):
    """Held-out quality of one source; `bytes` are those that the targets stand for."""

    loss: float  # nats per target token
    perplexity: float
    bits_per_byte: float
    target_tokens: int
    bytes: int


def evaluate(
    graphdef: nnx.GraphDef,
    params: dict,
    shards: Shards,
    *,
    mesh: Mesh,
    seq_len: int,
    batch_size: int,
    sequences: int | None = None,
    chunk: int = 512,
    mask_documents: bool = True,
    progress: Callable[[Iterable, int], Iterable] = lambda batches, total: batches,
) -> Result:
    """Loss over the first `sequences` windows of a held-out source (None for all of it).

    Every target counts once, whatever the batch size: sums are divided once at the end. Bits per byte charge every
    token that is predicted (end-of-document tokens too) and count every byte of the text; a sample of a source
    is taken to have the source's mean bytes per target.
    """
    rows = addressed_rows(batch_size, mesh)
    batches = sequential(
        shards, seq_len=seq_len, sequences=sequences, batch_size=batch_size, rows=rows, mask_documents=mask_documents
    )
    total = -(-num_sequences(shards, seq_len, sequences) // batch_size)
    nll, targets = 0.0, 0
    with jax.set_mesh(mesh):
        results = (_sums(graphdef, chunk, params, place(batch, rows, batch_size, mesh)) for batch in batches)
        for sums in progress(ahead(results), total):
            batch_nll, batch_targets = jax.device_get(sums)
            # Python floats and integers: a float32 sum over a large set would lose small terms.
            nll, targets = nll + float(np.sum(batch_nll, dtype=np.float64)), targets + int(np.sum(batch_targets))
    loss = nll / max(targets, 1)
    all_targets = shards.manifest.target_tokens if mask_documents else len(shards) - 1
    count = shards.manifest.bytes * targets / max(all_targets, 1)
    bits = nll / math.log(2) / max(count, 1)
    return Result(loss, math.exp(min(loss, 700.0)), bits, targets, round(count))


# Replicated, so that every process can read them.
@partial(jax.jit, static_argnums=(0, 1), out_shardings=PartitionSpec())
def _sums(graphdef: nnx.GraphDef, chunk: int, params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Nats and target counts per row, float32 and int32 [B]."""
    model = nnx.merge(graphdef, params)
    x_BSD = model.hidden(batch["tokens"], batch["segment_ids"], batch["positions"]).x_BSD
    targets, softcap = (batch["targets"], batch["weights"]), model.config.logit_softcap
    _, nll_B = cross_entropy(x_BSD, model.output_matrix(), *targets, chunk, 0.0, softcap)
    return nll_B, jnp.sum(batch["weights"].astype(jnp.int32), axis=1)


def ahead(results: Iterable) -> Iterable:
    """Ask for the next result before this one is read, so that the device does not wait for the host."""
    results = iter(results)
    current = next(results, None)
    while current is not None:
        following = next(results, None)
        yield current
        current = following
