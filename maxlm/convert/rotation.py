"""The rotary embedding in config.json: one `rope_parameters`, or the older `rope_theta` beside `rope_scaling`.

Both are read, the older keys are written: transformers 5 takes them as well, and readers made for version 4 know no
others (without `rope_theta` they would compute with the default, and say nothing).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from maxlm.config import LongRopeScaling, ModelConfig
from maxlm.convert.settings import Fields, Source

LENGTH, ORIGINAL_LENGTH = "max_position_embeddings", "original_max_position_embeddings"

# Of every kind of scaling, by its name: its keys and our fields.
KINDS = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor", ORIGINAL_LENGTH: "original_length"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        ORIGINAL_LENGTH: "original_length",
    },
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        ORIGINAL_LENGTH: "original_length",
    },
    "longrope": {
        "short_factor": "short_factors",
        "long_factor": "long_factors",
        "factor": "factor",
        "attention_factor": "attention_factor",
        ORIGINAL_LENGTH: "original_length",
    },
}
# Keys that every file of the kind has; transformers knows no defaults for them.
REQUIRED = {
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor"},
    "longrope": {"short_factor", "long_factor"},
}
ZERO_IS_NONE = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
OF_ARITHMETIC = {"factor", "mscale_all_dim"}  # with which settings compute; ModelConfig looks at the others
ALIASES = {"su": "longrope"}  # in the first files of Phi-3


class _Outer(NamedTuple):
    """What stands outside the rotary embedding's own keys, None where it does not."""

    theta: float | None
    local_theta: float | None
    fraction: float | None
    original: int | None
    length: int | None


@dataclass(frozen=True)
class Rope:
    """Base, scaling and rotated share of the rotary embedding, by keys alone whatever the family.

    `theta` and `local_theta` are what the class in transformers takes where the file has none, and `kinds` what it
    computes.
    """

    theta: float = 10000.0
    local_theta: float | None = None  # of layers with a window, in families whose classes part the two
    kinds: tuple[str, ...] = tuple(KINDS)
    partial: bool = False  # whether a part of a head may be rotated
    outer_length: int | None = None  # default of the original length, where that stands outside and goes first
    name_key: str = "rope_type"  # under which the kind is written; some families' older readers know "type" alone

    def read(self, source: Source, fields: Fields) -> None:
        outer = _Outer(
            theta=source.number("rope_theta", None),
            local_theta=None if self.local_theta is None else source.number("rope_local_base_freq", None),
            fraction=source.number("partial_rotary_factor", None),
            original=None if self.outer_length is None else source.count(ORIGINAL_LENGTH, self.outer_length),
            length=fields["context_length"],
        )
        spellings = {key: source.mapping(key) for key in ("rope_parameters", "rope_scaling")}
        readings = [self._reading(source, given, outer) for given in spellings.values() if given]
        if readings and readings[0] != readings[-1]:
            raise source.refuse("rope_scaling", spellings["rope_scaling"], "what rope_parameters says")
        fields |= readings[0] if readings else self._reading(source, {}, outer)

    def _reading(self, source: Source, given: dict[str, Any], outer: _Outer) -> Fields:
        """Fields of one of the two spellings; what it leaves out stands in outer keys or is the default."""
        local: dict[str, Any] = {}
        if self.local_theta is not None and "full_attention" in given:
            layers = Source(given, f"{source.where}: rope_parameters")
            given, local = layers.mapping("full_attention"), layers.mapping("sliding_attention")
            layers.finish()
        rope = Source(given, f"{source.where}: rotary embedding")
        fields: Fields = {"rope.theta": _agreed(rope, "rope_theta", outer.theta, self.theta)}
        fraction = _agreed(rope, "partial_rotary_factor", outer.fraction, 1.0)
        if fraction != 1 and not self.partial:
            raise rope.refuse("partial_rotary_factor", fraction, "1.0, the whole head")
        fields |= {"rope.fraction": fraction, "rope.scaling": self._scaling(rope, outer.length, outer.original)}
        rope.finish()
        if self.local_theta is not None:
            rope = Source(local, f"{source.where}: rotary embedding of layers with a window")
            fields["rope.local_theta"] = _agreed(rope, "rope_theta", outer.local_theta, self.local_theta)
            if (kind := _kind(rope)) is not None:
                raise rope.refuse("rope_type", kind, "'default', no scaling")
            rope.finish()
        return fields

    def _scaling(self, rope: Source, length: int | None, original: int | None) -> dict[str, Any] | None:
        kind = _kind(rope)
        if kind is None:
            return None
        if kind not in self.kinds:
            raise rope.refuse("rope_type", kind, " or ".join(("default", *self.kinds)))
        values: dict[str, Any] = {"name": kind}
        for key, name in KINDS[kind].items():
            if key in REQUIRED[kind] and not rope.had(key):
                raise rope.refuse(key, None, f"a value, which {kind} needs")
            take = rope.count if key == ORIGINAL_LENGTH else rope.number if key in OF_ARITHMETIC else rope.take
            value = take(key, None)
            if value is not None and not (key in ZERO_IS_NONE and not value):
                values[name] = value
        if kind == "linear":
            return values
        if length is None:
            raise rope.refuse(LENGTH, None, f"the longest sequence, of which {kind} is made")
        # Dynamic scaling begins where the model's length ends, whatever else is said.
        original = length if kind == "dynamic" else original
        inner = values.setdefault("original_length", original or length)
        if original not in (None, inner):
            raise rope.refuse(ORIGINAL_LENGTH, inner, f"{original} as outside of it")
        if kind in ("yarn", "longrope"):
            values.setdefault("factor", length / inner)
        return values

    def write(self, model: ModelConfig) -> dict[str, Any]:
        written: dict[str, Any] = {"rope_theta": model.rope.theta}
        if self.local_theta is not None:
            written["rope_local_base_freq"] = model.rope.local_theta or model.rope.theta
        if self.partial:
            written["partial_rotary_factor"] = model.rope.fraction
        scaling = model.rope.scaling
        if scaling is None or scaling.name not in self.kinds:
            return written
        values = scaling.model_dump(mode="json", exclude_none=True)
        keys = {key: values[name] for key, name in KINDS[scaling.name].items() if name in values}
        length = model.context_length
        if isinstance(scaling, LongRopeScaling):
            keys["factor"] = scaling.factor or 1.0
            length = length or round(scaling.original_length * keys["factor"])
            if self.outer_length is not None and length / scaling.original_length == keys["factor"]:
                del keys["factor"]  # which such readers make of the two lengths, and know no key of
        if scaling.name == "dynamic":
            length = keys.pop(ORIGINAL_LENGTH)
        if self.outer_length is not None:
            written[ORIGINAL_LENGTH] = keys.pop(ORIGINAL_LENGTH)
        if length is not None:
            written[LENGTH] = length
        return written | {"rope_scaling": {self.name_key: scaling.name} | keys}


class QueryScaleOfYarn:
    """DeepSeek's scale of queries times keys: 1 / sqrt(head), times yarn's factor of `mscale_all_dim` squared."""

    def read(self, source: Source, fields: Fields) -> None:
        scaling = fields["rope.scaling"] or {}
        if (mscale := scaling.get("mscale_all_dim")) and scaling["factor"] > 1:
            factor = 0.1 * mscale * math.log(scaling["factor"]) + 1
            fields["query_scale"] = fields["head_dim"] ** -0.5 * factor**2

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {}


def _agreed(rope: Source, key: str, outer: Any, default: Any) -> Any:
    """A value that may stand in the rotary embedding's own keys, outside of them or, with the same value, in both."""
    inner = rope.number(key, None)
    if inner is not None and outer not in (None, inner):
        raise rope.refuse(key, inner, f"{outer} as outside of it")
    return next((value for value in (inner, outer) if value is not None), default)


def _kind(rope: Source) -> str | None:
    names = {ALIASES.get(name, name) for key in ("rope_type", "type") if (name := rope.text(key, None)) is not None}
    if len(names) > 1:
        raise rope.refuse("rope_type", sorted(names), "the same in rope_type and type")
    return next(iter(names - {"default"}), None)
