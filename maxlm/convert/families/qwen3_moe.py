"""Qwen 3 with experts."""

from maxlm.convert.experts import LayersWithExperts
from maxlm.convert.families import parts
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Key
from maxlm.convert.table import Family
from maxlm.convert.windows import Window

QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        Key("num_key_value_heads", "num_kv_heads", default=4, null=lambda fields: fields["num_heads"]),
        parts.HEAD_DIM,
        parts.ACTIVATION,
        parts.ATTENTION_BIAS,
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Window(default=4096, switch=True),
        Key("num_experts", "moe.num_experts", default=128, alias="num_local_experts"),
        Key("num_experts_per_tok", "moe.experts_per_token", default=8),
        Key("moe_intermediate_size", "moe.mlp_dim", default=768),
        Key("norm_topk_prob", "moe.normalize", default=False),
        Key("router_aux_loss_coef", "moe.aux_weight", default=0.001),
        LayersWithExperts(),
        Rope(),
    ),
    fields={"qk_norm": True, "moe.scores": "softmax", "moe.balance": "aux_loss"},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.ATTENTION, *parts.QK_NORMS),
    mlp=parts.MLP,
    experts=parts.EXPERTS,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
