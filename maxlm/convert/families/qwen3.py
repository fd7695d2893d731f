"""Qwen 3: norms of queries and keys."""

from maxlm.convert.families import parts
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Key
from maxlm.convert.table import Family
from maxlm.convert.windows import WindowsAfter

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        Key("num_key_value_heads", "num_kv_heads", default=32, null=lambda fields: fields["num_heads"]),
        Key("head_dim", "head_dim", default=128),
        parts.ACTIVATION,
        parts.ATTENTION_BIAS,
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        WindowsAfter(default=4096, first=28),
        Rope(),
    ),
    fields={"qk_norm": True},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.ATTENTION, *parts.QK_NORMS),
    mlp=parts.MLP,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
