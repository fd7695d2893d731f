"""Scores of continuations: those of the whole text read alone, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import model_config

from maxlm.config import MeshConfig, PipelineConfig
from maxlm.errors import ConfigError
from maxlm.evaluate.scoring import Request, Score, Scorer, Text
from maxlm.model import decoder
from maxlm.parallel.mesh import build_mesh
from maxlm.parallel.sharding import tree_shardings

CONFIG = model_config(logit_softcap=5.0)
ROWS, MAX_LENGTH = 8, 300
MESHES = [{}, {"fsdp": 4, "tensor": 2}, {"data": 2, "context": 2, "fsdp": 2}, {"pipeline": 2, "data": 2, "fsdp": 2}]


@pytest.fixture(scope="module")
def model():
    graphdef, shapes, axes = decoder.abstract(CONFIG)
    return graphdef, shapes, axes, decoder.initial_parameters(CONFIG, jax.random.key(3))


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    random = np.random.default_rng(1)
    lengths = [(1, 1), (5, 3), (40, 1), (130, 20), (250, 9), (3, 0), (290, 40), (10, 320), *[(7, 4)] * 60]
    found = [Request(*(random.integers(0, 64, n).tolist() for n in pair)) for pair in lengths]
    # All of these read the same twelve tokens: answers of one token to one question, and one of many.
    shared = random.integers(0, 64, 12).tolist()
    return [*found, *(Request(shared, [answer]) for answer in (3, 9, 3)), Request(shared[:5], [*shared[5:], 9])]


@pytest.fixture(scope="module")
def alone(model, requests) -> list[Score]:
    """By the whole logits of every text, its last MAX_LENGTH + 1 tokens."""
    graphdef, _, _, params = model
    decode = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens))
    scores = []
    for context, continuation in requests:
        ids = np.array([*context, *continuation], np.int32)[-(MAX_LENGTH + 1) :]
        padded = np.zeros((1, MAX_LENGTH + 1), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(jax.nn.log_softmax(decode(jnp.asarray(padded))[0]), np.float64)
        places = range(max(1, len(ids) - len(continuation)), len(ids))
        likely = all(logits[place - 1].argmax() == ids[place] for place in places)
        scores.append(Score(sum(logits[place - 1, ids[place]] for place in places), likely))
    return scores


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "-".join(sizes) or "one")
def test_scores_are_those_of_each_text_alone(model, requests, alone, sizes):
    _, shapes, axes, params = model
    graphdef, *_ = decoder.abstract(CONFIG, pipeline=PipelineConfig(microbatches=2))
    config = MeshConfig(**{"fsdp": 1} | sizes)
    mesh = build_mesh(config, jax.devices()[: np.prod(list(sizes.values()), dtype=int)])
    placed = jax.device_put(params, tree_shardings(axes, shapes, mesh))
    scorer = Scorer(graphdef, placed, mesh, rows=ROWS, max_length=MAX_LENGTH, chunk=64)
    scores = scorer.score(requests)
    np.testing.assert_allclose([s.logprob for s in scores], [s.logprob for s in alone], rtol=1e-5, atol=1e-5)
    assert [s.greedy for s in scores] == [s.greedy for s in alone]
    assert scores[5] == Score(0.0, True)  # nothing is continued


def test_what_is_read_alike_is_read_once(model, requests):
    graphdef, _, _, params = model
    scorer = Scorer(graphdef, params, build_mesh(MeshConfig(), jax.devices()[:1]), rows=ROWS, max_length=MAX_LENGTH)
    texts = scorer.texts(requests)
    assert len(texts) == len(requests) - 3 - 1  # three of the four that are alike, and the one without a target
    assert sorted(number for text in texts for number, _ in text.requests) == [
        n for n in range(len(requests)) if n != 5
    ]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=200), st.sampled_from([1, 2, 8]))
def test_rows_hold_every_text_once_and_little_else(lengths, rows):
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    scorer = Scorer(None, {}, mesh, rows=rows, max_length=400)
    texts = [Text((0,) * length, [(number, (1,))]) for number, length in enumerate(lengths)]
    batches, seen = list(scorer.batches(texts)), []
    for batch in batches:
        assert 0 < len(batch.rows) <= batch.size and batch.targets >= max(
            sum(t.targets for t, _ in r) for r in batch.rows
        )
        for row in batch.rows:
            end = 0
            for text, start in row:
                assert start == end  # one after the other
                end += len(text.ids)
                seen.append(text.requests[0][0])
            assert end <= batch.width
    assert sorted(seen) == list(range(len(lengths)))
    # Of two rows of one width the texts of the later one would not have fitted into the earlier one.
    for batch in batches:
        used = [sum(len(text.ids) for text, _ in row) for row in batch.rows]
        for row, following in enumerate(batch.rows[1:], 1):
            assert used[row - 1] + min(len(text.ids) for text, _ in following) > batch.width


def test_greedy_is_told_from_likely(model):
    graphdef, _, _, params = model
    logits = nnx.merge(graphdef, params)(jnp.array([[1, 2, 3]]))
    best, other = (int(number) for number in np.argsort(logits[0, -1])[[-1, -2]])
    scorer = Scorer(graphdef, params, build_mesh(MeshConfig(), jax.devices()[:1]), rows=1, max_length=16)
    first, second = scorer.score([Request([1, 2, 3], [best]), Request([1, 2, 3], [other])])
    assert first.greedy and not second.greedy and first.logprob > second.logprob


def test_a_request_needs_a_context(model):
    graphdef, _, _, params = model
    scorer = Scorer(graphdef, params, build_mesh(MeshConfig(), jax.devices()[:1]), rows=1, max_length=16)
    with pytest.raises(ConfigError, match="request 2 has no context"):
        scorer.score([Request([1], [2]), Request([], [2])])
