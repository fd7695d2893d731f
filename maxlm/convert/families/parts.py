"""Rows that the tables of several families share."""

from maxlm.convert.layouts import LINEAR, LINEAR_OUT, TABLE, VECTOR
from maxlm.convert.settings import DERIVED, Key
from maxlm.convert.table import LeftOut, Tensor

SIZES = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "embed_dim"),
    Key("num_hidden_layers", "num_layers"),
    Key("num_attention_heads", "num_heads"),
    Key("intermediate_size", "mlp_dim"),
    # Of no effect but through scalings of the rotary embedding, which say so where it is missing.
    Key("max_position_embeddings", "context_length", default=None, optional=True),
    Key("initializer_range", "init_std", default=0.02),
)
KV_HEADS = Key("num_key_value_heads", "num_kv_heads", default=DERIVED, null=lambda fields: fields["num_heads"])
HEAD_DIM = Key("head_dim", "head_dim", default=DERIVED, null=lambda fields: fields["embed_dim"] // fields["num_heads"])
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu": "gelu_exact",
}
ACTIVATION = Key("hidden_act", "activation", default="silu", spellings=ACTIVATIONS)
ATTENTION_BIAS = Key("attention_bias", ("qkv_bias", "out_bias"), default=False)

EMBEDDING = (Tensor("model.embed_tokens.weight", "embedding", TABLE),)
ATTENTION = (
    Tensor("self_attn.q_proj.weight", "attention.query", LINEAR),
    Tensor("self_attn.k_proj.weight", "attention.key", LINEAR),
    Tensor("self_attn.v_proj.weight", "attention.value", LINEAR),
    Tensor("self_attn.o_proj.weight", "attention.out", LINEAR_OUT),
    Tensor("self_attn.q_proj.bias", "attention.query_bias", VECTOR),
    Tensor("self_attn.k_proj.bias", "attention.key_bias", VECTOR),
    Tensor("self_attn.v_proj.bias", "attention.value_bias", VECTOR),
    Tensor("self_attn.o_proj.bias", "attention.out_bias", VECTOR),
)
QK_NORMS = (
    Tensor("self_attn.q_norm.weight", "attention.query_norm.scale", VECTOR),
    Tensor("self_attn.k_norm.weight", "attention.key_norm.scale", VECTOR),
)
NORMS_BEFORE = (
    Tensor("input_layernorm.weight", "attention_norm.scale", VECTOR),
    Tensor("post_attention_layernorm.weight", "mlp_norm.scale", VECTOR),
)
MLP = (
    Tensor("mlp.gate_proj.weight", "mlp.gate", LINEAR),
    Tensor("mlp.up_proj.weight", "mlp.up", LINEAR),
    Tensor("mlp.down_proj.weight", "mlp.down", LINEAR),
    Tensor("mlp.gate_proj.bias", "mlp.gate_bias", VECTOR),
    Tensor("mlp.up_proj.bias", "mlp.up_bias", VECTOR),
    Tensor("mlp.down_proj.bias", "mlp.down_bias", VECTOR),
)
OUTPUT = (
    Tensor("model.norm.weight", "final_norm.scale", VECTOR),
    Tensor("lm_head.weight", "output", LINEAR),
)
FREQUENCIES = LeftOut(
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    "the frequencies of the rotary embedding follow from config.json",
)
