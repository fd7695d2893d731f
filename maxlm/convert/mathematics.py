"""Whether two configurations compute the same."""

import math
from typing import Any

from maxlm.config import LongRopeScaling, ModelConfig
from maxlm.convert.settings import Fields

# What training alone reads, or files tell and nothing computes with.
OF_TRAINING = ("init_std", "context_length", "moe.aux_weight", "moe.bias_rate", "moe.z_weight")


def differences(model: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields by which two models compute something else, as dotted names."""
    ours, theirs = mathematics(model), mathematics(other)
    return [name for name in sorted(ours | theirs) if not _same(ours.get(name), theirs.get(name))]


def mathematics(model: ModelConfig) -> Fields:
    """All that changes the logits, by dotted names, spelled in one way."""
    fields = _flat(model.model_dump())
    for name in OF_TRAINING:
        fields.pop(name, None)
    # A window is written as one number, a short pattern or a long one.
    fields["window"] = [model.window_of(layer) for layer in range(model.num_layers)]
    fields["query_scale"] = model.query_scale or model.head_dim**-0.5
    if model.moe is not None:
        del fields["moe.first_dense"], fields["moe.every"]
        fields["moe.layers"] = [model.has_experts(layer) for layer in range(model.num_layers)]
        fields["moe.balance"] = model.moe.balance == "bias"
        if all(fields["moe.layers"]):
            del fields["mlp_dim"]  # of dense layers, of which there are none
        if model.moe.groups == model.moe.groups_per_token:
            del fields["moe.groups"], fields["moe.groups_per_token"], fields["moe.group_score"]
    if model.learned_positions is not None:
        fields = {name: value for name, value in fields.items() if not name.startswith("rope")}
    elif not any(fields["window"]):
        fields["rope.local_theta"] = None
    elif model.rope.scaling is None and model.rope.local_theta is None:
        fields["rope.local_theta"] = model.rope.theta
    if isinstance(model.rope.scaling, LongRopeScaling):
        fields["rope.scaling.factor"] = model.rope.scaling.factor or 1.0
    return fields


def _flat(values: dict[str, Any], above: str = "") -> Fields:
    fields: Fields = {}
    for name, value in values.items():
        fields |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return fields


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, float):
        # A scale may come of a number whose root is rounded.
        return math.isclose(value, other, rel_tol=1e-12)
    return value == other
