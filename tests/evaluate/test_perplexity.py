"""Held-out quality against sums over documents alone, whatever the batch and the mesh."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shard_files import EOS, write_directory
from tiny import model_config

from maxlm.config import MeshConfig
from maxlm.data.shards import Shards
from maxlm.evaluate.perplexity import Result, evaluate
from maxlm.model.decoder import abstract
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings

SEQ_LEN = 8
GRAPHDEF, SHAPES, AXES = abstract(model_config(logit_softcap=3.0))


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Documents of 2 to 20 tokens, EOS included."""
    random = np.random.default_rng(0)
    return [[*random.integers(1, 64, random.integers(1, 20)).tolist(), EOS] for _ in range(13)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]) -> Shards:
    return write_directory(Path(tmp_path_factory.mktemp("shards")) / "held-out", documents, shards=2)


@pytest.fixture(scope="module")
def params() -> dict:
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32), SHAPES)


def held_out(shards: Shards, params: dict, sizes: tuple[int, int, int], batch_size: int, **options) -> Result:
    devices = jax.devices()[: math.prod(sizes)]
    mesh = build_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))), devices)
    placed = jax.device_put(params, tree_shardings(AXES, params, mesh))
    return evaluate(GRAPHDEF, placed, shards, mesh=mesh, seq_len=SEQ_LEN, batch_size=batch_size, chunk=3, **options)


def direct_losses(params: dict, documents: list[list[int]], windows: int) -> list[float]:
    """Nats of every target in the first windows, each document's part of a window in a row of its own."""
    rows, targets, start = [], [], 0
    for document in documents:
        for first in range(0, windows * SEQ_LEN, SEQ_LEN):
            inside = range(max(start, first), min(start + len(document) - 1, first + SEQ_LEN))
            if inside:
                text = document[inside.start - start : inside.stop - start + 1]
                rows.append(np.pad(text[:-1], (0, SEQ_LEN - len(inside))))
                targets.append(text[1:])
        start += len(document)
    logits = jax.jit(lambda params, tokens: nnx.merge(GRAPHDEF, params)(tokens))(params, np.stack(rows))
    log_likelihood = jax.nn.log_softmax(np.asarray(logits, np.float64))
    return [-float(log_likelihood[r, s, t]) for r, row in enumerate(targets) for s, t in enumerate(row)]


def test_loss_equals_the_sum_over_documents_alone(shards: Shards, params: dict, documents: list[list[int]]) -> None:
    losses = direct_losses(params, documents, windows=-(-len(shards) // SEQ_LEN))
    result = held_out(shards, params, (1, 1, 1), 4)
    assert result.target_tokens == len(losses) == len(shards) - len(documents)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    # The fixture says 4 bytes a token, EOS included.
    assert result.bytes == 4 * len(shards)
    assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / (4 * len(shards)), rel=1e-5)


@pytest.mark.parametrize(("sizes", "batch_size"), [((1, 1, 1), 1), ((1, 1, 1), 7), ((1, 8, 1), 8), ((2, 2, 2), 4)])
def test_result_depends_on_neither_batch_nor_mesh(shards: Shards, params: dict, sizes, batch_size: int) -> None:
    wanted, found = (held_out(shards, params, *how) for how in (((1, 1, 1), 4), (sizes, batch_size)))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found.target_tokens == wanted.target_tokens


def test_sample_counts_its_share_of_the_bytes(shards: Shards, params: dict, documents: list[list[int]]) -> None:
    losses = direct_losses(params, documents, windows=3)
    result = held_out(shards, params, (1, 1, 1), 4, sequences=3)
    assert result.target_tokens == len(losses) < len(shards) - len(documents)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    share = len(losses) / (len(shards) - len(documents))
    assert result.bytes == round(4 * len(shards) * share)
    assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / (4 * len(shards) * share), rel=1e-5)


def test_every_byte_counts_once_when_documents_are_not_masked(shards: Shards, params: dict) -> None:
    result = held_out(shards, params, (1, 1, 1), 4, mask_documents=False)
    assert result.target_tokens == len(shards) - 1
    assert result.bytes == 4 * len(shards)
    assert result.bits_per_byte == pytest.approx(result.loss * (len(shards) - 1) / math.log(2) / (4 * len(shards)))
