"""Sampling and streaming."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from families import GEMMA3, GPT2
from flax import nnx
from tiny import model_config

from maxlm.data.shards import TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.evaluate.generate import Sampling, generate, sample, stream_text
from maxlm.model.decoder import abstract

GREEDY = Sampling(temperature=0)
PROMPT = [5, 17, 33, 2, 60]


EXPERTS = {"num_layers": 3, "moe": {"num_experts": 4, "experts_per_token": 2, "mlp_dim": 16, "first_dense": 1}}


def make_model(**changes: object) -> tuple[nnx.GraphDef, dict]:
    """A model whose choices depend on the positions of the tokens: fast rotation, large parameters."""
    graphdef, shapes, _ = abstract(model_config(**{"rope": {"theta": 2.0}} | changes))
    random = np.random.default_rng(1)
    return graphdef, jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.6, leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def model() -> tuple[nnx.GraphDef, dict]:
    return make_model()


# One token, between two powers of two, at one, beyond one.
@pytest.mark.parametrize(
    ("changes", "lengths"),
    [({}, (1, 5, 8, 9)), (EXPERTS, (5, 9)), (GPT2, (5, 9)), (GEMMA3, (5, 9))],
    ids=["dense", "experts", "gpt2", "gemma3"],
)
def test_greedy_is_the_argmax_of_the_full_forward_pass(changes: dict, lengths: tuple[int, ...]) -> None:
    graphdef, params = make_model(**changes)
    forward = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens))
    for length in lengths:
        text = np.random.default_rng(length).integers(1, 64, length).tolist()
        drawn = list(generate(graphdef, params, text, max_tokens=6, sampling=GREEDY))
        assert len(drawn) == 6
        for token in drawn:
            padded = np.pad(np.array(text, np.int32), (0, 32 - len(text)))
            assert token == int(jnp.argmax(forward(padded[None])[0, len(text) - 1]))
            text.append(token)


def test_end_of_document_ends_the_text(model: tuple) -> None:
    drawn = list(generate(*model, PROMPT, max_tokens=8, sampling=GREEDY))
    end = drawn[3]
    assert list(generate(*model, PROMPT, max_tokens=8, sampling=GREEDY, eos_id=end)) == drawn[: drawn.index(end)]


def test_same_seed_same_text_and_another_seed_another(model: tuple) -> None:
    first, again, other = (
        list(generate(*model, PROMPT, max_tokens=8, sampling=Sampling(temperature=1), seed=seed)) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_every_token_is_drawn_anew(model: tuple) -> None:
    graphdef, params = model
    uniform = jax.tree.map(jnp.zeros_like, params)
    drawn = list(generate(graphdef, uniform, PROMPT, max_tokens=8, sampling=Sampling(temperature=1)))
    assert len(set(drawn)) > 4


def test_longer_text_of_a_seed_begins_with_the_shorter(model: tuple) -> None:
    short, long = (
        list(generate(*model, PROMPT, max_tokens=count, sampling=Sampling(temperature=1), seed=3)) for count in (3, 8)
    )
    assert long[:3] == short


def test_prompt_without_tokens_is_refused(model: tuple) -> None:
    with pytest.raises(ConfigError, match="the prompt holds no token"):
        next(generate(*model, [], max_tokens=3, sampling=GREEDY))


def test_text_beyond_the_learned_positions_is_refused() -> None:
    model = make_model(**GPT2 | {"learned_positions": 8})
    # The last token drawn is not read.
    assert len(list(generate(*model, PROMPT, max_tokens=4, sampling=GREEDY))) == 4
    with pytest.raises(ConfigError, match="5 tokens of the prompt and 5 more need 9 positions, the model has 8"):
        next(generate(*model, PROMPT, max_tokens=5, sampling=GREEDY))
    with pytest.raises(ValueError, match="9 tokens in a row, found 8 learned positions"):
        nnx.merge(*model)(np.zeros((1, 9), np.int32))


def kept_by(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities of what may be drawn, by sorting."""
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled)[: sampling.top_k]
    weights = np.exp(scaled[order] - scaled.max())
    probabilities = weights / weights.sum()
    if sampling.top_p is not None:
        fewest = 1 + np.count_nonzero(np.cumsum(probabilities[:-1]) < sampling.top_p)
        order, probabilities = order[:fewest], probabilities[:fewest] / probabilities[:fewest].sum()
    result = np.zeros(len(logits))
    result[order] = probabilities
    return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_p": 0.05},
        {"top_p": 1.0},
        {"top_k": 4, "top_p": 0.8, "temperature": 1.5},
        {"top_k": 100},
    ],
)
def test_draws_follow_the_truncated_distribution(options: dict) -> None:
    sampling = Sampling(**{"temperature": 1.0} | options)
    logits = np.random.default_rng(0).normal(0, 1, (3, 7)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: sample(jnp.asarray(logits), key, sampling)))(keys))
    for row in range(3):
        wanted, found = kept_by(logits[row], sampling), np.bincount(draws[:, row], minlength=7) / len(draws)
        np.testing.assert_array_equal(found > 0, wanted > 0)
        np.testing.assert_allclose(found, wanted, atol=0.03)


def test_top_k_of_one_and_temperature_zero_are_the_argmax() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 64)), jnp.float32)
    for sampling in (GREEDY, Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6)):
        np.testing.assert_array_equal(sample(logits, jax.random.key(7), sampling), jnp.argmax(logits, 1))


TEXT = "naïve 日本語 👩\u200d👩\u200d👧 end"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token per byte, and one for the end of a document."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(tokenizers.models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<eos>"])
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    library.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory, TokenizerEntry(kind="tokenizers", vocab_size=257, bos_id=None, eos_id=256, files={}))


def pieces(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> Iterator[str]:
    return stream_text(tokenizer, prompt, iter(ids))


def test_stream_joins_to_the_whole_text_and_never_splits_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) == len(TEXT.encode()) and tokenizer.decode(ids) == TEXT
    for length in range(len(TEXT)):
        prompt = tokenizer.encode(TEXT[:length])
        streamed = list(pieces(tokenizer, prompt, ids[len(prompt) :]))
        assert streamed == list(TEXT[length:])


def test_stream_gives_out_a_character_that_stays_unfinished(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    for stop in range(1, len(ids) + 1):
        assert "".join(pieces(tokenizer, [], ids[:stop])) == tokenizer.decode(ids[:stop])


def test_stream_of_bytes_that_are_no_text_joins_to_what_they_decode_to(tokenizer: Tokenizer) -> None:
    ids = np.random.default_rng(0).integers(256, size=300).tolist()
    assert "".join(pieces(tokenizer, tokenizer.encode("a"), ids)) == tokenizer.decode(tokenizer.encode("a") + ids)[1:]


def test_stream_is_as_early_as_it_can_be(tokenizer: Tokenizer) -> None:
    def ids() -> Iterator[int]:
        yield from tokenizer.encode("ab")
        raise AssertionError("asked for more than was needed")

    stream = stream_text(tokenizer, [], ids())
    assert [next(stream), next(stream)] == ["a", "b"]
