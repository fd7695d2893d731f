"""Positions: the rotary embedding and how it is stretched to longer sequences."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config.section import Count, Fraction, Real, Section

Factor = Annotated[Real, Field(gt=0, description="How many times longer sequences may be than those without scaling.")]
OriginalLength = Annotated[Count, Field(description="Longest sequence without scaling, in tokens.")]


class LinearScaling(Section):
    name: Literal["linear"] = Field(description="linear divides positions by factor (Chen et al. 2023, section 2.3).")
    factor: Factor


class DynamicScaling(Section):
    name: Literal["dynamic"] = Field(
        description="dynamic raises theta with a document's length, once that is beyond original_length (NTK-aware)."
    )
    factor: Factor
    original_length: OriginalLength


class Llama3Scaling(Section):
    name: Literal["llama3"] = Field(
        description="llama3 divides the slow frequencies by factor, keeps the fast ones and blends between them."
    )
    factor: Factor
    low_freq_factor: Real = Field(
        1.0, gt=0, description="Frequencies that turn fewer times than this in original_length are divided by factor."
    )
    high_freq_factor: Real = Field(
        4.0, gt=0, description="Frequencies that turn more often than this in original_length are kept."
    )
    original_length: OriginalLength

    @model_validator(mode="after")
    def _check(self) -> "Llama3Scaling":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor must be above low_freq_factor, found {self.high_freq_factor} and "
                f"{self.low_freq_factor}"
            )
        return self


class YarnScaling(Section):
    name: Literal["yarn"] = Field(
        description="yarn divides the slow frequencies by factor, keeps the fast ones, with a ramp between them, and "
        "scales queries and keys (Peng et al. 2023, section 3)."
    )
    factor: Factor
    original_length: OriginalLength
    beta_fast: Real = Field(32.0, gt=0, description="Turns in original_length above which a frequency is kept.")
    beta_slow: Real = Field(1.0, gt=0, description="Turns in original_length below which it is divided by factor.")
    truncate: bool = Field(True, description="Round the ends of the ramp outward to whole dimensions.")
    attention_factor: Real | None = Field(
        None, gt=0, description="Factor on rotated queries and keys; null for what mscale says, or 0.1 ln(factor) + 1."
    )
    mscale: Real | None = Field(
        None,
        gt=0,
        description="With mscale_all_dim: attention_factor is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim "
        "ln(factor) + 1).",
    )
    mscale_all_dim: Real | None = Field(None, gt=0, description="See mscale.")


class LongRopeScaling(Section):
    name: Literal["longrope"] = Field(
        description="longrope divides every frequency by a factor of its own: short_factors in a document of at most "
        "original_length tokens, long_factors in a longer one (Ding et al. 2024)."
    )
    short_factors: tuple[Annotated[Real, Field(gt=0)], ...] = Field(description="One per rotated pair.")
    long_factors: tuple[Annotated[Real, Field(gt=0)], ...] = Field(description="One per rotated pair.")
    original_length: OriginalLength
    factor: Annotated[Real, Field(gt=0)] | None = Field(
        None, description="Longest sequence over original_length, of which attention_factor is made; null for 1."
    )
    attention_factor: Real | None = Field(
        None,
        gt=0,
        description="Factor on rotated queries and keys; null for sqrt(1 + ln(factor) / ln(original_length)).",
    )

    @model_validator(mode="after")
    def _check(self) -> "LongRopeScaling":
        if self.original_length == 1 and self.attention_factor is None:
            raise ValueError("original_length must be above 1 for an attention_factor made of factor, found 1")
        return self


Scaling = Annotated[
    LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling, Field(discriminator="name")
]


class RopeConfig(Section):
    theta: Real = Field(10000.0, gt=0, description="Base wavelength of the rotary position embedding.")
    fraction: Fraction = Field(1.0, gt=0, description="Share of every head, its first dimensions, that is rotated.")
    local_theta: Real | None = Field(
        None, gt=0, description="Base wavelength in layers with a window, without scaling; null for that of all layers."
    )
    scaling: Scaling | None = Field(
        None, description="How rotations slow down for longer sequences; null for not at all."
    )

    @property
    def by_length(self) -> bool:
        """Whether rotations depend on the length of the document: those of a token change as others follow it."""
        return isinstance(self.scaling, DynamicScaling | LongRopeScaling)
