"""DeepSeek-V2: latent attention, shared experts, groups of experts."""

from maxlm.convert.experts import GroupLimit
from maxlm.convert.families import parts
from maxlm.convert.rotation import QueryScaleOfYarn, Rope
from maxlm.convert.settings import Fixed, Key, WholeHeads
from maxlm.convert.table import Family

DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        WholeHeads(),
        parts.KV_HEADS,
        *parts.LATENT,
        parts.ACTIVATION,
        Fixed("attention_bias", False),
        Fixed("mlp_bias", False, written=False),
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Key("n_routed_experts", "moe.num_experts", default=64),
        Key("num_experts_per_tok", "moe.experts_per_token"),
        Key("moe_intermediate_size", "moe.mlp_dim", default=1407),
        Key("n_shared_experts", "moe.shared_experts", default=2, count=True),
        Key("routed_scaling_factor", "moe.scale", default=1.0),
        Key("first_k_dense_replace", "moe.first_dense", default=0),
        Fixed("moe_layer_freq", 1),
        Fixed("scoring_func", "softmax"),
        Fixed("norm_topk_prob", False, also=(None,)),
        GroupLimit(),
        Key("aux_loss_alpha", "moe.aux_weight", default=0.001),
        Rope(name_key="type"),
        QueryScaleOfYarn(),
    ),
    fields={"latent.norm_eps": 1e-6, "moe.scores": "softmax", "moe.normalize": False, "moe.balance": "aux_loss"},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.LATENT_ATTENTION),
    mlp=parts.MLP,
    experts=(*parts.EXPERTS, *parts.SHARED_EXPERTS),
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
