"""Phi-3 and Phi-4-mini: fused products, a rotated part of every head, factors for every frequency."""

from maxlm.convert.families import parts
from maxlm.convert.layouts import LINEAR, LINEAR_OUT, LINEARS
from maxlm.convert.rotation import Rope
from maxlm.convert.settings import Fixed, Key
from maxlm.convert.table import Family, Tensor
from maxlm.convert.windows import Window

PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    settings=(
        *parts.SIZES,
        parts.MLP_DIM,
        parts.KV_HEADS,
        parts.HEAD_DIM,
        parts.ACTIVATION,
        Key("rms_norm_eps", "norm_eps", default=1e-5),
        Key("tie_word_embeddings", "tie_embeddings", default=False),
        Window(default=None),
        Rope(kinds=("longrope",), partial=True, outer_length=4096, name_key="type"),
        # Of the code that the files of Phi-4-mini bring along.
        Fixed("attention_bias", False, written=False),
        Fixed("mlp_bias", False, written=False),
        Fixed("lm_head_bias", False, written=False),
        Fixed("full_attn_mod", 1, written=False),
        Fixed("interpolate_factor", 1, written=False),
    ),
    fields={},
    before=parts.EMBEDDING,
    layer=(
        *parts.NORMS_BEFORE,
        Tensor("self_attn.qkv_proj.weight", ("attention.query", "attention.key", "attention.value"), LINEARS),
        Tensor("self_attn.o_proj.weight", "attention.out", LINEAR_OUT),
    ),
    mlp=(
        Tensor("mlp.gate_up_proj.weight", ("mlp.gate", "mlp.up"), LINEARS),
        Tensor("mlp.down_proj.weight", "mlp.down", LINEAR),
    ),
    after=parts.OUTPUT,
    left_out=(parts.FREQUENCIES,),
)
