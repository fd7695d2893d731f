"""Mistral: Llama's shape with a window."""

from maxlm.convert.families import parts
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Key
from maxlm.convert.table import Family
from maxlm.convert.windows import Window

MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        Key("num_key_value_heads", "num_kv_heads", default=8, null=lambda fields: fields["num_heads"]),
        parts.HEAD_DIM,
        parts.ACTIVATION,
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Window(default=4096),
        Rope(),
    ),
    fields={},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.ATTENTION),
    mlp=parts.MLP,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
