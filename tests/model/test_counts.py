"""Parameter and FLOP counts against hand counts."""

from pathlib import Path

import pytest
from families import GPT2
from tiny import model_config

from maxlm.config import Config, ModelConfig, load
from maxlm.model.counts import (
    active_parameter_count,
    flops_per_token,
    forward_flops_per_token,
    matmul_parameter_count,
    parameter_count,
    parameters_by_part,
)
from maxlm.model.decoder import abstract

CONFIGS = Path(__file__).parents[2] / "configs"

# 2 layers of width 16, 4 query heads and 2 key/value heads of width 4, MLP 32, vocabulary 64:
# query 16*16, key and value 16*8 each, out 16*16, gate, up and down 16*32 each.
LAYER_MATRICES = 256 + 128 + 128 + 256 + 3 * 512
GPT2_MATRICES = 4 * 256 + 2 * 512
TABLE = 64 * 16


@pytest.mark.parametrize(
    ("changes", "total", "in_products"),
    [
        # Norms: two a layer and a final one, of width 16.
        ({}, 2 * LAYER_MATRICES + 5 * 16 + 2 * TABLE, 2 * LAYER_MATRICES + TABLE),
        ({"tie_embeddings": True}, 2 * LAYER_MATRICES + 5 * 16 + TABLE, 2 * LAYER_MATRICES + TABLE),
        # A query and a key norm of width 4 in each layer.
        ({"qk_norm": True}, 2 * LAYER_MATRICES + 5 * 16 + 4 * 4 + 2 * TABLE, 2 * LAYER_MATRICES + TABLE),
        ({"window": (3, None)}, 2 * LAYER_MATRICES + 5 * 16 + 2 * TABLE, 2 * LAYER_MATRICES + TABLE),
        # All heads together: of width 16 and 8. Norms after the layers' parts as well: two more a layer.
        (
            {"qk_norm": "all_heads", "norm_place": "both"},
            2 * LAYER_MATRICES + 9 * 16 + 2 * (16 + 8) + 2 * TABLE,
            2 * LAYER_MATRICES + TABLE,
        ),
        # As GPT-2: no gate and four key/value heads; scales and biases of norms; in a layer 3 x 16 biases of queries,
        # keys and values, 16 of attention, 32 + 16 of the MLP; a table of 32 positions.
        (
            GPT2,
            2 * GPT2_MATRICES + 5 * 2 * 16 + 2 * (3 * 16 + 16 + 32 + 16) + TABLE + 32 * 16,
            2 * GPT2_MATRICES + TABLE,
        ),
    ],
)
def test_parameter_counts_equal_the_hand_count(changes: dict, total: int, in_products: int) -> None:
    config = model_config(**changes)
    assert parameter_count(config) == active_parameter_count(config) == total
    assert matmul_parameter_count(config) == in_products


# Six layers, of which the fourth and the sixth have 8 experts of width 8, 3 for each token.
EXPERTS = {"num_experts": 8, "experts_per_token": 3, "mlp_dim": 8, "first_dense": 2, "every": 2}
ATTENTION, ROUTER, EXPERT = 256 + 128 + 128 + 256, 16 * 8, 3 * 16 * 8


@pytest.mark.parametrize(
    ("changes", "besides", "in_products"),
    [
        ({}, 0, 0),
        # The shared experts are one MLP, which every token meets.
        ({"shared_experts": 2}, 2 * EXPERT, 2 * EXPERT),
        # The balance bias is added, one number for each expert.
        ({"scores": "sigmoid", "balance": "bias"}, 8, 0),
    ],
)
def test_counts_of_a_model_with_experts_equal_the_hand_count(changes: dict, besides: int, in_products: int) -> None:
    config = model_config(num_layers=6, moe=EXPERTS | changes)
    dense, norms = 4 * LAYER_MATRICES, (2 * 6 + 1) * 16

    def layers(experts: int, more: int) -> int:
        return dense + 2 * (ATTENTION + ROUTER + experts * EXPERT + more)

    assert parameter_count(config) == layers(8, besides) + norms + 2 * TABLE
    assert active_parameter_count(config) == layers(3, besides) + norms + 2 * TABLE
    assert matmul_parameter_count(config) == layers(3, in_products) + TABLE
    attention = 6 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) / 8 * 3 * 2 * 2 * (4 * 4)
    products = 3 * 2 * (layers(3, in_products) + TABLE)
    assert flops_per_token(config, 8) == pytest.approx(products + attention, rel=1e-12)


def test_parameters_by_part_equal_the_hand_count() -> None:
    # Four layers with a dense MLP, two with a router, 8 experts, 2 shared ones and a bias of the balance.
    experts = EXPERTS | {"shared_experts": 2, "scores": "sigmoid", "balance": "bias"}
    config = model_config(num_layers=6, qk_norm=True, moe=experts)
    parts = parameters_by_part(config)
    assert parts == {
        "embedding": TABLE,
        "attention": 6 * ATTENTION,
        "mlp": 4 * 3 * 512,
        "experts": 2 * 8 * EXPERT,
        "shared": 2 * 2 * EXPERT,
        "router": 2 * (ROUTER + 8),
        "norms": (2 * 6 + 1) * 16 + 6 * 2 * 4,
        "output": TABLE,
    }
    assert sum(parts.values()) == parameter_count(config)
    assert "output" not in parameters_by_part(model_config(tie_embeddings=True))


def test_forward_flops_by_part() -> None:
    # One query in a window of 1 sees itself: 16 products for its score and 16 for its value in each of 2 layers.
    parts = forward_flops_per_token(model_config(window=1), 8)
    assert parts == {"matrices": 2.0 * (2 * LAYER_MATRICES + TABLE), "attention": 2 * 2 * 2.0 * 16}


@pytest.mark.parametrize(
    ("window", "keys"),
    [
        # Keys seen by the 8 queries of a sequence, summed over the 2 layers.
        (None, 2 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8)),
        (3, 2 * (1 + 2 + 3 + 3 + 3 + 3 + 3 + 3)),
        ((3, None), (1 + 2 + 3 + 3 + 3 + 3 + 3 + 3) + (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8)),
        (100, 2 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8)),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_flops_equal_the_hand_count(window: object, keys: int, tied: bool) -> None:
    # Two operations for every product and addition, three passes (forward, by weights, by inputs). A query spends a
    # multiplication on each of 16 values of a key for the score, and as many on the value that is mixed in.
    matrices = 8 * 3 * 2 * (2 * LAYER_MATRICES + TABLE)
    attention = keys * 3 * 2 * 2 * (4 * 4)
    config = model_config(window=window, tie_embeddings=tied)
    assert flops_per_token(config, 8) == pytest.approx((matrices + attention) / 8, rel=1e-12)


def test_llama_7b_has_6_74_billion_parameters() -> None:
    vocab, layers, embed, mlp = 32000, 32, 4096, 11008
    config = ModelConfig(
        vocab_size=vocab, num_layers=layers, embed_dim=embed, num_heads=32, num_kv_heads=32, head_dim=128, mlp_dim=mlp
    )
    formula = 2 * vocab * embed + (2 * layers + 1) * embed + 4 * layers * embed**2 + 3 * layers * embed * mlp
    assert parameter_count(config) == formula == 6_738_415_616


def test_mixtral_8x7b_has_46_7_billion_parameters_of_which_a_token_meets_12_9() -> None:
    config = load(CONFIGS / "runs" / "mixtral-8x7b-v5p-128.yaml", schema=Config).model
    embed, layers, expert = 4096, 32, 3 * 4096 * 14336
    attention = 2 * embed * embed + 2 * embed * 1024
    others = 2 * 32000 * embed + (2 * layers + 1) * embed + layers * (attention + embed * 8)
    assert parameter_count(config) == others + layers * 8 * expert == 46_702_792_704
    assert active_parameter_count(config) == others + layers * 2 * expert == 12_879_925_248


def test_what_every_step_asks_is_counted_once(monkeypatch):
    """Counting traces the model, for which a step has no time."""
    config, traced = model_config(embed_dim=24), []
    monkeypatch.setattr("maxlm.model.counts.abstract", lambda config: traced.append(config) or abstract(config))
    assert flops_per_token(config, 16) == flops_per_token(config, 16) < flops_per_token(config, 32)
    assert len(traced) == 1
