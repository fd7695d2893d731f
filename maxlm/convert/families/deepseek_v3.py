"""DeepSeek-V3 and R1: as V2, with sigmoid scores and a bias on the choice of experts.

The layers that predict tokens further ahead, numbered behind the model's own, are left out: nothing that the model
says depends on them. An export says that it has none.
"""

from maxlm.convert.families import parts
from maxlm.convert.layouts import VECTOR
from maxlm.convert.rotation import QueryScaleOfYarn, Rope
from maxlm.convert.settings import Fixed, Key, LeftOutKey
from maxlm.convert.table import Family, LeftOut, Tensor

CHOICE_BIAS = Tensor("mlp.gate.e_score_correction_bias", "mlp.bias", VECTOR)

DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        Key("num_key_value_heads", "num_kv_heads", default=128, null=lambda fields: fields["num_heads"]),
        *parts.LATENT,
        parts.ACTIVATION,
        Fixed("attention_bias", False),
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Key("n_routed_experts", "moe.num_experts", default=256, alias="num_local_experts"),
        Key("num_experts_per_tok", "moe.experts_per_token", default=8),
        Key("moe_intermediate_size", "moe.mlp_dim", default=2048),
        Key("n_shared_experts", "moe.shared_experts", default=1, count=True),
        Key("routed_scaling_factor", "moe.scale", default=2.5),
        Key("norm_topk_prob", "moe.normalize", default=True),
        Key("first_k_dense_replace", "moe.first_dense", default=3),
        Key("n_group", "moe.groups", default=8),
        Key("topk_group", "moe.groups_per_token", default=4),
        Fixed("moe_layer_freq", 1),
        Fixed("scoring_func", "sigmoid"),
        Fixed("topk_method", "noaux_tc"),
        Key("aux_loss_alpha", "moe.aux_weight", default=0.001),
        Fixed("rope_interleave", True, written=False),
        LeftOutKey("num_nextn_predict_layers", written=0),
        Rope(name_key="type"),
        QueryScaleOfYarn(),
    ),
    fields={"latent.norm_eps": 1e-6, "moe.scores": "sigmoid", "moe.group_score": "top2", "moe.balance": "bias"},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.LATENT_ATTENTION),
    mlp=parts.MLP,
    experts=(*parts.EXPERTS, *parts.SHARED_EXPERTS, CHOICE_BIAS),
    after=parts.OUTPUT,
    left_out=(
        parts.FREQUENCIES,
        LeftOut(
            pattern=r"layers\.(?P<layer>\d+)\..*",
            why="layers of multi-token prediction, on which the model's own logits do not depend",
            beside="layers.{layer}.eh_proj.weight",
        ),
    ),
)
