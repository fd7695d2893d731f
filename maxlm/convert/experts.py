"""Which layers have experts, and how a token chooses them, in config.json."""

from dataclasses import dataclass
from typing import Any

from maxlm.config import ModelConfig
from maxlm.convert.settings import Fields, Source


@dataclass(frozen=True)
class LayersWithExperts:
    """Every `decoder_sparse_step`-th layer but those that `mlp_only_layers` lists."""

    def read(self, source: Source, fields: Fields) -> None:
        step, layers = source.count("decoder_sparse_step", 1), fields["num_layers"]
        dense = source.take("mlp_only_layers", None) or []
        if not isinstance(dense, list):
            raise source.refuse("mlp_only_layers", dense, "a list of layers")
        routed = [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
        for first in range(layers):
            for every in range(1, layers - first + 1):
                if routed == _routed(layers, first, every):
                    fields |= {"moe.first_dense": first, "moe.every": every}
                    return
        raise source.refuse(
            "mlp_only_layers", dense, "dense layers at the beginning, after which every n-th layer has experts"
        )

    def write(self, model: ModelConfig) -> dict[str, Any]:
        routed = [model.has_experts(layer) for layer in range(model.num_layers)]
        for step in range(1, model.num_layers + 1):
            if routed == _routed(model.num_layers, 0, step):
                return {"decoder_sparse_step": step, "mlp_only_layers": []}
        return {"decoder_sparse_step": 1, "mlp_only_layers": [layer for layer, has in enumerate(routed) if not has]}


def _routed(layers: int, first: int, every: int) -> list[bool]:
    return [layer >= first and (layer - first + 1) % every == 0 for layer in range(layers)]


@dataclass(frozen=True)
class GroupLimit:
    """DeepSeek-V2's `topk_method`: experts of all groups, or of the groups with the best scores."""

    def read(self, source: Source, fields: Fields) -> None:
        method = source.take("topk_method", "greedy")
        groups, chosen = source.count("n_group", None), source.count("topk_group", None)
        if method not in ("greedy", "group_limited_greedy"):
            raise source.refuse("topk_method", method, "'greedy' or 'group_limited_greedy'")
        if method == "group_limited_greedy":
            if groups is None or chosen is None:
                raise source.refuse("n_group and topk_group", (groups, chosen), f"two numbers, as {method} needs")
            fields |= {"moe.groups": groups, "moe.groups_per_token": chosen}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {
            "topk_method": "greedy" if model.moe.groups == 1 else "group_limited_greedy",
            "n_group": model.moe.groups,
            "topk_group": model.moe.groups_per_token,
        }
