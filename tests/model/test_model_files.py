"""The model files: every one loads, and has as many parameters as were published."""

from pathlib import Path

import pytest

from maxlm.config import LongRopeScaling, ModelConfig, read, validate
from maxlm.model.counts import active_parameter_count, parameter_count

FILES = Path(__file__).parents[2] / "configs" / "models"

# Parameters in all: of the released weights, counted tensor by tensor, where they are whole numbers; of the papers'
# tables where they are rounded; of the ladder by hand.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 0.596e9,
    "qwen3-8b": 8.19e9,
    "qwen3-32b": 32.8e9,
    "qwen3-30b-a3b": 30.5e9,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": (675 + 3209) * 1e6,
    "gemma3-27b": (1416 + 25600) * 1e6,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "olmo2-7b": 7.30e9,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,  # 671B in table 1, without the module that predicts a second token
    "phi3-mini": 3_821_079_552,
    "phi4-mini": 3_836_021_760,
    "phi4-14b": 14_659_507_200,
    "gpt2-124m": 124_439_808,
    "gpt2-1.5b": 1_557_611_200,
    # Table, then per layer attention, MLP and two norms, then the last norm.
    "ladder-60m": 50304 * 512 + 10 * (4 * 512**2 + 3 * 512 * 1536 + 2 * 512) + 512,
    "ladder-125m": 50304 * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768) + 768,
    "ladder-350m": 50304 * 1024 + 24 * (4 * 1024**2 + 3 * 1024 * 2688 + 2 * 1024) + 1024,
    "ladder-760m": 50304 * 1536 + 24 * (4 * 1536**2 + 3 * 1536 * 4096 + 2 * 1536) + 1536,
    "ladder-1.3b": 50304 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 5504 + 2 * 2048) + 2048,
}
ACTIVE = {"mixtral-8x7b": 12.9e9, "qwen3-30b-a3b": 3.3e9, "deepseek-v2": 21e9, "deepseek-v3": 37e9}
ACTIVE["deepseek-v2-lite"] = 2.4e9 + 102400 * 2048  # published without the table of embeddings


def model_of(name: str) -> ModelConfig:
    return validate(read(FILES / f"{name}.yaml")["model"], ModelConfig, name)


def test_every_file_is_known() -> None:
    assert {path.stem for path in FILES.glob("*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    config, published = model_of(name), PUBLISHED[name]
    found = parameter_count(config)
    assert found == (published if isinstance(published, int) else pytest.approx(published, rel=0.005))
    # The comment of the file gives the count to the last digit, or rounded.
    comment = (FILES / f"{name}.yaml").read_text().partition("model:")[0]
    assert f"{found:,}" in comment or f"{found / 1e9:.1f}B" in comment
    assert active_parameter_count(config) == pytest.approx(ACTIVE.get(name, found), rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_models_say_for_how_long_sequences_they_are(name: str) -> None:
    """Rungs of the ladder are as long as their runs; a scaled rotation reaches as far as it was stretched."""
    config = model_of(name)
    assert (config.context_length is None) == name.startswith("ladder")
    assert config.learned_positions in (None, config.context_length)
    if isinstance(scaling := config.rope.scaling, LongRopeScaling):
        assert scaling.factor * scaling.original_length == config.context_length
    windows = [window for window in config.window_pattern if window]
    assert all(window < config.context_length for window in windows)


@pytest.mark.parametrize("name", ["gemma2-2b", "gemma2-9b", "gemma2-27b"])
def test_every_second_layer_of_gemma_2_is_global_from_the_second_on(name: str) -> None:
    config = model_of(name)
    assert [config.window_of(n) for n in range(4)] == [4096, None, 4096, None]
    assert config.first_layers == 0 and 2 * config.num_blocks == config.num_layers


def test_the_same_layers_of_gemma_3_are_global_as_in_its_release() -> None:
    for name, layers in (("gemma3-1b", 26), ("gemma3-4b", 34), ("gemma3-27b", 62)):
        config = model_of(name)
        assert [n for n in range(layers) if config.window_of(n) is None] == [*range(5, layers, 6)]
        # The rest of the pattern stands before the blocks, so that these divide over a pipeline.
        assert config.first_layers + 6 * config.num_blocks == config.num_layers == layers
