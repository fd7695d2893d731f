"""Tiny models of every family as transformers writes them: config.json, and names and shapes of the tensors.

What it wrote is kept in `configs`, so that tests need no transformers; one that has it compares. To write it again:

    python tests/convert/written_by_transformers.py
"""

import json
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "configs"

SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
DEEPSEEK = EXPERTS | LATENT | {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}

# Of every family, the settings of its class in transformers.
CLASSES: dict[str, dict[str, Any]] = {
    "llama": SIZES
    | {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": SIZES | {"head_dim": 6, "sliding_window": 8, "tie_word_embeddings": True},
    "mixtral": SIZES | {"num_local_experts": 4},
    "qwen2": SIZES | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": SIZES | {"head_dim": 6, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}},
    "qwen3_moe": SIZES | EXPERTS | {"head_dim": 6, "num_experts": 4, "norm_topk_prob": True, "mlp_only_layers": [0]},
    "gemma2": SIZES | {"head_dim": 6, "sliding_window": 8, "query_pre_attn_scalar": 5},
    "gemma3_text": SIZES
    | {
        "head_dim": 6,
        "num_hidden_layers": 8,
        "sliding_window": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "olmo2": SIZES | {"rope_parameters": YARN},
    "phi3": SIZES
    | {
        "hidden_size": 32,
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.5, 2.0],
            "long_factor": [1.0, 3.0, 5.0],
        },
    },
    "gpt2": {"vocab_size": 24, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 20},
    "deepseek_v2": SIZES
    | DEEPSEEK
    | {"q_lora_rank": None, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
    "deepseek_v3": SIZES
    | DEEPSEEK
    | {"q_lora_rank": 10, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}},
}


def write(family: str, folder: Path) -> None:
    """What transformers writes of the family's tiny model."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**CLASSES[family])).save_pretrained(folder)


def shapes(folder: Path) -> dict[str, list[int]]:
    """Of every tensor in a folder by its name."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in sorted(tensors.keys())}


if __name__ == "__main__":
    lists = {}
    for family in CLASSES:
        with tempfile.TemporaryDirectory() as path:
            write(family, Path(path))
            lists[family] = shapes(Path(path))
            (FOLDER / f"{family}.json").write_bytes((Path(path) / "config.json").read_bytes())
    rows = [f"{json.dumps(family)}: {json.dumps(tensors)}" for family, tensors in lists.items()]
    (FOLDER / "tensors.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
