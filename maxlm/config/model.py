"""The model's section: what the decoder computes."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config.section import Count, Integer, Real, Section


class RopeConfig(Section):
    theta: Real = Field(10000.0, gt=0, description="Base wavelength of the rotary position embedding.")


class MoeConfig(Section):
    num_experts: Count = Field(description="Number of routed experts per layer.")
    experts_per_token: Count = Field(description="Experts that each token passes; at most num_experts.")
    mlp_dim: Count = Field(description="Width of one expert's hidden layer.")
    shared_experts: Annotated[Integer, Field(ge=0)] = Field(
        0, description="Experts that every token passes besides, as one MLP of shared_experts x mlp_dim."
    )
    scores: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="How the router's logits become the weights of the experts."
    )
    normalize: bool = Field(True, description="Divide the weights of a token's experts by their sum.")
    scale: Real = Field(1.0, gt=0, description="Factor on the weights of a token's experts, after normalize.")
    balance: Literal["aux_loss", "bias"] | None = Field(
        "aux_loss",
        description="What keeps the experts evenly loaded: a loss per sequence, a bias on the choice that follows the "
        "load of each step, or nothing (null).",
    )
    aux_weight: Real = Field(
        0.01, ge=0, description="Weight of the balance loss, in nats per token; it is 1 when all is even."
    )
    bias_rate: Real = Field(1e-3, gt=0, description="Step of the balance bias per optimizer step, in units of a score.")
    z_weight: Real = Field(0.0, ge=0, description="Weight of the router's squared log-partition, in nats per token.")
    first_dense: Annotated[Integer, Field(ge=0)] = Field(0, description="First layers that keep a dense MLP.")
    every: Count = Field(1, description="Of the layers after first_dense, every n-th has experts.")

    @model_validator(mode="after")
    def _check(self) -> "MoeConfig":
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token must be at most num_experts, found {self.experts_per_token} and {self.num_experts}"
            )
        if self.experts_per_token == 1 and self.normalize:
            raise ValueError(
                "normalize must be false with experts_per_token 1: a weight divided by itself is 1, and the router "
                "would not learn"
            )
        return self


class ModelConfig(Section):
    vocab_size: Count = Field(description="Rows of the embedding table, in tokens; at least the tokenizer's.")
    num_layers: Count = Field(description="Number of decoder layers.")
    embed_dim: Count = Field(description="Width of the residual stream.")
    num_heads: Count = Field(description="Number of query heads.")
    num_kv_heads: Count = Field(description="Number of key and value heads; divides num_heads.")
    head_dim: Count = Field(description="Width of one head; even, for the rotary embedding.")
    mlp_dim: Count = Field(description="Width of the gated MLP's hidden layer.")
    tie_embeddings: bool = Field(False, description="Use the embedding table as the output matrix.")
    rope: RopeConfig = Field(RopeConfig(), description="Rotary position embedding.")
    window: Count | tuple[Count | None, ...] | None = Field(
        None,
        description="Sliding attention window in tokens: null for full attention, one number for all layers, or a "
        "list that repeats over the layers (its length divides num_layers).",
    )
    attention_softcap: Real | None = Field(
        None, gt=0, description="Bound on attention's scores, by tanh before the softmax (Gemma 2); null for none."
    )
    moe: MoeConfig | None = Field(None, description="Mixture of experts in place of the MLP; null for none.")
    qk_norm: bool = Field(False, description="RMS-normalise queries and keys per head.")
    norm_eps: Real = Field(1e-5, gt=0, description="Added to the mean square inside RMSNorm.")
    init_std: Real = Field(0.02, gt=0, description="Standard deviation of the truncated-normal initialiser.")

    @property
    def window_pattern(self) -> tuple[int | None, ...]:
        """The repeating pattern of layer windows."""
        return self.window if isinstance(self.window, tuple) else (self.window,)

    @property
    def first_layers(self) -> int:
        """Layers before the repeating blocks."""
        return self.moe.first_dense if self.moe else 0

    @property
    def period(self) -> int:
        """Layers of a block, after which windows and experts repeat."""
        return math.lcm(len(self.window_pattern), self.moe.every if self.moe else 1)

    @property
    def num_blocks(self) -> int:
        return (self.num_layers - self.first_layers) // self.period

    def window_of(self, layer: int) -> int | None:
        return self.window_pattern[layer % len(self.window_pattern)]

    def has_experts(self, layer: int) -> bool:
        after = layer - self.first_layers
        return self.moe is not None and after >= 0 and (after + 1) % self.moe.every == 0

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, found {self.num_kv_heads} and {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, found {self.head_dim}")
        if not self.window_pattern or self.num_layers % len(self.window_pattern):
            found = f"found {len(self.window_pattern)} and {self.num_layers}"
            raise ValueError(f"the length of window must divide num_layers, {found}")
        repeating = self.num_layers - self.first_layers
        if repeating <= 0 or repeating % self.period:
            raise ValueError(
                f"moe: the {self.num_layers} layers less first_dense = {self.first_layers} are {repeating}; expected a "
                f"multiple of {self.period}, after which experts and windows repeat"
            )
        return self
