"""The model's section: what the decoder computes."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config.rope import DynamicScaling, LongRopeScaling, RopeConfig, YarnScaling
from maxlm.config.section import Count, Integer, Real, Section


class LatentConfig(Section):
    """Multi-head latent attention (DeepSeek-V2, section 2.1)."""

    query_rank: Count | None = Field(
        None, description="Width of the latent that queries are made of; null to make them of the residual stream."
    )
    kv_rank: Count = Field(description="Width of the latent that keys and values are made of, which decoding caches.")
    nope_head_dim: Count = Field(description="Dimensions of a query's and a key's head that are not rotated.")
    rope_head_dim: Count = Field(description="Those that are; of keys all heads share them. Even.")
    value_head_dim: Count = Field(description="Width of a value's head.")
    norm_eps: Real = Field(1e-6, gt=0, description="Added to the mean square inside the norms of the latents.")


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
    groups: Count = Field(1, description="Groups of consecutive experts; a token's come from groups_per_token of them.")
    groups_per_token: Count = Field(1, description="Groups that a token's experts come from; at most groups.")
    group_score: Literal["max", "top2"] = Field(
        "max", description="By what a token chooses groups: the best score in each, or the sum of the two best."
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
        if self.num_experts % self.groups or self.groups_per_token > self.groups:
            raise ValueError(
                f"groups must divide num_experts and groups_per_token be at most groups, found {self.groups}, "
                f"{self.num_experts} and {self.groups_per_token}"
            )
        size = self.num_experts // self.groups
        if self.groups_per_token * size < self.experts_per_token or (self.group_score == "top2" and size < 2):
            raise ValueError(
                f"groups: found {self.groups_per_token} groups of {size} experts for {self.experts_per_token} per "
                f"token with group_score {self.group_score}; expected enough experts, two or more in a group for top2"
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
    head_dim: Count = Field(description="Width of one head of queries and keys; even, for the rotary embedding.")
    mlp_dim: Count = Field(description="Width of the MLP's hidden layer.")
    activation: Literal["silu", "gelu", "gelu_exact"] = Field(
        "silu", description="Nonlinearity of MLP and experts; gelu is the approximation with tanh."
    )
    mlp_gated: bool = Field(True, description="Multiply the activated half of the hidden layer with another product.")
    mlp_bias: bool = Field(False, description="Biases in the products of the MLP.")
    latent: LatentConfig | None = Field(
        None,
        description="Queries, keys and values made of narrow latents (multi-head latent attention); null for straight "
        "from the residual stream.",
    )
    qkv_bias: bool = Field(False, description="Biases of queries, keys and values.")
    out_bias: bool = Field(False, description="Bias of attention's output.")
    tie_embeddings: bool = Field(False, description="Use the embedding table as the output matrix.")
    scale_embeddings: bool = Field(False, description="Multiply embeddings by the square root of embed_dim.")
    rope: RopeConfig = Field(RopeConfig(), description="Rotary position embedding.")
    learned_positions: Count | None = Field(
        None,
        description="Rows of a learned table that is added to the embeddings in place of the rotary one, the longest "
        "sequence in tokens; null for none.",
    )
    window: Count | tuple[Count | None, ...] | None = Field(
        None,
        description="Sliding attention window in tokens: null for full attention, one number for all layers, or a "
        "list that repeats over the layers.",
    )
    attention_softcap: Real | None = Field(
        None, gt=0, description="Bound on attention's scores, by tanh before the softmax (Gemma 2); null for none."
    )
    logit_softcap: Real | None = Field(
        None, gt=0, description="Bound on the logits, by tanh before the loss (Gemma 2); null for none."
    )
    moe: MoeConfig | None = Field(None, description="Mixture of experts in place of the MLP; null for none.")
    query_scale: Real | None = Field(
        None, gt=0, description="Factor on the products of queries and keys; null for 1 / sqrt(head_dim)."
    )
    qk_norm: bool | Literal["all_heads"] = Field(
        False, description="RMS-normalise queries and keys: every head by itself (true), or all of a token together."
    )
    norm: Literal["rms", "layer"] = Field(
        "rms", description="Norm of the residual stream: rms scales alone, layer subtracts the mean and adds a bias."
    )
    norm_place: Literal["before", "after", "both"] = Field(
        "before", description="Where attention and MLP have their norms: on what they read, on what they add, or both."
    )
    norm_offset: bool = Field(False, description="Store the scales of norms less one, so that they begin at zero.")
    norm_eps: Real = Field(1e-5, gt=0, description="Added to the mean square inside a norm.")
    init_std: Real = Field(0.02, gt=0, description="Standard deviation of the truncated-normal initialiser.")

    context_length: Count | None = Field(
        None,
        description="Longest sequence in tokens that the model is made for, which exports tell; null for data.seq_len.",
    )

    @property
    def value_dim(self) -> int:
        """Width of one head of values."""
        return self.latent.value_head_dim if self.latent else self.head_dim

    @property
    def latent_width(self) -> int:
        """Numbers that `latent` makes of a token before there are heads: latents, and the rotated part of a key."""
        if self.latent is None:
            return 0
        return (self.latent.query_rank or 0) + self.latent.kv_rank + self.latent.rope_head_dim

    @property
    def rope_dim(self) -> int:
        """Dimensions of a head that are rotated: its last ones with `latent`, otherwise its first ones."""
        return self.latent.rope_head_dim if self.latent else int(self.head_dim * self.rope.fraction)

    @property
    def window_pattern(self) -> tuple[int | None, ...]:
        """The repeating pattern of layer windows."""
        return self.window if isinstance(self.window, tuple) else (self.window,)

    @property
    def first_layers(self) -> int:
        """Layers before the repeating blocks: those without experts, or what is left of the pattern of windows."""
        return self.moe.first_dense if self.moe else self.num_layers % self.period

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
        if self.moe is None or layer < self.moe.first_dense:
            return False
        return (layer - self.moe.first_dense + 1) % self.moe.every == 0

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, found {self.num_kv_heads} and {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, found {self.head_dim}")
        if not 0 < len(self.window_pattern) <= self.num_layers:
            found = f"found {len(self.window_pattern)} and {self.num_layers}"
            raise ValueError(f"window must list at least one layer and at most num_layers, {found}")
        self._check_rotation()
        if self.latent is not None:
            self._check_latent(self.latent)
        if self.moe is not None:
            self._check_experts()
        return self

    def _check_rotation(self) -> None:
        if self.rope_dim % 2 or not self.rope_dim:
            raise ValueError(f"rope: an even number of dimensions can be rotated, found {self.rope_dim}")
        scaling = self.rope.scaling
        if isinstance(scaling, DynamicScaling) and self.rope_dim == 2:
            raise ValueError("rope.scaling: dynamic needs more than 2 rotated dimensions, found 2")
        if isinstance(scaling, YarnScaling) and self.rope.theta <= 1:
            raise ValueError(f"rope.theta must be above 1 with yarn, found {self.rope.theta}")
        if isinstance(scaling, LongRopeScaling):
            found = len(scaling.short_factors), len(scaling.long_factors)
            if found != (self.rope_dim // 2,) * 2:
                raise ValueError(
                    f"rope.scaling: longrope needs {self.rope_dim // 2} short_factors and long_factors, one per "
                    f"rotated pair, found {found[0]} and {found[1]}"
                )

    def _check_latent(self, latent: LatentConfig) -> None:
        if self.head_dim != latent.nope_head_dim + latent.rope_head_dim:
            raise ValueError(
                f"head_dim must be latent.nope_head_dim + latent.rope_head_dim, found {self.head_dim}, "
                f"{latent.nope_head_dim} and {latent.rope_head_dim}"
            )
        if self.num_kv_heads != self.num_heads:
            raise ValueError(
                f"num_kv_heads must be num_heads with latent, found {self.num_kv_heads} and {self.num_heads}"
            )
        if self.learned_positions or self.qk_norm or self.qkv_bias or self.out_bias or self.rope.fraction != 1:
            raise ValueError(
                "latent: takes no learned_positions, qk_norm, qkv_bias, out_bias or rope.fraction; its norms and its "
                "rotated dimensions are its own"
            )

    def _check_experts(self) -> None:
        repeating = self.num_layers - self.first_layers
        if repeating <= 0 or repeating % self.period:
            raise ValueError(
                f"moe: the {self.num_layers} layers less first_dense = {self.first_layers} are {repeating}; expected a "
                f"multiple of {self.period}, after which experts and windows repeat"
            )
        if self.mlp_bias or not self.mlp_gated:
            raise ValueError("moe: experts are gated and have no bias; set mlp_gated to true and mlp_bias to false")
