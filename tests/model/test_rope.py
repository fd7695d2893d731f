"""Rotary positions: every scaling against float64 formulas and against transformers, and the rotated part of heads."""

import jax.numpy as jnp
import numpy as np
import pytest
from float64_decoder import Float64Decoder
from scalings import DYNAMIC, LONGROPE, ORIGINAL, SCALINGS, YARN
from tiny import model_config

from maxlm.config import ModelConfig
from maxlm.errors import ConfigError
from maxlm.model.positions import apply_rope, attention_factor, rotation_lengths, rotations

# Documents as short as the original length and longer ones, alone in a row.
LENGTHS = (1, 7, ORIGINAL, ORIGINAL + 1, 40)
# Larger models, with all kinds of pairs, and what differs from the defaults.
LARGE = {
    "plain": {"theta": 500000.0},
    "partial": {"theta": 10000.0, "fraction": 0.75},
    "linear": {"theta": 10000.0, "scaling": {"name": "linear", "factor": 8.0}},
    "dynamic": {"theta": 10000.0, "scaling": {"name": "dynamic", "factor": 2.5, "original_length": 64}},
    "llama3": {
        "theta": 500000.0,
        "scaling": {"name": "llama3", "factor": 32.0, "original_length": 8192},
    },
    "yarn": {"theta": 10000.0, "scaling": {"name": "yarn", "factor": 40.0, "original_length": 4096}},
    "yarn mscale": {
        "theta": 10000.0,
        "fraction": 0.5,
        "scaling": {
            "name": "yarn",
            "factor": 40.0,
            "original_length": 4096,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    },
    "yarn attention factor": {
        "theta": 1000000.0,
        "scaling": {"name": "yarn", "factor": 4.0, "original_length": 32768, "attention_factor": 0.9},
    },
    # As Phi-4-mini: heads of which three quarters are rotated.
    "longrope": {
        "theta": 10000.0,
        "fraction": 0.75,
        "scaling": {
            "name": "longrope",
            "short_factors": tuple(1 + 0.01 * pair for pair in range(48)),
            "long_factors": tuple(1.05**pair for pair in range(48)),
            "original_length": 64,
            "factor": 32.0,
        },
    },
}


def config_of(rope: dict, head_dim: int = 8, **changes: object) -> ModelConfig:
    return model_config(head_dim=head_dim, rope=rope, **changes)


def alone(config: ModelConfig, length: int) -> list[np.ndarray]:
    """Sines and cosines [S, R] of a document of so many tokens in a row of its own."""
    positions_BS = jnp.arange(length)[None]
    lengths_BS = rotation_lengths(jnp.ones_like(positions_BS), positions_BS, config)
    return [np.asarray(table[0]) for table in rotations(positions_BS, config, lengths_BS).full]


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_float64_formulas(name: str) -> None:
    config = config_of(SCALINGS[name])
    exact = Float64Decoder(config, {})
    for length in LENGTHS:
        angles = np.array([[t * exact.frequency(pair, length) for pair in range(4)] for t in range(length)])
        for found, wanted in zip(alone(config, length), (np.sin(angles), np.cos(angles)), strict=True):
            np.testing.assert_allclose(found, wanted * exact.rotation_factor(), atol=1e-5)


def test_every_scaling_shows_in_the_tiny_models() -> None:
    """Neighbouring cases differ, below or beyond the original length; the tests of decoders build upon that."""
    tables = {name: np.stack(alone(config_of(rope), 40)) for name, rope in SCALINGS.items()}
    tables["plain"] = np.stack(alone(config_of({"theta": 100.0}), 40))
    names = list(tables)
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            assert np.abs(tables[name] - tables[other])[:, :ORIGINAL].max() > 0.01, (name, other)
    for name in ("dynamic", "longrope"):
        below, beyond = (alone(config_of(SCALINGS[name]), length)[0] for length in (ORIGINAL, ORIGINAL + 4))
        assert np.abs(below - beyond[:ORIGINAL]).max() > 0.05


def transformers_tables(config: ModelConfig, length: int) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.phi3.configuration_phi3 import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    scaling = config.rope.scaling
    fields = {"rope_type": "default"}
    if scaling is not None:
        names = {
            "name": "rope_type",
            "original_length": "original_max_position_embeddings",
            "short_factors": "short_factor",
            "long_factors": "long_factor",
        }
        fields = {names.get(name, name): value for name, value in scaling.model_dump().items() if value is not None}
    fields |= {"rope_theta": config.rope.theta, "partial_rotary_factor": config.rope.fraction}
    original = getattr(scaling, "original_length", 4096)
    theirs = Phi3Config(
        hidden_size=config.num_heads * config.head_dim,
        num_attention_heads=config.num_heads,
        max_position_embeddings=original,
        original_max_position_embeddings=original,
    )
    theirs.rope_parameters = fields
    cos, sin = Phi3RotaryEmbedding(theirs)(torch.zeros(1), torch.arange(length)[None])
    return [table[0, :, : table.shape[-1] // 2].numpy() for table in (sin, cos)]


@pytest.mark.parametrize("name", LARGE)
def test_tables_equal_those_of_transformers(name: str) -> None:
    """To the rounding of frequencies: two units in the last place at every position."""
    config = config_of(LARGE[name], head_dim=128)
    for length in (64, 65, 300):
        tolerance = 2.4e-7 * (2 + np.arange(length))[:, None]
        for found, wanted in zip(alone(config, length), transformers_tables(config, length), strict=True):
            assert found.shape == wanted.shape
            assert (np.abs(found - wanted) < tolerance).all(), np.abs(found - wanted).max()


def test_what_is_not_rotated_is_passed_through() -> None:
    config = config_of({"theta": 100.0, "fraction": 0.5})
    x_BSHE = np.random.default_rng(0).normal(size=(2, 6, 3, 8)).astype(np.float32)
    positions_BS = np.tile(np.arange(6), (2, 1))
    rotated = np.asarray(apply_rope(jnp.asarray(x_BSHE), rotations(positions_BS, config).full))
    np.testing.assert_array_equal(rotated[..., 4:], x_BSHE[..., 4:])
    turned = (x_BSHE[..., :2] + 1j * x_BSHE[..., 2:4]) * np.exp(1j * np.arange(6)[:, None, None] * [1, 0.1])
    np.testing.assert_allclose(rotated[..., :4], np.concatenate([turned.real, turned.imag], -1), atol=1e-6)


def test_layers_with_a_theta_of_their_own_are_not_scaled() -> None:
    config = config_of(LONGROPE | {"local_theta": 7.0}, window=4)
    positions_BS = jnp.arange(40)[None]
    lengths_BS = rotation_lengths(jnp.ones_like(positions_BS), positions_BS, config)
    found = rotations(positions_BS, config, lengths_BS)
    plain = rotations(positions_BS, config_of({"theta": 7.0})).full
    for one, other in zip(found.of(4), plain, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(found.of(None)[0] - found.of(4)[0]).max() > 0.1


def test_lengths_are_those_of_documents_wherever_their_tokens_stand() -> None:
    random = np.random.default_rng(0)
    # Two documents of 7 and 25 tokens and padding; one document whose first tokens are elsewhere.
    segments = np.array([[3] * 7 + [900] * 25 + [0] * 8, [1] * 40])
    positions = np.array([[*range(7), *range(25), *[0] * 8], range(5, 45)])
    order = random.permutation(40)
    for config, wanted in (
        (config_of(DYNAMIC), [[7] * 7 + [25] * 25 + [6] * 8, [45] * 40]),
        (config_of(LONGROPE), [[7] * 32 + [6] * 8, [7] * 40]),
    ):
        found = rotation_lengths(jnp.asarray(segments[:, order]), jnp.asarray(positions[:, order]), config)
        np.testing.assert_array_equal(found, np.array(wanted)[:, order])


def test_lengths_are_not_asked_for_where_they_do_not_matter() -> None:
    positions_BS = jnp.arange(4)[None]
    for config in (config_of(YARN), config_of({}), config_of(LONGROPE, learned_positions=8)):
        assert rotation_lengths(positions_BS, positions_BS, config) is None


def test_attention_factor_is_what_is_given_or_made_of_factor() -> None:
    scaling = YARN["scaling"]
    factor = {
        "given": attention_factor(config_of({"scaling": scaling | {"attention_factor": 0.5}}).rope),
        "default": attention_factor(config_of({"scaling": scaling}).rope),
        "mscale alone": attention_factor(config_of({"scaling": scaling | {"mscale": 2.0}}).rope),
        "no longer": attention_factor(config_of({"scaling": scaling | {"factor": 1.0}}).rope),
        "longrope": attention_factor(config_of(LONGROPE | {"scaling": LONGROPE["scaling"] | {"factor": None}}).rope),
    }
    growth = 1 + 0.1 * np.log(4)
    wanted = {"given": 0.5, "default": growth, "mscale alone": growth, "no longer": 1.0, "longrope": 1.0}
    assert factor == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (DYNAMIC | {"fraction": 0.25}, "rope.scaling: dynamic needs more than 2 rotated dimensions, found 2"),
        (YARN | {"theta": 1.0}, "rope.theta must be above 1 with yarn, found 1.0"),
        (
            LONGROPE | {"scaling": LONGROPE["scaling"] | {"original_length": 1}},
            "original_length must be above 1 for an attention_factor made of factor",
        ),
    ],
)
def test_scalings_that_mean_nothing_are_refused(rope: dict, message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        config_of(rope)
