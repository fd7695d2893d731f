"""Qwen 2 and 2.5: biases of queries, keys and values."""

from maxlm.convert.families import parts
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Fixed, Key
from maxlm.convert.table import Family
from maxlm.convert.windows import WindowsAfter

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        Key("num_key_value_heads", "num_kv_heads", default=32, null=lambda fields: fields["num_heads"]),
        parts.HEAD_DIM,
        parts.ACTIVATION,
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        WindowsAfter(default=4096, first=28),
        Fixed("use_mrope", False, written=False),  # of models that see pictures
        Rope(),
    ),
    fields={"qkv_bias": True},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.ATTENTION),
    mlp=parts.MLP,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
