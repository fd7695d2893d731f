"""Sampling and streaming."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from families import GEMMA2, GEMMA3, GPT2
from flax import nnx
from tiny import model_config

from maxlm.data.shards import TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import ConfigError
from maxlm.evaluate.generate import generate
from maxlm.evaluate.sampling import Sampling, sample
from maxlm.evaluate.text import TextStream
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


def drawn(graphdef: nnx.GraphDef, params: dict, prompt: list[int], **options: object) -> list[int]:
    (result,) = generate(graphdef, params, [prompt], **options)
    return result.ids


# One token, between two powers of two, at one, beyond one.
@pytest.mark.parametrize(
    ("changes", "lengths"),
    [({}, (1, 5, 16, 17)), (EXPERTS, (5, 17)), (GPT2, (5, 17)), (GEMMA2, (5, 17)), (GEMMA3, (5, 17))],
    ids=["dense", "experts", "gpt2", "gemma2", "gemma3"],
)
def test_greedy_is_the_argmax_of_the_full_forward_pass(changes: dict, lengths: tuple[int, ...]) -> None:
    graphdef, params = make_model(**changes)
    forward = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens))
    for length in lengths:
        text = np.random.default_rng(length).integers(1, 64, length).tolist()
        ids = drawn(graphdef, params, text, max_tokens=6, sampling=GREEDY)
        assert len(ids) == 6
        for token in ids:
            padded = np.pad(np.array(text, np.int32), (0, 32 - len(text)))
            assert token == int(jnp.argmax(forward(padded[None])[0, len(text) - 1]))
            text.append(token)


def test_end_of_document_ends_the_text(model: tuple) -> None:
    (whole,) = generate(*model, [PROMPT], max_tokens=8, sampling=GREEDY)
    assert whole.finish == "length"
    end = whole.ids[3]
    (ended,) = generate(*model, [PROMPT], max_tokens=8, sampling=GREEDY, stop_ids=[63, end])
    length = whole.ids.index(end)
    assert (ended.ids, ended.logprobs, ended.finish) == (whole.ids[:length], whole.logprobs[:length], "stop")


def test_same_seed_same_text_and_another_seed_another(model: tuple) -> None:
    first, again, other = (
        drawn(*model, PROMPT, max_tokens=8, sampling=Sampling(temperature=1), seed=seed) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_every_token_is_drawn_anew(model: tuple) -> None:
    graphdef, params = model
    uniform = jax.tree.map(jnp.zeros_like, params)
    assert len(set(drawn(graphdef, uniform, PROMPT, max_tokens=8, sampling=Sampling(temperature=1)))) > 4


def test_longer_text_of_a_seed_begins_with_the_shorter(model: tuple) -> None:
    short, long = (
        drawn(*model, PROMPT, max_tokens=count, sampling=Sampling(temperature=1), seed=3) for count in (3, 8)
    )
    assert long[:3] == short


def test_rows_that_pad_the_vocabulary_are_never_drawn(model: tuple) -> None:
    graphdef, params = model
    uniform = jax.tree.map(jnp.zeros_like, params)
    ids = drawn(graphdef, uniform, PROMPT, max_tokens=60, sampling=Sampling(temperature=1), vocab_size=5)
    assert set(ids) == set(range(5))


def test_prompt_without_tokens_is_refused(model: tuple) -> None:
    with pytest.raises(ConfigError, match="the prompt holds no token"):
        generate(*model, [[]], max_tokens=3, sampling=GREEDY)
    with pytest.raises(ConfigError, match="prompt 2 holds no token"):
        generate(*model, [PROMPT, []], max_tokens=3, sampling=GREEDY)


def test_text_beyond_the_learned_positions_is_refused() -> None:
    model = make_model(**GPT2 | {"learned_positions": 8})
    # The last token drawn is not read.
    assert len(drawn(*model, PROMPT, max_tokens=4, sampling=GREEDY)) == 4
    with pytest.raises(ConfigError, match="5 tokens of the prompt and 5 more need 9 positions, the model has 8"):
        generate(*model, [PROMPT], max_tokens=5, sampling=GREEDY)
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
    keys = jax.random.split(jax.random.key(0), (4000, 3))
    draws = np.asarray(jax.jit(jax.vmap(lambda keys: sample(jnp.asarray(logits), keys, sampling)))(keys))
    for row in range(3):
        wanted, found = kept_by(logits[row], sampling), np.bincount(draws[:, row], minlength=7) / len(draws)
        np.testing.assert_array_equal(found > 0, wanted > 0)
        np.testing.assert_allclose(found, wanted, atol=0.03)


def test_top_k_of_one_and_temperature_zero_are_the_argmax() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 64)), jnp.float32)
    keys = jax.random.split(jax.random.key(7), 5)
    for sampling in (GREEDY, Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6)):
        np.testing.assert_array_equal(sample(logits, keys, sampling), jnp.argmax(logits, 1))


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


def pieces(tokenizer: Tokenizer, prompt: list[int], ids: list[int], chunk: int = 1) -> Iterator[str]:
    stream = TextStream(tokenizer, prompt)
    for start in range(0, len(ids), chunk):
        yield stream.add(ids[start : start + chunk])
    yield stream.rest()


def test_stream_joins_to_the_whole_text_and_never_splits_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) == len(TEXT.encode()) and tokenizer.decode(ids) == TEXT
    for length in range(len(TEXT)):
        prompt = tokenizer.encode(TEXT[:length])
        streamed = [piece for piece in pieces(tokenizer, prompt, ids[len(prompt) :]) if piece]
        assert streamed == list(TEXT[length:])


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_stream_gives_out_a_character_that_stays_unfinished(tokenizer: Tokenizer, chunk: int) -> None:
    ids = tokenizer.encode(TEXT)
    for stop in range(1, len(ids) + 1):
        assert "".join(pieces(tokenizer, [], ids[:stop], chunk)) == tokenizer.decode(ids[:stop])


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_stream_of_bytes_that_are_no_text_joins_to_what_they_decode_to(tokenizer: Tokenizer, chunk: int) -> None:
    ids = np.random.default_rng(0).integers(256, size=300).tolist()
    joined = "".join(pieces(tokenizer, tokenizer.encode("a"), ids, chunk))
    assert joined == tokenizer.decode(tokenizer.encode("a") + ids)[1:]


def test_stream_is_as_early_as_it_can_be(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, [])
    assert [stream.add(tokenizer.encode(character)) for character in "ab"] == ["a", "b"]
    # The first two of three bytes, after a whole character.
    assert stream.add(tokenizer.encode("c語")[:-1]) == "c" and stream.add(tokenizer.encode("語")[-1:]) == "語"


@pytest.fixture(scope="module")
def pieces_of_words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A sentencepiece model, in which a space belongs to the word after it and other characters are bytes."""
    import sentencepiece

    directory: Path = tmp_path_factory.mktemp("sentencepiece")
    lines = [f"the cat sat on the mat {number} times" for number in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return Tokenizer(directory, TokenizerEntry(kind="sentencepiece", vocab_size=310, bos_id=1, eos_id=2, files={}))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_stream_of_sentencepiece_keeps_spaces_and_bytes(pieces_of_words: Tokenizer, chunk: int) -> None:
    text = "the cat sat 語 on \N{GRINNING FACE}\N{GRINNING FACE} the mat"
    ids = pieces_of_words.encode(text)
    assert pieces_of_words.decode(ids) == text
    for length in range(1, len(ids)):
        shown = pieces_of_words.decode(ids[:length])
        if not shown.endswith("\N{REPLACEMENT CHARACTER}"):
            assert shown + "".join(pieces(pieces_of_words, ids[:length], ids[length:], chunk)) == text


def test_a_stop_string_ends_the_text_before_it(tokenizer: Tokenizer) -> None:
    for chunk in (1, 2, 7, 50):
        stream, text = TextStream(tokenizer, [], ["\n\n", "END"]), ""
        ids = tokenizer.encode("one EN\ntwo END three\n\n")
        for start in range(0, len(ids), chunk):
            text += stream.add(ids[start : start + chunk])
        assert (text + stream.rest(), stream.stopped) == ("one EN\ntwo ", True)
    stream = TextStream(tokenizer, [], ["\n\n"])
    assert [stream.add(tokenizer.encode("a\n")), stream.rest(), stream.stopped] == ["a", "\n", False]
    with pytest.raises(ConfigError, match="a stop string is empty"):
        TextStream(tokenizer, [], [""])
