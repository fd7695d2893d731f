"""Every implementation of attention against the reference and against documents alone; the choice between them."""

import functools
from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import model_config, run_config

from maxlm.config import KernelsConfig, MeshConfig
from maxlm.errors import ConfigError
from maxlm.model import flash, kernels, ring
from maxlm.model.attention import reference
from maxlm.model.decoder import Decoder
from maxlm.model.flash import Tile, Tiles, flash_attention
from maxlm.model.kernels import Asked, Blocks, choose
from maxlm.model.layers import Attention, Options
from maxlm.model.mask import visible
from maxlm.model.positions import Rotations
from maxlm.model.ring import tiled_attention
from maxlm.model.splash import Visible, splash_attention
from maxlm.parallel.batch import sequence_order
from maxlm.parallel.mesh import build_mesh
from maxlm.train.state import blueprint

LENGTH, WIDTH = 256, 16
DOCUMENTS = (100, 61, 1, 70)  # the rest is padding
SEGMENTS = np.repeat([1, 2, 3, 4, 0], [*DOCUMENTS, LENGTH - sum(DOCUMENTS)]).astype(np.int32)[None]
BLOCKS = Blocks((128, 128), (128, 128), (128, 128))


def attend_by_reference(q, k, v, segments, window, softcap) -> jax.Array:
    index = jnp.arange(q.shape[1])
    return reference(q, k, v, visible(index, index, segments, segments, window), softcap)


IMPLEMENTATIONS = {
    "reference": attend_by_reference,
    "blocked": tiled_attention,
    "splash": functools.partial(splash_attention, blocks=BLOCKS, interpret=True),
    "flash": functools.partial(flash_attention, interpret=True),
}
TILED = tuple(name for name in IMPLEMENTATIONS if name != "reference")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles a row, which no document's end meets."""
    monkeypatch.setattr(ring, "BLOCK", 64)
    monkeypatch.setattr(flash, "TILES", {128: Tiles(Tile(64, 64, 4, 1), Tile(64, 64, 4, 1), Tile(64, 64, 4, 1))})


def draw(heads: int, kv_heads: int, length: int = LENGTH, rows: int = 1, values: int = WIDTH) -> tuple[jax.Array, ...]:
    """Queries, keys, values, and the gradient of the result."""
    random, forms = np.random.default_rng(0), ((heads, WIDTH), (kv_heads, WIDTH), (kv_heads, values), (heads, values))
    return tuple(jnp.asarray(random.normal(size=(rows, length, *form)), jnp.float32) for form in forms)


def with_gradients(attend, arrays) -> list[np.ndarray]:
    def run(q, k, v, d_out):
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(d_out)

    return [np.asarray(result) for result in jax.jit(run)(*arrays)]


def run(name: str, arrays, segments, window: int | None, softcap: float | None) -> list[np.ndarray]:
    attend = IMPLEMENTATIONS[name]
    return with_gradients(lambda q, k, v: attend(q, k, v, segments, window=window, softcap=softcap), arrays)


def close(found, wanted, atol: float) -> None:
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=atol, err_msg=name)


# Query heads, key/value heads, window, soft cap.
CASES = {
    "groups of two": (4, 2, None, None),
    "one key head, window, soft cap": (4, 1, 90, 1.5),
    "no groups, soft cap": (2, 2, None, 1.5),
    "window of a token": (2, 1, 1, None),
}


@functools.cache
def wanted(case: str) -> list[np.ndarray]:
    heads, kv_heads, window, softcap = CASES[case]
    return run("reference", draw(heads, kv_heads), SEGMENTS, window, softcap)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TILED)
def test_equals_the_reference_in_values_and_gradients(name: str, case: str) -> None:
    heads, kv_heads, window, softcap = CASES[case]
    close(run(name, draw(heads, kv_heads), SEGMENTS, window, softcap), wanted(case), atol=1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_packed_equals_alone_in_values_and_gradients(name: str) -> None:
    """Each document, cut out and put at the start of a row of its own, gives what it gives among the others."""
    window, softcap, packed = 90, 3.0, draw(4, 2)
    starts = np.cumsum([0, *DOCUMENTS])
    spans = [slice(start, end) for start, end in zip(starts, starts[1:], strict=False)]

    def alone(x: jax.Array) -> jax.Array:
        rows = [np.asarray(x)[0, span] for span in spans]
        return jnp.asarray(np.stack([np.pad(row, ((0, LENGTH - len(row)), (0, 0), (0, 0))) for row in rows]))

    segments = np.stack([np.arange(LENGTH) < length for length in DOCUMENTS]).astype(np.int32)
    together = run(name, packed, SEGMENTS, window, softcap)
    apart = run(name, [alone(x) for x in packed], segments, window, softcap)
    for row, span in enumerate(spans):
        length = span.stop - span.start
        close([x[0, span] for x in together], [x[row, :length] for x in apart], atol=1e-5)


def test_the_reference_is_the_formula() -> None:
    """Softmax over what a token sees, score by score in float64."""
    q, k, v, _ = (np.asarray(x, np.float64) for x in draw(4, 2, length=24))
    segments, window, softcap = np.repeat([1, 2, 0], [9, 11, 4]), 5, 1.5
    out = np.zeros_like(q)
    for head in range(4):
        for row in range(24):
            seen = [t for t in range(max(0, row - window + 1), row + 1) if segments[t] == segments[row]]
            scores = k[0, seen, head // 2] @ q[0, row, head] / np.sqrt(WIDTH)
            weights = np.exp(softcap * np.tanh(scores / softcap))
            out[0, row, head] = weights / weights.sum() @ v[0, seen, head // 2]
    found = attend_by_reference(*draw(4, 2, length=24)[:3], segments[None], window, softcap)
    np.testing.assert_allclose(found, out, atol=1e-6)


@pytest.mark.parametrize("length", [7, 150])
def test_tiles_take_any_length(length: int) -> None:
    arrays, segments = draw(2, 1, length=length), SEGMENTS[:, -length:]
    close(run("blocked", arrays, segments, 90, None), run("reference", arrays, segments, 90, None), atol=1e-5)


@pytest.mark.parametrize("window", [None, 150])
def test_splash_on_a_mesh_gathers_keys_in_the_order_of_the_sequence(window: int | None) -> None:
    """Rows, heads and queries split; the context's shards hold an early and a late part of the sequence each."""
    length, mesh = 512, build_mesh(MeshConfig(fsdp=2, context=2, tensor=2), jax.devices())
    arrays, order = draw(4, 2, length, rows=2), sequence_order(length, 2)
    segments = np.stack([np.repeat([1, 2, 0], [300, 200, 12]), np.repeat([1], length)]).astype(np.int32)
    with jax.set_mesh(mesh):
        found = run("splash", [x[:, order] for x in arrays], segments[:, order], window, None)
    close([x[:, np.argsort(order)] for x in found], run("reference", arrays, segments, window, None), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 100, 400])
def test_splash_knows_which_tiles_are_empty_or_full(window: int | None) -> None:
    order = sequence_order(1024, 4)
    mask, allowed = (
        Visible(order, window),
        np.asarray(visible(order, np.arange(1024), *[np.ones((1, 1024))] * 2, window)),
    )
    for query in range(0, 1024, 128):
        for key in range(0, 1024, 128):
            part = slice(query, query + 128), slice(key, key + 128)
            assert (mask[part] == allowed[0][part]).all()


def forward_kernels(policy) -> int:
    """Runs of splash's forward kernel in the program of one layer's gradients."""
    options = Options(platform="tpu", remat=policy)
    graphdef, params = nnx.split(Decoder(model_config(num_layers=1), jax.random.key(0), options))

    def loss(params):
        return jnp.sum(nnx.merge(graphdef, params)(jnp.ones((1, 128), jnp.int32)))

    lowered = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("tpu",))
    return lowered.as_text().count('kernel_name = "splash_mha_fwd')


@pytest.mark.parametrize(
    ("policy", "runs"), [("none", 1), ("dots", 1), ("full", 2), (("attention",), 1), (("key",), 2)]
)
def test_saved_attention_is_not_computed_again(policy, runs: int) -> None:
    assert forward_kernels(policy) == runs


@pytest.mark.parametrize("values", [8, 24])
@pytest.mark.parametrize("name", TILED)
def test_values_may_be_narrower_or_wider_than_keys(name: str, values: int) -> None:
    arrays = draw(4, 2, values=values)
    found, wanted = (run(each, arrays, SEGMENTS, 90, 1.5) for each in (name, "reference"))
    assert found[0].shape == (1, LENGTH, 4, values)
    close(found, wanted, atol=1e-5)


# A run of Llama 3 8B on packed documents.
TPU = Asked("tpu", 8192, 32, 128, "bfloat16", documents=True, window=False, softcap=False)
GPU, CPU = replace(TPU, platform="gpu"), replace(TPU, platform="cpu", dtype="float32")
LATENT = {"head_dim": 192, "value_dim": 128}  # DeepSeek's
CHOICES = {
    "tpu": (TPU, "splash"),
    "tpu, windows and soft cap": (replace(TPU, window=True, softcap=True), "splash"),
    "tpu, any length": (replace(TPU, seq_len=1000), "blocked"),
    "tpu, narrow values": (replace(TPU, **LATENT), "splash"),
    "tpu, keys gathered": (replace(TPU, shards=4), "splash"),
    "tpu, ring": (replace(TPU, shards=4, context="ring"), "blocked"),
    "tpu, decoding": (replace(TPU, seq_len=1, cache=True), "reference"),
    "gpu": (GPU, "flash"),
    "gpu, documents joined": (replace(GPU, documents=False, window=True), "cudnn"),
    "gpu, documents joined, soft cap": (replace(GPU, documents=False, softcap=True), "flash"),
    "gpu, documents joined, float32": (replace(GPU, documents=False, dtype="float32"), "flash"),
    "gpu, narrow values": (replace(GPU, **LATENT), "flash"),
    "gpu, documents joined, narrow values": (replace(GPU, documents=False, head_dim=128, value_dim=64), "flash"),
    "gpu, wide values": (replace(GPU, value_dim=320), "blocked"),
    "gpu, wide heads": (replace(GPU, head_dim=320), "blocked"),
    "gpu, ring": (replace(GPU, shards=2, context="ring"), "blocked"),
    "cpu, short": (replace(CPU, seq_len=128), "reference"),
    "cpu": (CPU, "blocked"),
    "cpu, keys gathered": (replace(CPU, shards=2), "reference"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_auto_takes_the_fastest_that_honours_what_is_asked(case: str) -> None:
    asked, name = CHOICES[case]
    assert choose("auto", asked) == name
    assert choose(name, asked) == name


REFUSED = {
    "splash runs on tpu, found cpu; use auto or one of reference, blocked$": ("splash", CPU),
    "flash runs on gpu, found tpu; use auto or one of reference, blocked, splash$": ("flash", TPU),
    "cudnn masks no documents, found data.mask_documents: true; use": ("cudnn", GPU),
    "cudnn has no soft cap, found model.attention_softcap": ("cudnn", replace(GPU, documents=False, softcap=True)),
    "cudnn computes in bfloat16 or float16, found float32": (
        "cudnn",
        replace(GPU, documents=False, dtype="float32"),
    ),
    "splash expects a multiple of 1024 tokens, found 512": ("splash", replace(TPU, seq_len=512, shards=4)),
    "splash expects parallel.context: all_gather, found ring over mesh.context = 4": (
        "splash",
        replace(TPU, shards=4, context="ring"),
    ),
    "flash splits no sequence, found all_gather over mesh.context = 2; use auto or one of reference": (
        "flash",
        replace(GPU, shards=2),
    ),
    "cudnn expects heads of a multiple of 8 up to 128, found 192": (
        "cudnn",
        replace(GPU, documents=False, head_dim=192),
    ),
    "cudnn expects values as wide as keys, found 64 and 128": (
        "cudnn",
        replace(GPU, documents=False, head_dim=128, value_dim=64),
    ),
    "flash does not read a cache": ("flash", replace(GPU, cache=True)),
    "auto finds no implementation .*reference needs too much memory.*; set parallel.context to ring$": (
        "auto",
        replace(GPU, shards=2),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_honoured_is_an_error_of_one_line(message: str) -> None:
    name, asked = REFUSED[message]
    with pytest.raises(ConfigError, match=rf"^kernels\.attention: {message}") as error:
        choose(name, asked)
    assert "\n" not in str(error.value)


def test_the_table_has_every_name_of_the_configuration() -> None:
    names = set(get_args(KernelsConfig.model_fields["attention"].annotation)) - {"auto"}
    assert names == set(kernels.CAPABILITIES) == set(kernels.FASTEST)


def test_a_run_is_refused_before_it_is_compiled() -> None:
    mesh = build_mesh(MeshConfig(), jax.devices())
    with pytest.raises(ConfigError, match="splash runs on tpu, found cpu"):
        blueprint(run_config(kernels={"attention": "splash"}), mesh, 1)
    for name in ("auto", "reference", "blocked"):
        assert blueprint(run_config(kernels={"attention": name}), mesh, 1).config.kernels.attention == name


def test_the_scale_of_queries_is_not_rounded_to_bfloat16() -> None:
    """Gemma 3 27B's factor on queries, 0.8729, would be 0.8711, and a score of 16 off by 0.03."""
    width, scale = 128, 168**-0.5
    config = model_config(embed_dim=width + 1, head_dim=width, num_heads=1, num_kv_heads=1, query_scale=scale)
    layer = Attention(config, None, 0.02, jax.random.key(0), Options(dtype=jnp.bfloat16))
    # The last number of a token's row is its value, the others are its query and its key; the first one has none.
    same, last = jnp.eye(width + 1)[:, None, :width], jnp.zeros((width + 1, 1, width)).at[-1].set(1.0)
    for parameter, value in ((layer.query, same), (layer.key, same), (layer.value, last)):
        parameter.set_value(value)
    layer.out.set_value(jnp.zeros((1, width, width + 1)).at[0, 0].set(1.0))
    row = np.random.default_rng(0).normal(size=width + 1)
    x = np.stack([np.eye(width + 1)[-1], row * (16 / scale) ** 0.5 / np.linalg.norm(row)])
    x[1, -1] = 0
    x = jnp.asarray(x[None], jnp.bfloat16)
    mixed, _ = layer(x, Rotations(None, None), jnp.ones((1, 2), jnp.int32), None)
    score = scale * float(np.sum(np.square(np.asarray(x[0, 1], np.float64))))
    # What the second token sees of the first is 1 / (1 + exp(score)), known to a bfloat16's 2^-9.
    assert -np.log(float(mixed[0, 1, 0])) == pytest.approx(score, abs=0.012)
