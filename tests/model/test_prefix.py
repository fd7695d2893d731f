"""Bidirectional prefixes: the mask, the implementations that honour it, the model, and its step on meshes."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from tiny import model_config, run_config
from trainer import Trainer, distance, make_batch

from maxlm.config import Config, MeshConfig
from maxlm.errors import ConfigError
from maxlm.model import ring
from maxlm.model.attention import reference
from maxlm.model.decoder import Decoder
from maxlm.model.kernels import Asked, choose
from maxlm.model.layers import Options
from maxlm.model.mask import visible
from maxlm.model.ring import ring_attention, tiled_attention
from maxlm.parallel.batch import sequence_order
from maxlm.parallel.mesh import build_mesh
from maxlm.train.state import abstract_batch, blueprint

LENGTH, WIDTH = 64, 8
# Lengths of each row's documents and of their prefixes; the rest of a row is padding.
ROWS = [{"documents": (37, 2, 20), "prefixes": (30, 1, 0)}, {"documents": (9, 55), "prefixes": (4, 55)}]
SEGMENTS = np.zeros((2, LENGTH), np.int32)
PREFIX = np.zeros((2, LENGTH), bool)
SPANS: list[tuple[int, slice]] = []
for row, lengths in enumerate(ROWS):
    begin = 0
    for number, (document, prefix) in enumerate(zip(lengths["documents"], lengths["prefixes"], strict=True), 1):
        SEGMENTS[row, begin : begin + document] = number
        PREFIX[row, begin : begin + prefix] = True
        SPANS.append((row, slice(begin, begin + document)))
        begin += document
SCATTERED = np.random.default_rng(1).random((2, LENGTH)) < 0.3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a chunk, which no prefix's end meets."""
    monkeypatch.setattr(ring, "BLOCK", 4)


def pair_by_pair(segments, prefix, window: int | None) -> np.ndarray:
    """The mask, written as it is said."""
    allowed = np.zeros((*segments.shape, segments.shape[1]), bool)
    for row, query, key in np.ndindex(allowed.shape):
        near = window is None or abs(query - key) < window
        sees = key <= query or (prefix[row, query] and prefix[row, key])
        allowed[row, query, key] = segments[row, query] == segments[row, key] and near and sees
    return allowed


@functools.cache
def draw(heads: int, kv_heads: int) -> tuple[jax.Array, ...]:
    """Queries, keys, values, and the gradient of the result."""
    random, counts = np.random.default_rng(0), (heads, kv_heads, kv_heads, heads)
    return tuple(jnp.asarray(random.normal(size=(2, LENGTH, count, WIDTH)), jnp.float32) for count in counts)


def with_gradients(attend, arrays) -> list[np.ndarray]:
    @jax.jit
    def run(q, k, v, d_out):
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(d_out)

    return [np.asarray(result) for result in run(*arrays)]


def by_reference(q, k, v, segments, prefix, window: int | None = None, softcap: float | None = None) -> jax.Array:
    index = jnp.arange(q.shape[1])
    return reference(q, k, v, visible(index, index, segments, segments, window, prefix, prefix), softcap)


def on_ring(shards: int, arrays, segments, prefix, window: int | None, softcap: float | None) -> list[np.ndarray]:
    """ring_attention of whole arrays, in their own order."""
    order, by_sequence = sequence_order(LENGTH, shards), PartitionSpec(None, "context")
    mesh = build_mesh(MeshConfig(context=shards), jax.devices()[:shards])
    attend = functools.partial(ring_attention, window=window, softcap=softcap)
    attend = jax.shard_map(attend, mesh=mesh, in_specs=by_sequence, out_specs=by_sequence, check_vma=False)
    own = segments[:, order], prefix[:, order]
    found = with_gradients(lambda q, k, v: attend(q, k, v, *own), [array[:, order] for array in arrays])
    return [result[:, np.argsort(order)] for result in found]


def close(found, wanted, atol: float = 1e-5) -> None:
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=atol, err_msg=name)


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("prefix", [PREFIX, SCATTERED], ids=["prefixes", "scattered"])
def test_the_mask_is_what_is_said(prefix: np.ndarray, window: int | None) -> None:
    index = np.arange(LENGTH)
    found = visible(index, index, SEGMENTS, SEGMENTS, window, prefix, prefix)
    np.testing.assert_array_equal(found, pair_by_pair(SEGMENTS, prefix, window))


# Query heads, key/value heads, window, soft cap, prefix.
CASES = {
    "full": (4, 2, None, None, PREFIX),
    "short window": (4, 1, 6, 1.5, PREFIX),
    "long window": (2, 2, 27, None, PREFIX),
    "scattered": (2, 1, None, None, SCATTERED),
    "none": (2, 1, None, None, np.zeros_like(PREFIX)),
}


@functools.cache
def wanted(case: str) -> list[np.ndarray]:
    heads, kv_heads, window, softcap, prefix = CASES[case]
    allowed = pair_by_pair(SEGMENTS, prefix, window)
    return with_gradients(lambda q, k, v: reference(q, k, v, allowed, softcap), draw(heads, kv_heads))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_a_ring_equals_the_mask_in_values_and_gradients(shards: int, case: str) -> None:
    heads, kv_heads, *how, prefix = CASES[case]
    close(on_ring(shards, draw(heads, kv_heads), SEGMENTS, prefix, *how), wanted(case))


@pytest.mark.parametrize("length", [LENGTH, 51])
def test_tiles_on_one_device_take_any_length(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(ring, "BLOCK", 8)
    arrays, segments, prefix = [x[:, :length] for x in draw(4, 2)], SEGMENTS[:, :length], PREFIX[:, :length]
    attend = functools.partial(tiled_attention, window=27, softcap=1.5)
    found = with_gradients(lambda q, k, v: attend(q, k, v, segments, prefix), arrays)
    close(found, with_gradients(lambda q, k, v: by_reference(q, k, v, segments, prefix, 27, 1.5), arrays))


@pytest.mark.parametrize("name", ["reference", "blocked"])
def test_packed_equals_alone_in_values_and_gradients(name: str) -> None:
    """Each document, cut out and put at the start of a row of its own, gives what it gives among the others."""
    attend = {"reference": by_reference, "blocked": tiled_attention}[name]

    def run(arrays, segments, prefix) -> list[np.ndarray]:
        return with_gradients(lambda q, k, v: attend(q, k, v, segments, prefix, window=20, softcap=3.0), arrays)

    def alone(x) -> np.ndarray:
        out = np.zeros((len(SPANS), *x.shape[1:]), x.dtype)
        for number, (row, span) in enumerate(SPANS):
            out[number, : span.stop - span.start] = x[row, span]
        return out

    together = run(draw(4, 2), SEGMENTS, PREFIX)
    apart = run([alone(x) for x in draw(4, 2)], (alone(SEGMENTS) > 0).astype(np.int32), alone(PREFIX))
    for number, (row, span) in enumerate(SPANS):
        close([x[row, span] for x in together], [x[number, : span.stop - span.start] for x in apart])


@pytest.mark.parametrize(
    ("prefix", "ahead"),
    [
        (np.zeros((1, LENGTH), bool), 0),
        (np.arange(LENGTH)[None] < 4, 0),  # the first block alone
        (np.arange(LENGTH)[None] < 5, 1),  # a token of the second
        (np.arange(LENGTH)[None] < 16, 4 * 3 // 2),
        (np.arange(LENGTH)[None] >= 0, 16 * 15 // 2),
    ],
)
def test_tiles_ahead_are_worked_through_where_a_prefix_reaches(monkeypatch, prefix: np.ndarray, ahead: int) -> None:
    visits, own = [], ring._tile_forward

    def counted(*arguments, **options):
        jax.debug.callback(lambda: visits.append(1))
        return own(*arguments, **options)

    monkeypatch.setattr(ring, "_tile_forward", counted)
    arrays, segments = [x[:1] for x in draw(2, 1)], np.ones((1, LENGTH), np.int32)
    jax.block_until_ready(tiled_attention(*arrays[:3], segments, prefix, window=None, softcap=None))
    jax.effects_barrier()
    assert len(visits) == 16 * 17 // 2 + ahead


MODELS = {
    "full": {},
    "windows, layers before the blocks": {"num_layers": 5, "window": (7, None)},
    "experts": {"moe": {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 8}},
}
TOKENS = np.random.default_rng(0).integers(64, size=(2, LENGTH)).astype(np.int32)
POSITIONS = np.concatenate([np.arange(37), np.arange(2), np.arange(20), np.arange(5), np.arange(9), np.arange(55)])
POSITIONS = POSITIONS.reshape(2, LENGTH).astype(np.int32)


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
@pytest.mark.parametrize("model", MODELS)
def test_only_a_prefix_sees_what_is_later(model: str, kernel: str) -> None:
    config = model_config(init_std=0.3, **MODELS[model])
    decoder = Decoder(config, jax.random.key(0), Options(attention=kernel, remat="full"))
    graphdef, params = nnx.split(decoder)
    run = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens, SEGMENTS, POSITIONS, PREFIX))
    before = np.asarray(run(TOKENS))

    def changed(row: int, column: int) -> list[int]:
        """Columns of the row whose logits follow a token."""
        tokens = TOKENS.copy()
        tokens[row, column] ^= 1
        differs = (np.asarray(run(tokens)) != before).any(-1)
        assert not differs[1 - row].any()
        return np.flatnonzero(differs[row]).tolist()

    window = 7 if "window" in MODELS[model] else LENGTH
    prefix = changed(0, 25)
    assert prefix[-1] == 36 and 25 in prefix
    assert prefix[0] == 0 and {*range(25 - min(window, 25) + 1, 37)} <= set(prefix)
    assert changed(0, 30)[0] == 30 and changed(0, 30)[-1] == 36  # the first token after the prefix
    assert changed(0, 37) == [37, 38]  # a prefix of one token
    assert changed(0, 45)[0] == 45 and changed(0, 45)[-1] == 58  # a document without a prefix
    assert changed(1, 3)[:4] == [0, 1, 2, 3] and changed(1, 3)[-1] == 8
    assert changed(1, 60)[-1] == 63 and changed(1, 60)[0] == 9  # a document that is all prefix


def test_decoding_takes_no_prefix() -> None:
    decoder = Decoder(model_config(), jax.random.key(0))
    with pytest.raises(ValueError, match="found a prefix and caches"):
        decoder.hidden(TOKENS, SEGMENTS, POSITIONS, decoder.empty_caches(2, LENGTH), prefix=PREFIX)


def prefix_config(**sections: dict) -> Config:
    """A run of 8 examples of 16 tokens, one of whose sources has prefixes."""
    sources = {"web": {"path": "a"}, "asked": {"path": "b", "prefix_lm": {"rate": 0.5}}}
    return run_config(data={"sources": sources}, optimizer={"b1": 0.9}, **sections)


def prefix_batch(config: Config) -> dict[str, np.ndarray]:
    batch = make_batch(config, 0)
    lengths = np.random.default_rng(5).integers(0, 16, batch["tokens"].shape)
    starts = np.maximum.accumulate(np.where(batch["positions"] == 0, np.arange(16), 0), axis=1)
    prefix = batch["positions"] < np.take_along_axis(lengths, starts, 1)
    return batch | {"prefix": prefix & (batch["sources"] == 1)[:, None]}


MESHES = {
    "context, gathered": {"mesh": {"context": 2, "fsdp": 2, "tensor": 2}},
    "context, ring": {"mesh": {"context": 4, "fsdp": 2}, "parallel": {"context": "ring"}},
    "pipeline and ring": {
        "mesh": {"pipeline": 2, "context": 2, "fsdp": 2},
        "parallel": {"context": "ring"},
        "pipeline": {"microbatches": 4},
        "remat": {"policy": "full"},
    },
    "accumulated tiles": {
        "mesh": {"data": 4, "fsdp": 1},
        "train": {"accumulate": 2},
        "kernels": {"attention": "blocked"},
    },
}


@functools.cache
def step_alone() -> tuple[dict, list[np.ndarray]]:
    trainer = Trainer(prefix_config(), jax.devices()[:1])
    metrics = trainer.run(prefix_batch(trainer.config))
    return metrics, [np.asarray(leaf) for leaf in jax.tree.leaves(trainer.state.params)]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_on_every_mesh_is_that_of_one_device(mesh: str) -> None:
    config = prefix_config(**MESHES[mesh])
    size = int(np.prod(list(MESHES[mesh]["mesh"].values())))
    trainer = Trainer(config, jax.devices()[:size])
    metrics, (alone, params) = trainer.run(prefix_batch(config)), step_alone()
    for name in ("loss", "grad_norm"):
        assert metrics[name] == pytest.approx(alone[name], rel=1e-5)
    found = [np.asarray(leaf) for leaf in jax.tree.leaves(trainer.state.params)]
    assert distance([x.reshape(y.shape) for x, y in zip(found, params, strict=True)], params) < 1e-4


def test_a_prefix_changes_the_loss() -> None:
    trainer = Trainer(prefix_config(), jax.devices()[:1])
    batch = prefix_batch(trainer.config)
    metrics = trainer.run(batch | {"prefix": np.zeros_like(batch["prefix"])})
    assert abs(metrics["loss"] - step_alone()[0]["loss"]) > 1e-6


def test_a_batch_has_prefixes_where_a_source_has_them() -> None:
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    batch = abstract_batch(blueprint(prefix_config(), mesh, 2))
    assert batch["prefix"].shape == (8, 16) and batch["prefix"].dtype == bool
    assert "prefix" not in abstract_batch(blueprint(run_config(), mesh, 1))


# A run of Llama 3 8B on packed documents with prefixes.
TPU = Asked("tpu", 8192, 32, 128, "bfloat16", documents=True, window=False, softcap=False, prefix=True)
GPU, CPU = replace(TPU, platform="gpu"), replace(TPU, platform="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (TPU, "blocked"),
        (GPU, "blocked"),
        (replace(TPU, shards=4, context="ring"), "blocked"),
        (replace(CPU, seq_len=128), "reference"),
        (replace(CPU, shards=2), "reference"),
        (CPU, "blocked"),
    ],
)
def test_auto_takes_one_that_honours_prefixes(asked: Asked, name: str) -> None:
    assert choose("auto", asked) == choose(name, asked) == name


@pytest.mark.parametrize(("name", "asked"), [("splash", TPU), ("flash", GPU), ("cudnn", replace(GPU, documents=False))])
def test_kernels_without_prefixes_refuse(name: str, asked: Asked) -> None:
    message = (
        f"^kernels.attention: {name} has no bidirectional prefix, found .*prefix_lm; use auto or one of reference, "
    )
    with pytest.raises(ConfigError, match=message):
        choose(name, asked)


def test_keys_that_are_gathered_leave_no_implementation_for_long_sequences() -> None:
    with pytest.raises(ConfigError, match="auto finds no implementation .*; set parallel.context to ring$"):
        choose("auto", replace(TPU, shards=4))
