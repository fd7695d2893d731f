"""Mixtral: Mistral with experts in all layers."""

from maxlm.convert.families import parts
from maxlm.convert.layouts import LINEAR
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Key
from maxlm.convert.table import Family, Tensor
from maxlm.convert.windows import Window

MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    settings=(
        *parts.SIZES,
        Key("intermediate_size", ("moe.mlp_dim", "mlp_dim")),
        Key("num_key_value_heads", "num_kv_heads", default=8, null=lambda fields: fields["num_heads"]),
        parts.HEAD_DIM,
        parts.ACTIVATION,
        Key("rms_norm_eps", "norm_eps", default=1e-5),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Window(default=None),
        Key("num_local_experts", "moe.num_experts", default=8, alias="num_experts"),
        Key("num_experts_per_tok", "moe.experts_per_token", default=2),
        Key("router_aux_loss_coef", "moe.aux_weight", default=0.001),
        Rope(theta=1e6),
    ),
    fields={"moe.scores": "softmax", "moe.normalize": True, "moe.balance": "aux_loss"},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.ATTENTION),
    mlp=(),
    experts=(
        Tensor("block_sparse_moe.gate.weight", "mlp.router", LINEAR),
        Tensor("block_sparse_moe.experts.{expert}.w1.weight", "mlp.gate", LINEAR),
        Tensor("block_sparse_moe.experts.{expert}.w3.weight", "mlp.up", LINEAR),
        Tensor("block_sparse_moe.experts.{expert}.w2.weight", "mlp.down", LINEAR),
    ),
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
