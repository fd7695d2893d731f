"""Gemma 3, the text model: two rotary embeddings, norms of queries and keys."""

from maxlm.convert.families import parts
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Fixed, Key, WholeHeads
from maxlm.convert.table import Family
from maxlm.convert.windows import WindowsEvery

GEMMA3_TEXT = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        WholeHeads(),
        Key("num_key_value_heads", "num_kv_heads", default=4),
        Key("head_dim", "head_dim", default=256),
        parts.GEMMA_ACTIVATION,
        parts.ATTENTION_BIAS,
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=True),
        parts.QueryScalar(default=256),
        # Of Gemma 2; the class in transformers keeps it and attends without it.
        Fixed("attn_logit_softcapping", None),
        Key("final_logit_softcapping", "logit_softcap", default=None),
        Fixed("use_bidirectional_attention", False, also=(None,), written=False),
        WindowsEvery(default=4096, every=6, keys=("sliding_window_pattern", "_sliding_window_pattern")),
        Rope(theta=1e6, local_theta=1e4),
    ),
    fields={"scale_embeddings": True, "norm_place": "both", "norm_offset": True, "qk_norm": True},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BOTH, *parts.ATTENTION, *parts.QK_NORMS),
    mlp=parts.MLP,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
