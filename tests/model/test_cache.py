"""Decoding with caches against the full forward pass over the text so far, for every pattern of attention."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import DEEPSEEK, GEMMA2, GEMMA3, GPT2, OLMO2
from flax import nnx
from jax.sharding import PartitionSpec
from scalings import DYNAMIC, LLAMA3, LONGROPE, YARN, YARN_UNROUNDED
from tiny import model_config

from maxlm.config import MeshConfig, ModelConfig
from maxlm.model.decoder import abstract
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings

EXPERTS = {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 16}
FAST = {"theta": 100.0}
VARIANTS = {
    "full": {"rope": FAST},
    # Narrower than the prompts, outgrown by the text, as wide as a text is at most, and none.
    "windows": {"rope": FAST, "num_layers": 5, "window": (3, 12, 16, None), "attention_softcap": 0.7, "qk_norm": True},
    "window": {"rope": FAST, "window": 4, "num_kv_heads": 1},
    "experts": {"rope": FAST, "num_layers": 3, "moe": EXPERTS | {"first_dense": 1}},
    "gpt2": GPT2,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "olmo2": OLMO2,
    "latents": DEEPSEEK | {"window": (4, None)},
    "yarn": {"head_dim": 8, "rope": YARN | {"fraction": 0.5}},
    "yarn unrounded": {"head_dim": 8, "rope": YARN_UNROUNDED, "window": (4, None)},
    "llama3": {"head_dim": 8, "rope": LLAMA3},
    "dynamic": {"head_dim": 8, "rope": DYNAMIC, "num_layers": 3, "window": (3, None)},
    "longrope": {"head_dim": 8, "rope": LONGROPE, "num_layers": 3, "window": (3, None)},
    "longrope experts": {"head_dim": 8, "rope": LONGROPE | {"local_theta": 10.0}, "window": (4, None), "moe": EXPERTS},
}

# Prompts on both sides of scalings.ORIGINAL and of the narrower windows, and texts beyond.
PROMPTS = [4, 9, 1, 6]
WIDTH = 9
STEPS = 7
SLOTS = WIDTH + STEPS


class Case(NamedTuple):
    config: ModelConfig
    graphdef: nnx.GraphDef
    params: dict


def make_case(variant: str, **options) -> Case:
    """A model whose choices depend on every part of it."""
    config, random = model_config(**VARIANTS[variant]), np.random.default_rng(1)
    graphdef, shapes, _ = abstract(config, **options)

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        mean = path[-1].key == "scale" and not config.norm_offset
        return jnp.asarray(random.normal(mean, 0.3, shape.shape), jnp.float32)

    return Case(config, graphdef, jax.tree.map_with_path(draw, shapes))


@partial(jax.jit, static_argnums=0)
def forward(graphdef: nnx.GraphDef, params: dict, tokens, segment_ids) -> jax.Array:
    return nnx.merge(graphdef, params)(tokens, segment_ids)


@partial(jax.jit, static_argnums=0)
def extend(graphdef: nnx.GraphDef, params: dict, caches, tokens, segment_ids, positions):
    model = nnx.merge(graphdef, params)
    hidden = model.hidden(tokens, segment_ids, positions, caches)
    return model.logits(hidden.x_BSD), hidden.caches


def full_logits(case: Case, texts: list[list[int]]) -> list[np.ndarray]:
    """Of every text [tokens, V]; each in a row of its own, padded on the right."""
    tokens, segment_ids = np.zeros((2, len(texts), SLOTS), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], segment_ids[row, : len(text)] = text, 1
    logits = np.asarray(forward(case.graphdef, case.params, tokens, segment_ids))
    return [logits[row, : len(text)] for row, text in enumerate(texts)]


def padded(texts: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segment ids and positions, padded on the left with tokens that must not be seen."""
    tokens, segment_ids, positions = np.full((3, len(texts), width), [[[7]], [[0]], [[0]]], np.int32)
    for row, text in enumerate(texts):
        tokens[row, width - len(text) :] = text
        segment_ids[row, width - len(text) :] = 1
        positions[row, width - len(text) :] = np.arange(len(text))
    return tokens, segment_ids, positions


def prompts(lengths: list[int] = PROMPTS) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(64, size=length).tolist() for length in lengths]


def assert_same(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_decoding_equals_the_full_forward_pass(variant: str) -> None:
    case, texts = make_case(variant), prompts()
    caches = nnx.merge(case.graphdef, case.params).empty_caches(len(texts), SLOTS)
    logits, caches = extend(case.graphdef, case.params, caches, *padded(texts, WIDTH))
    for text, row, wanted in zip(texts, np.asarray(logits), full_logits(case, texts), strict=True):
        assert_same(row[WIDTH - len(text) :], wanted)
    for _ in range(STEPS):
        positions = np.array([[len(text)] for text in texts])
        for text, row in zip(texts, np.asarray(logits), strict=True):
            text.append(int(row[-1].argmax()))
        drawn = np.array([[text[-1]] for text in texts])
        logits, caches = extend(case.graphdef, case.params, caches, drawn, np.ones_like(drawn), positions)
        wanted = np.stack([rows[-1] for rows in full_logits(case, texts)])
        assert np.std(wanted) > 0.5
        assert_same(np.asarray(logits)[:, 0], wanted)


@pytest.mark.parametrize("variant", ["windows", "dynamic"])
def test_a_text_may_come_in_pieces_of_any_size(variant: str) -> None:
    """Also in pieces longer than a window, and several tokens after single ones. One row rests after its sixth."""
    case, texts = make_case(variant), prompts([SLOTS, 6])
    tokens, segment_ids, positions = padded(texts, SLOTS)
    for array in (tokens, segment_ids, positions):  # the short text first, then its padding
        array[1] = np.roll(array[1], 6)
    caches = nnx.merge(case.graphdef, case.params).empty_caches(2, SLOTS)
    start = 0
    for size in (4, 1, 5, 1, 1, 4):
        piece = (x[:, start : start + size] for x in (tokens, segment_ids, positions))
        logits, caches = extend(case.graphdef, case.params, caches, *piece)
        so_far = [text[: start + size] for text in texts]
        for row, text, wanted in zip(np.asarray(logits), so_far, full_logits(case, so_far), strict=True):
            assert_same(row[: max(0, len(text) - start)], wanted[start:])
        start += size
    assert start == SLOTS


def test_a_long_prompt_is_read_as_a_short_one() -> None:
    """Its queries come in parts, which do not divide it."""
    case, texts = make_case("windows"), prompts([520, 262])
    caches = nnx.merge(case.graphdef, case.params).empty_caches(2, 530)
    logits, _ = extend(case.graphdef, case.params, caches, *padded(texts, 521))
    for text, row in zip(texts, np.asarray(logits), strict=True):
        tokens = np.array([text + [0] * (520 - len(text))])
        wanted = forward(case.graphdef, case.params, tokens, (np.arange(520) < len(text)).astype(int)[None])
        # Of so many tokens one is at a place where the last bit of the parameters moves its logits by 2e-5.
        assert_same(row[521 - len(text) :], np.asarray(wanted)[0, : len(text)], 1e-4)


def test_caches_hold_no_more_than_windows_need() -> None:
    def shapes(variant: str) -> dict:
        graphdef, params, _ = abstract(model_config(**VARIANTS[variant]), dtype=jnp.bfloat16)
        model = nnx.merge(graphdef, params)
        return jax.eval_shape(lambda: model.empty_caches(3, 14))

    caches = shapes("windows")
    # One layer, then once the pattern, which begins with that layer's successor.
    for name, stack, slots in (("first0", (), 3), ("0", (1,), 12), ("1", (1,), 14), ("2", (1,), 14), ("3", (1,), 3)):
        cache = caches[name]
        assert cache.key_BTKE.shape == cache.value_BTKE.shape == (*stack, 3, slots, 2, 4)
        assert cache.key_BTKE.dtype == cache.value_BTKE.dtype == jnp.bfloat16
        assert cache.segment_ids_BT.shape == (*stack, 3, slots) and cache.length.shape == stack
    assert set(caches) == {"first0", "0", "1", "2", "3"}
    # Tokens are kept where they may have to be computed again.
    assert shapes("longrope")["text"].tokens_BT.shape == (3, 14)


@pytest.mark.parametrize(
    ("variant", "sizes"), [("windows", {"data": 2, "tensor": 4}), ("longrope", {"fsdp": 2, "expert": 2, "tensor": 2})]
)
def test_meshes_decode_what_one_device_does(variant: str, sizes: dict) -> None:
    """With fewer key/value heads than tensor shards, and with as many."""
    case = make_case(variant)
    mesh = build_mesh(MeshConfig(**{"fsdp": 1} | sizes))
    _, shapes, axes = abstract(case.config)
    sharded = case._replace(params=jax.device_put(case.params, tree_shardings(axes, shapes, mesh)))
    one = np.ones((4, 1), int)
    pieces = [padded(prompts(), WIDTH), *((5 * one, one, np.array(PROMPTS)[:, None] + more) for more in range(3))]

    def run(case: Case) -> tuple[list[np.ndarray], dict]:
        caches = jax.jit(lambda: nnx.merge(case.graphdef, case.params).empty_caches(4, SLOTS))()
        results = []
        for piece in pieces:
            logits, caches = extend(case.graphdef, case.params, caches, *piece)
            results.append(np.asarray(logits))
        return results, caches

    wanted, _ = run(case)
    with jax.set_mesh(mesh):
        found, caches = run(sharded)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
    rows = tuple(name for name in ("data", "fsdp", "expert") if sizes.get(name))
    heads = ("tensor",) if variant == "longrope" else None
    key = caches["0"].key_BTKE
    assert key.sharding.is_equivalent_to(jax.NamedSharding(mesh, PartitionSpec(None, rows, None, heads)), key.ndim)


def test_decoding_on_a_split_sequence_is_refused() -> None:
    case = make_case("full")
    model = nnx.merge(case.graphdef, case.params)
    with jax.set_mesh(build_mesh(MeshConfig(context=2, fsdp=4))), pytest.raises(ValueError, match="without these axes"):
        model.hidden(np.zeros((1, 4), np.int32), caches=model.empty_caches(4, 8))
