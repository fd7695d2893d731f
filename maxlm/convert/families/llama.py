"""Llama 2, 3, 3.1, 3.2 and 3.3, and all that share their shape."""

from maxlm.convert.families import parts
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Fixed, Key, WholeHeads
from maxlm.convert.table import Family

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        WholeHeads(),
        parts.KV_HEADS,
        parts.HEAD_DIM,
        parts.ACTIVATION,
        parts.ATTENTION_BIAS,
        Key("mlp_bias", "mlp_bias", default=False),
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Rope(),
        Fixed("rope_interleaved", False, written=False),
    ),
    fields={},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BEFORE, *parts.ATTENTION),
    mlp=parts.MLP,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
