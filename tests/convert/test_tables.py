"""Tensors of Hugging Face folders and parameters of ours."""

import numpy as np
import pytest

from maxlm.config import ModelConfig
from maxlm.convert.families import TABLES, links

TINY = {
    "vocab_size": 24,
    "num_layers": 3,
    "embed_dim": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "mlp_dim": 20,
}

MODELS = {"llama": ModelConfig(**TINY, qkv_bias=True, out_bias=True, mlp_bias=True)}


@pytest.mark.parametrize("family", TABLES)
def test_tensors_travel_there_and_back_to_the_bit(family: str) -> None:
    random = np.random.default_rng(0)
    for link in links(family, MODELS[family]):
        tensor = random.integers(0, 2**16, link.shape, np.uint16).view(np.float16)
        ours = link.split(tensor)
        assert len(ours) == len(link.ours)
        back = link.join(ours)
        assert back.shape == link.shape and back.tobytes() == tensor.tobytes()
