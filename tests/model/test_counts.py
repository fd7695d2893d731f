"""Parameter and FLOP counts against hand counts."""

import pytest
from tiny import model_config

from maxlm.config import ModelConfig
from maxlm.model.counts import flops_per_token, matmul_parameter_count, parameter_count

# 2 layers of width 16, 4 query heads and 2 key/value heads of width 4, MLP 32, vocabulary 64:
# query 16*16, key and value 16*8 each, out 16*16, gate, up and down 16*32 each.
LAYER_MATRICES = 256 + 128 + 128 + 256 + 3 * 512
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
    ],
)
def test_parameter_counts_equal_the_hand_count(changes: dict, total: int, in_products: int) -> None:
    config = model_config(**changes)
    assert parameter_count(config) == total
    assert matmul_parameter_count(config) == in_products


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
