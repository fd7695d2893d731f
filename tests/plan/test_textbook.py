"""The textbook's formulas against hand counts and against what is counted from a model."""

import pytest
from tiny import model_config

from maxlm.model.counts import flops_per_token, forward_flops_per_token, matmul_parameter_count, parameter_count
from maxlm.plan import textbook


def test_parameters_of_llama_7b() -> None:
    assert textbook.parameters(vocab_size=32000, num_layers=32, embed_dim=4096, mlp_dim=11008) == 6_738_415_616


def test_the_formula_is_exact_where_its_assumptions_hold() -> None:
    config = model_config(num_kv_heads=4)
    assert textbook.parameters_of(config) == parameter_count(config)
    # Two key/value heads of width 4 less, for keys and for values, in each of 2 layers.
    grouped = model_config(num_kv_heads=2)
    assert textbook.parameters_of(grouped) - parameter_count(grouped) == 2 * 2 * 16 * (2 * 4)


def test_six_flops_per_parameter_are_those_of_the_matrices() -> None:
    config = model_config()
    attention = 3 * forward_flops_per_token(config, 8)["attention"]
    counted = flops_per_token(config, 8) - attention
    assert textbook.training_flops(matmul_parameter_count(config), 1) == pytest.approx(counted, rel=1e-12)


def test_chinchilla_is_near_its_own_optimum() -> None:
    assert textbook.optimum_tokens(70e9) == 1.4e12
    # 1.69 + 406.4 / 70e9^0.34 + 410.7 / 1.4e12^0.28 = 1.69 + 0.083 + 0.163
    assert textbook.chinchilla_loss(70e9, 1.4e12) == pytest.approx(1.936, abs=1e-3)
    assert textbook.chinchilla_loss(1e30, 1e30) == pytest.approx(1.69, abs=1e-5)


def test_kaplan_is_each_power_law_where_the_other_is_exhausted() -> None:
    assert textbook.kaplan_loss(6.4e13, 1e30) == pytest.approx(1, abs=1e-6)
    assert textbook.kaplan_loss(1e9, 1e30) == pytest.approx(64_000**0.076, rel=1e-6)
    assert textbook.kaplan_loss(1e30, 1e9) == pytest.approx(18_000**0.103, rel=1e-3)
    assert textbook.kaplan_loss(1e9, 2e10) > textbook.kaplan_loss(1e9, 4e10) > textbook.kaplan_loss(2e9, 4e10)


def test_memory_of_training() -> None:
    assert textbook.state_bytes(7e9) == 112e9
    # 32 layers, 8 sequences of 2,048 tokens, width 4,096: 2 x 32 x 16,384 x 4,096; a vocabulary of 32,000.
    assert textbook.activation_bytes(32, 8, 2048, 4096) == 4 * 2**30
    assert textbook.logits_bytes(8, 2048, 32000) == 12 * 16_384 * 32_000
