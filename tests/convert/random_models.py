"""Random settings of `transformers`' models: the golden ones with other sizes, and other values where there are any."""

import numpy as np
from golden_models import MODELS


def families() -> list[str]:
    return list(dict.fromkeys(settings["model_type"] for settings in MODELS.values()))


def random_settings(family: str, seed: int) -> dict:
    """One of the family's golden models, varied; what it depends on stays consistent."""
    random = np.random.default_rng(seed)
    pick = lambda *values: values[random.integers(len(values))]  # noqa: E731
    variants = [settings for settings in MODELS.values() if settings["model_type"] == family]
    settings = dict(variants[seed % len(variants)])
    if family == "gpt2":
        heads = pick(2, 3, 5)
        sizes = {"n_head": heads, "n_embd": heads * pick(8, 12), "n_inner": pick(None, 36, 70), "n_layer": pick(1, 3)}
        return settings | sizes | {"layer_norm_epsilon": pick(1e-5, 1e-3)}
    kv_heads, layers, width = pick(1, 2, 3), pick(3, 5, 6), pick(8, 12, 20)
    heads = kv_heads * pick(1, 2, 3)
    settings |= {
        "vocab_size": pick(70, 96, 131),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * (pick(4, 10) if "head_dim" in settings else width),
        "intermediate_size": pick(28, 64, 90),
        "rms_norm_eps": pick(1e-6, 1e-5, 1e-3),
        "tie_word_embeddings": pick(True, False),
    }
    if "head_dim" in settings:
        settings["head_dim"] = width
    if settings.get("sliding_window"):
        settings["sliding_window"] = pick(1, 3, 8)
    for varied in (_windows, _rotations, _experts, _latents):
        settings |= varied(settings, pick)
    return settings


def _windows(settings: dict, pick) -> dict:
    layers, changes = settings["num_hidden_layers"], {}
    if "max_window_layers" in settings:
        changes["max_window_layers"] = pick(1, 2, layers)
    if "layer_types" in settings:
        pattern = pick(["sliding_attention", "full_attention"], ["sliding_attention"] * 2 + ["full_attention"])
        changes["layer_types"] = (pattern * layers)[:layers]
    if "query_pre_attn_scalar" in settings:
        changes["query_pre_attn_scalar"] = pick(7, 24, 144)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if cap in settings:
            changes[cap] = pick(None, 2.0, 30.0)
    return changes


def _rotations(settings: dict, pick) -> dict:
    """Other factors and wavelengths, of which those of longrope are as many as there are pairs."""
    rope = settings["rope_parameters"]
    if "full_attention" in rope:
        return {"rope_parameters": {kind: _rotation(of_kind, pick) for kind, of_kind in rope.items()}}
    rope = _rotation(rope, pick)
    if rope["rope_type"] == "longrope":
        width = settings["hidden_size"] // settings["num_attention_heads"]
        rope["partial_rotary_factor"] = pick(0.5, 1.0)
        pairs = int(width * rope["partial_rotary_factor"]) // 2
        rope["short_factor"], rope["long_factor"] = ([1 + top * i / pairs for i in range(pairs)] for top in (0.3, 2.0))
    return {"rope_parameters": rope}


def _rotation(rope: dict, pick) -> dict:
    rope = rope | {"rope_theta": pick(30.0, 500.0, 10000.0)}
    return rope | ({"factor": pick(1.5, 4.0)} if "factor" in rope else {})


def _experts(settings: dict, pick) -> dict:
    changes, count = {}, pick(4, 6, 9)
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if name in settings:
            changes |= {name: count, "num_experts_per_tok": pick(2, 3)}
    if "decoder_sparse_step" in settings:
        changes["num_hidden_layers"] = pick(2, 4)
    if "n_group" in settings:
        changes |= {"n_group": pick(2, 3), "topk_group": pick(1, 2), "n_routed_experts": 12}
    if "routed_scaling_factor" in settings:
        changes["routed_scaling_factor"] = pick(1.0, 2.5)
    return changes


def _latents(settings: dict, pick) -> dict:
    if "kv_lora_rank" not in settings:
        return {}
    return {
        "num_key_value_heads": settings["num_attention_heads"],
        "q_lora_rank": pick(None, 16, 30),
        "kv_lora_rank": pick(8, 22),
        "qk_nope_head_dim": pick(6, 12),
        "qk_rope_head_dim": pick(4, 10),
        "v_head_dim": pick(8, 14),
        "first_k_dense_replace": pick(1, 2),
    }
