"""Many prompts at once: each is continued as if it were alone, on any mesh, by few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import GEMMA3
from flax import nnx
from tiny import model_config

from maxlm.config import MeshConfig
from maxlm.errors import ConfigError
from maxlm.evaluate import generate as programs
from maxlm.evaluate.generate import FirstTokens, generate, rounded, stream
from maxlm.evaluate.placing import default_mesh, named_mesh
from maxlm.evaluate.sampling import Sampling
from maxlm.model.decoder import abstract
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings

GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=1, top_p=0.9)
LENGTHS = (5, 1, 19, 33, 8)
PROMPTS = [np.random.default_rng(n).integers(1, 64, n).tolist() for n in LENGTHS]
# Layers with a window and without, each with experts.
EXPERTS = {
    "num_layers": 3,
    "window": (4, None),
    "moe": {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 16, "shared_experts": 1, "first_dense": 1},
}


def make_model(changes: dict, **axes: int) -> tuple[nnx.GraphDef, dict]:
    """A model whose choices depend on the positions of the tokens; on a mesh where it has axes."""
    graphdef, shapes, names = abstract(model_config(**{"rope": {"theta": 2.0}} | changes))
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.6, leaf.shape), jnp.float32), shapes)
    if axes:
        mesh = build_mesh(MeshConfig(**{"fsdp": 1} | axes), jax.devices()[: np.prod(list(axes.values()))])
        params = jax.device_put(params, tree_shardings(names, shapes, mesh))
    return graphdef, params


@pytest.fixture(scope="module")
def dense() -> tuple[nnx.GraphDef, dict]:
    return make_model({})


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_text_does_not_depend_on_its_neighbours(dense: tuple, sampling: Sampling) -> None:
    options = {"max_tokens": 12, "sampling": sampling, "seed": 3}
    options["stop_ids"] = [generate(*dense, PROMPTS[:1], **options)[0].ids[7]]  # where one text ends, if no other
    together = generate(*dense, PROMPTS, **options)
    assert together[0].finish == "stop" and len(together[0].ids) <= 7
    for size in (1, 2):
        apart = generate(*dense, PROMPTS, batch_size=size, **options)
        assert [result.ids for result in apart] == [result.ids for result in together]
        for one, other in zip(apart, together, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


def test_log_probabilities_are_those_of_the_model(dense: tuple) -> None:
    graphdef, params = dense
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens)))
    for prompt, result in zip(PROMPTS, generate(*dense, PROMPTS, max_tokens=12, sampling=DRAWN), strict=True):
        text = np.array(prompt + result.ids)
        wanted = forward(np.pad(text, (0, 48 - len(text)))[None])[0, len(prompt) - 1 : len(text) - 1]
        found = wanted[np.arange(len(result.ids)), np.array(result.ids)]
        np.testing.assert_allclose(result.logprobs, found, atol=2e-5)


def test_long_prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(GEMMA3 | {"num_layers": 3})
    whole = generate(*model, PROMPTS, max_tokens=6, sampling=GREEDY)
    monkeypatch.setattr(programs, "PREFILL", 8)
    assert [result.ids for result in generate(*model, PROMPTS, max_tokens=6, sampling=GREEDY)] == [
        result.ids for result in whole
    ]


@pytest.mark.parametrize(
    ("changes", "axes"),
    [
        (EXPERTS, {"expert": 2, "fsdp": 2, "tensor": 2}),
        (GEMMA3, {"data": 2, "tensor": 4}),  # more shards than key/value heads
    ],
    ids=["experts", "gemma3"],
)
def test_every_mesh_gives_the_tokens_of_one_device(changes: dict, axes: dict) -> None:
    options = {"max_tokens": 12, "sampling": GREEDY, "stop_ids": [7]}
    wanted = [result.ids for result in generate(*make_model(changes), PROMPTS, **options)]
    assert [result.ids for result in generate(*make_model(changes, **axes), PROMPTS, **options)] == wanted


def test_nothing_is_compiled_while_tokens_are_drawn(dense: tuple) -> None:
    counts = (programs._read._cache_size, programs._draw._cache_size)
    generate(*dense, PROMPTS, max_tokens=150, sampling=GREEDY)
    before = [count() for count in counts]
    # Other prompts, numbers of steps and of stop ids, another seed.
    others = [prompt[::-1] for prompt in PROMPTS]
    chunks = [len(drawn.ids) for drawn in stream(*dense, others, max_tokens=145, sampling=GREEDY, seed=4, stop_ids=[1])]
    assert len(set(chunks)) > 2 and [count() for count in counts] == before


def test_sizes_are_rounded_so_that_programs_are_few() -> None:
    sizes = {rounded(size) for size in range(1, 4097)}
    assert len(sizes) < 40 and all(size <= rounded(size) <= max(16, 1.25 * size) for size in range(1, 4097))


def test_a_prompt_of_which_no_more_is_wanted_ends(dense: tuple) -> None:
    ended, seen = set(), [0] * len(PROMPTS)
    for drawn in stream(*dense, PROMPTS, max_tokens=100, sampling=DRAWN, ended=ended):
        seen[drawn.number] += len(drawn.ids)
        if drawn.number == 2:
            ended.add(2)
    assert seen[2] < 100 and seen[:2] + seen[3:] == [100] * 4


def test_texts_come_in_about_the_order_of_their_prompts(dense: tuple) -> None:
    prompts = [PROMPTS[number % 5] for number in range(40)]
    order = [drawn.number for drawn in stream(*dense, prompts, max_tokens=1, sampling=GREEDY, batch_size=2)]
    assert sorted(order) == list(range(40)) and order != sorted(order)
    assert all(
        set(part) == set(range(part[0] // 32 * 32, min(40, part[0] // 32 * 32 + 32)))
        for part in (order[:32], order[32:])
    )


def test_first_tokens_are_restricted_where_they_are_asked_to_be(dense: tuple) -> None:
    allowed = np.arange(30) == 29
    results = generate(*dense, PROMPTS, max_tokens=3, sampling=GREEDY, first=FirstTokens(allowed, {1, 3}))
    free = generate(*dense, PROMPTS, max_tokens=3, sampling=GREEDY)
    assert [result.ids[0] == 29 for result in results] == [False, True, False, True, False]
    assert [results[n].ids for n in (0, 2, 4)] == [free[n].ids for n in (0, 2, 4)]


def test_a_mesh_is_named_by_its_axes() -> None:
    devices = jax.devices()
    mesh = named_mesh("data=2,tensor=-1", devices)
    assert (mesh.shape["data"], mesh.shape["tensor"], mesh.size) == (2, 4, 8)
    assert named_mesh("tensor=2", devices).size == 2
    for text, message in {
        "tensors=2": "found 'tensors=2', expected AXIS=SIZE with an axis of data, fsdp, expert, tensor",
        "pipeline=2": "found 'pipeline=2'",
        "tensor": "found 'tensor'",
        "tensor=16": "needs 16 devices, found 8",
        "tensor=0": "tensor must be at least 1",
        "data=-1,tensor=3": "does not make 8",
    }.items():
        with pytest.raises(ConfigError, match=message):
            named_mesh(text, devices)


class Chip:
    """A device as far as a mesh asks."""

    platform, device_kind, process_index, slice_index = "tpu", "TPU v5 lite", 0, 0

    def __init__(self, number: int):
        self.id, self.coords, self.core_on_chip = number, (number % 4, number // 4, 0), 0


@pytest.mark.parametrize(
    ("layers", "texts", "wanted"),
    [
        (2, 1, (1, 8)),  # one text on all chips
        (2, 3, (2, 4)),  # no chip idle
        (2, 16, (8, 1)),
        (40, 16, (2, 4)),  # 9 GiB of matrices a chip at most
    ],
)
def test_devices_hold_copies_for_texts_as_far_as_weights_fit(layers: int, texts: int, wanted: tuple) -> None:
    sizes = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "embed_dim": 4096, "mlp_dim": 14336}
    model = model_config(num_layers=layers, vocab_size=32000, **sizes)
    mesh = default_mesh(model, [Chip(number) for number in range(8)], texts, itemsize=2)
    assert (mesh.shape["data"], mesh.shape["tensor"]) == wanted
