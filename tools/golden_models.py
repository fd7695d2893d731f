"""The tiny models of the golden files, as `transformers` configures them: every mechanism that a family has, at sizes
that differ wherever two could be mistaken for each other."""

# Beyond 16 tokens rotations are stretched where they are scaled; tests read up to 40. A small theta, so that all pairs
# turn within that.
ORIGINAL, LONGEST, THETA = 16, 40, 100.0

COMMON = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
DENSE = COMMON | {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
}


def rope(kind: str = "default", **parameters: object) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": THETA, **parameters}}


LLAMA = {"model_type": "llama"} | DENSE | {"head_dim": 16} | rope()
DEEPSEEK = DENSE | {
    "num_hidden_layers": 5,
    "num_key_value_heads": 6,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
}
PHI3 = {"model_type": "phi3"} | DENSE | {"hidden_size": 64, "num_attention_heads": 4, "tie_word_embeddings": False}
QWEN3_MOE = {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 8, "moe_intermediate_size": 24} | DENSE | rope()

MODELS = {
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_inner": 80, "n_layer": 4, "n_head": 6, "n_positions": LONGEST}
    | COMMON,
    "llama": LLAMA,
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-linear": LLAMA | rope("linear", factor=2.5),
    # Without an original length of its own: it is max_position_embeddings here.
    "llama-dynamic": LLAMA | rope("dynamic", factor=2.5) | {"max_position_embeddings": ORIGINAL},
    "llama-llama3": LLAMA
    | rope(
        "llama3",
        factor=2.5,
        low_freq_factor=1.0,
        high_freq_factor=2.0,  # so that one pair is kept, one blended and the others slowed
        original_max_position_embeddings=ORIGINAL,
    ),
    "llama-yarn": LLAMA | rope("yarn", factor=2.5, original_max_position_embeddings=ORIGINAL),
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": 5} | DENSE | rope(),
    "mixtral": {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}
    | DENSE
    | rope(),
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True} | DENSE | rope(),
    "qwen2-windows": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    | DENSE
    | rope("yarn", factor=2.5, original_max_position_embeddings=ORIGINAL),
    "qwen3": {"model_type": "qwen3", "head_dim": 16} | DENSE | rope(),
    "qwen3_moe": QWEN3_MOE | {"num_experts_per_tok": 3, "norm_topk_prob": True},
    "qwen3_moe-sparse": QWEN3_MOE | {"num_experts_per_tok": 2, "norm_topk_prob": False, "decoder_sparse_step": 2},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    }
    | DENSE
    | {"num_hidden_layers": 5}
    | rope(),
    "gemma3_text": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    }
    | DENSE
    | {
        "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": THETA, "factor": 2.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        },
    },
    "olmo2": {"model_type": "olmo2"} | DENSE | rope(),
    "phi3": PHI3 | {"sliding_window": 5} | rope(),
    "phi3-longrope": PHI3
    | {"original_max_position_embeddings": ORIGINAL, "tie_word_embeddings": True}
    | rope(
        "longrope",
        partial_rotary_factor=0.75,
        short_factor=[1.0, 1.02, 1.05, 1.1, 1.2, 1.3],
        long_factor=[1.0, 1.3, 1.7, 2.1, 2.4, 2.5],
    ),
    # As DeepSeek-V2-Lite: queries straight from the stream, experts chosen without groups.
    "deepseek_v2-lite": {
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "norm_topk_prob": False,
    }
    | DEEPSEEK
    | rope(
        "yarn",
        factor=2.5,
        original_max_position_embeddings=ORIGINAL,
        beta_fast=2.0,
        beta_slow=0.25,
        mscale=0.707,
        mscale_all_dim=0.707,
    ),
    "deepseek_v2": {
        "model_type": "deepseek_v2",
        "q_lora_rank": 28,
        "n_shared_experts": 2,
        "topk_method": "group_limited_greedy",
        "n_group": 3,
        "topk_group": 2,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
    }
    | DEEPSEEK
    | rope(),
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "q_lora_rank": 28,
        "n_shared_experts": 1,
        "n_group": 3,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    }
    | DEEPSEEK
    | rope(
        "yarn",
        factor=2.5,
        original_max_position_embeddings=ORIGINAL,
        beta_fast=2.0,
        beta_slow=0.25,
        mscale=1.0,
        mscale_all_dim=0.5,
    ),
}
