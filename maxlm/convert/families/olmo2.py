"""OLMo 2: norms of what attention and MLP add, and of all queries or keys of a token together."""

from maxlm.convert.families import parts
from maxlm.convert.layouts import VECTOR
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Key
from maxlm.convert.table import Family, Tensor

OLMO2 = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        parts.KV_HEADS,
        parts.HEAD_DIM,
        parts.ACTIVATION,
        parts.ATTENTION_BIAS,
        Key("rms_norm_eps", "norm_eps", default=1e-5),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Rope(),
    ),
    fields={"qk_norm": "all_heads", "norm_place": "after"},
    before=parts.EMBEDDING,
    layer=(
        *parts.ATTENTION,
        *parts.QK_NORMS,
        Tensor("post_attention_layernorm.weight", "attention_out_norm.scale", VECTOR),
        Tensor("post_feedforward_layernorm.weight", "mlp_out_norm.scale", VECTOR),
    ),
    mlp=parts.MLP,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
