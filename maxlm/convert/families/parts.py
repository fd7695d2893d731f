"""Rows that the tables of several families share."""

from dataclasses import dataclass
from typing import Any

from maxlm.config import ModelConfig
from maxlm.convert.layouts import LINEAR, LINEAR_OUT, TABLE, VECTOR, Layout
from maxlm.convert.settings import DERIVED, Fields, Follows, Implied, Key, Source
from maxlm.convert.table import LeftOut, Tensor

SIZES = (
    Key("vocab_size", "vocab_size", count=True),
    Key("hidden_size", "embed_dim", count=True),
    Key("num_hidden_layers", "num_layers", count=True),
    Key("num_attention_heads", "num_heads", count=True),
    # Of no effect but through scalings of the rotary embedding, which say so where it is missing.
    Key("max_position_embeddings", "context_length", default=None, count=True, optional=True),
    Key("initializer_range", "init_std", default=0.02),
)
MLP_DIM = Key("intermediate_size", "mlp_dim")
KV_HEADS = Key("num_key_value_heads", "num_kv_heads", default=DERIVED, null=lambda fields: fields["num_heads"])
HEAD_DIM = Key("head_dim", "head_dim", default=DERIVED, null=lambda fields: fields["embed_dim"] // fields["num_heads"])
LATENT = (
    Key("q_lora_rank", "latent.query_rank", default=1536),
    Key("kv_lora_rank", "latent.kv_rank", default=512),
    Key("qk_nope_head_dim", "latent.nope_head_dim", default=128, count=True),
    Key("qk_rope_head_dim", "latent.rope_head_dim", default=64, count=True),
    Key("v_head_dim", "latent.value_head_dim", default=128),
    Implied("head_dim", lambda fields: fields["latent.nope_head_dim"] + fields["latent.rope_head_dim"]),
    # Written by transformers 5, in whose classes head_dim is the rotated part.
    Follows("qk_head_dim", lambda fields: fields["head_dim"]),
    Follows("head_dim", lambda fields: fields["latent.rope_head_dim"]),
)
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu": "gelu_exact",
}
ACTIVATION = Key("hidden_act", "activation", default="silu", spellings=ACTIVATIONS)
GEMMA_ACTIVATION = Key(
    "hidden_activation",
    "activation",
    default="gelu_pytorch_tanh",
    spellings={"gelu_pytorch_tanh": "gelu"} | ACTIVATIONS,
)
ATTENTION_BIAS = Key("attention_bias", ("qkv_bias", "out_bias"), default=False)


@dataclass(frozen=True)
class QueryScalar:
    """Gemma's way to write the scale of queries times keys: its inverse square, a whole number."""

    default: int

    def read(self, source: Source, fields: Fields) -> None:
        scalar = source.number("query_pre_attn_scalar", self.default)
        if not scalar:
            raise source.refuse("query_pre_attn_scalar", scalar, "a number above zero")
        fields["query_scale"] = scalar**-0.5

    def write(self, model: ModelConfig) -> dict[str, Any]:
        scale = model.query_scale or model.head_dim**-0.5
        return {"query_pre_attn_scalar": max(1, round(scale**-2))}


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
NORMS_BOTH = (
    Tensor("input_layernorm.weight", "attention_norm.scale", VECTOR),
    Tensor("post_attention_layernorm.weight", "attention_out_norm.scale", VECTOR),
    Tensor("pre_feedforward_layernorm.weight", "mlp_norm.scale", VECTOR),
    Tensor("post_feedforward_layernorm.weight", "mlp_out_norm.scale", VECTOR),
)
MLP = (
    Tensor("mlp.gate_proj.weight", "mlp.gate", LINEAR),
    Tensor("mlp.up_proj.weight", "mlp.up", LINEAR),
    Tensor("mlp.down_proj.weight", "mlp.down", LINEAR),
    Tensor("mlp.gate_proj.bias", "mlp.gate_bias", VECTOR),
    Tensor("mlp.up_proj.bias", "mlp.up_bias", VECTOR),
    Tensor("mlp.down_proj.bias", "mlp.down_bias", VECTOR),
)
EXPERTS = (
    Tensor("mlp.gate.weight", "mlp.router", LINEAR),
    Tensor("mlp.experts.{expert}.gate_proj.weight", "mlp.gate", LINEAR),
    Tensor("mlp.experts.{expert}.up_proj.weight", "mlp.up", LINEAR),
    Tensor("mlp.experts.{expert}.down_proj.weight", "mlp.down", LINEAR),
)
SHARED_EXPERTS = (
    Tensor("mlp.shared_experts.gate_proj.weight", "mlp.shared.gate", LINEAR),
    Tensor("mlp.shared_experts.up_proj.weight", "mlp.shared.up", LINEAR),
    Tensor("mlp.shared_experts.down_proj.weight", "mlp.shared.down", LINEAR),
)
ROTATED = Layout(transposed=True, axis=1, interleaved=True)
LATENT_ATTENTION = (
    Tensor("self_attn.q_proj.weight", "attention.query", ROTATED),
    Tensor("self_attn.q_a_proj.weight", "attention.query_down", LINEAR),
    Tensor("self_attn.q_a_layernorm.weight", "attention.query_norm.scale", VECTOR),
    Tensor("self_attn.q_b_proj.weight", "attention.query_up", ROTATED),
    Tensor("self_attn.kv_a_proj_with_mqa.weight", ("attention.kv_down", "attention.key_rope"), ROTATED),
    Tensor("self_attn.kv_a_layernorm.weight", "attention.kv_norm.scale", VECTOR),
    Tensor("self_attn.kv_b_proj.weight", ("attention.key_up", "attention.value_up"), Layout(transposed=True, axis=2)),
    Tensor("self_attn.o_proj.weight", "attention.out", LINEAR_OUT),
)
OUTPUT = (
    Tensor("model.norm.weight", "final_norm.scale", VECTOR),
    Tensor("lm_head.weight", "output", LINEAR),
)
FREQUENCIES = LeftOut(
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    "the frequencies of the rotary embedding follow from config.json",
)
