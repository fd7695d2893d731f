"""What sets the families of decoders apart, in tiny models."""

GPT2 = {
    "num_kv_heads": 4,
    "activation": "gelu",
    "mlp_gated": False,
    "mlp_bias": True,
    "qkv_bias": True,
    "out_bias": True,
    "tie_embeddings": True,
    "learned_positions": 32,
    "norm": "layer",
}

# One layer, then once the pattern; caps that bend.
GEMMA2 = {
    "num_layers": 3,
    "activation": "gelu",
    "tie_embeddings": True,
    "scale_embeddings": True,
    "rope": {"theta": 100.0},
    "window": (5, None),
    "attention_softcap": 2.0,
    "logit_softcap": 3.0,
    "query_scale": 0.4,
    "norm_place": "both",
    "norm_offset": True,
    "norm_eps": 1e-6,
}

# Two layers, then once the pattern.
GEMMA3 = {
    "num_layers": 5,
    "activation": "gelu",
    "tie_embeddings": True,
    "scale_embeddings": True,
    "rope": {"theta": 100.0, "local_theta": 10.0, "scaling": {"name": "linear", "factor": 4.0}},
    "window": (5, 5, None),
    "query_scale": 0.4,
    "qk_norm": True,
    "norm_place": "both",
    "norm_offset": True,
    "norm_eps": 1e-6,
}

OLMO2 = {"num_kv_heads": 4, "rope": {"theta": 100.0}, "qk_norm": "all_heads", "norm_place": "after", "norm_eps": 1e-6}

# Heads wider than their share of the residual stream, a window in all layers, biases of queries, keys and values.
QWEN = {"head_dim": 8, "rope": {"theta": 100.0}, "window": 4, "qkv_bias": True, "qk_norm": True}

# Latents of queries, keys and values; experts that are chosen by sigmoids with a bias, one of all tokens besides.
DEEPSEEK = {
    "num_layers": 3,
    "num_kv_heads": 4,
    "head_dim": 10,
    "latent": {"query_rank": 12, "kv_rank": 8, "nope_head_dim": 6, "rope_head_dim": 4, "value_head_dim": 5},
    "moe": {
        "num_experts": 8,
        "experts_per_token": 3,
        "mlp_dim": 8,
        "shared_experts": 1,
        "scores": "sigmoid",
        "scale": 2.5,
        "balance": "bias",
        "first_dense": 1,
    },
}

FAMILIES = {"gpt2": GPT2, "gemma2": GEMMA2, "gemma3": GEMMA3, "olmo2": OLMO2, "qwen": QWEN, "deepseek": DEEPSEEK}
