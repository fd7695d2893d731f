"""Gemma 2: soft caps, a window in every second layer, norms before and after."""

from maxlm.convert.families import parts
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Fixed, Follows, Key, WholeHeads
from maxlm.convert.table import Family
from maxlm.convert.windows import WindowsEvery

GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        WholeHeads(),
        Key("num_key_value_heads", "num_kv_heads", default=4),
        Key("head_dim", "head_dim", default=256),
        parts.GEMMA_ACTIVATION,
        # A second name in the first files, which nothing reads.
        Follows("hidden_act", lambda fields: fields["activation"], parts.ACTIVATIONS),
        parts.ATTENTION_BIAS,
        Key("rms_norm_eps", "norm_eps", default=1e-6),
        Key("tie_word_embeddings", "tie_embeddings", default=True),
        parts.QueryScalar(default=256),
        Key("attn_logit_softcapping", "attention_softcap", default=50.0),
        Key("final_logit_softcapping", "logit_softcap", default=30.0),
        Fixed("use_bidirectional_attention", False, also=(None,), written=False),
        WindowsEvery(default=4096, every=2, repeated="sliding_window_size"),
        Rope(),
    ),
    fields={"scale_embeddings": True, "norm_place": "both", "norm_offset": True},
    before=parts.EMBEDDING,
    layer=(*parts.NORMS_BOTH, *parts.ATTENTION),
    mlp=parts.MLP,
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
