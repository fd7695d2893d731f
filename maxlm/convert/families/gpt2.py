"""GPT-2: learned positions, LayerNorm, biases everywhere; matrices are kept [inputs, outputs]."""

from maxlm.convert.families import parts
from maxlm.convert.layouts import LINEAR, TABLE, VECTOR, Layout
from maxlm.convert.settings import Fixed, Follows, Implied, Key
from maxlm.convert.table import Family, LeftOut, Tensor

QKV = ("attention.query", "attention.key", "attention.value")

GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    settings=(
        Key("vocab_size", "vocab_size"),
        Key("n_positions", ("learned_positions", "context_length"), count=True),
        Follows("n_ctx", lambda fields: fields["learned_positions"]),
        Key("n_embd", "embed_dim", count=True),
        Key("n_layer", "num_layers", count=True),
        Key("n_head", "num_heads", count=True),
        Implied("num_kv_heads", lambda fields: fields["num_heads"]),
        Implied("head_dim", lambda fields: fields["embed_dim"] // fields["num_heads"]),
        Key("n_inner", "mlp_dim", default=None, null=lambda fields: 4 * fields["embed_dim"]),
        Key(
            "activation_function", "activation", default="gelu_new", spellings={"gelu_new": "gelu"} | parts.ACTIVATIONS
        ),
        Key("layer_norm_epsilon", "norm_eps", default=1e-5),
        Key("initializer_range", "init_std", default=0.02),
        Key("tie_word_embeddings", "tie_embeddings", default=True),
        Key("scale_attn_weights", "query_scale", default=True, spellings={True: None, False: 1.0}),
        Fixed("scale_attn_by_inverse_layer_idx", False),
    ),
    fields={"mlp_gated": False, "mlp_bias": True, "qkv_bias": True, "out_bias": True, "norm": "layer"},
    prefix="transformer.",
    before=(Tensor("transformer.wte.weight", "embedding", TABLE), Tensor("transformer.wpe.weight", "positions", TABLE)),
    layers="transformer.h.{layer}.",
    layer=(
        Tensor("ln_1.weight", "attention_norm.scale", VECTOR),
        Tensor("ln_1.bias", "attention_norm.bias", VECTOR),
        Tensor("attn.c_attn.weight", QKV, Layout(axis=1)),
        Tensor("attn.c_attn.bias", tuple(f"{name}_bias" for name in QKV), VECTOR),
        Tensor("attn.c_proj.weight", "attention.out", Layout(inputs=2)),
        Tensor("attn.c_proj.bias", "attention.out_bias", VECTOR),
        Tensor("ln_2.weight", "mlp_norm.scale", VECTOR),
        Tensor("ln_2.bias", "mlp_norm.bias", VECTOR),
    ),
    mlp=(
        Tensor("mlp.c_fc.weight", "mlp.up", Layout()),
        Tensor("mlp.c_fc.bias", "mlp.up_bias", VECTOR),
        Tensor("mlp.c_proj.weight", "mlp.down", Layout()),
        Tensor("mlp.c_proj.bias", "mlp.down_bias", VECTOR),
    ),
    after=(
        Tensor("transformer.ln_f.weight", "final_norm.scale", VECTOR),
        Tensor("transformer.ln_f.bias", "final_norm.bias", VECTOR),
        Tensor("lm_head.weight", "output", LINEAR),
    ),
    left_out=(LeftOut(r"h\.\d+\.attn\.(bias|masked_bias)", "masks of causal attention, no parameters"),),
)
