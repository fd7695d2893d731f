"""Keys of config.json and fields of `ModelConfig`: the settings that a family's table is made of.

A setting reads one key or a few that belong together, and writes them. What a table does not ask for is an error
unless `CHANGE_NOTHING` lists it: a key that changes the mathematics is never passed over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from maxlm.config import ModelConfig
from maxlm.errors import ConfigError

Fields = dict[str, Any]  # of ModelConfig, by dotted names such as "rope.theta"
REQUIRED = object()
DERIVED = object()  # a default that follows from other fields, as null does

# fmt: off
CHANGE_NOTHING = frozenset({
    # Where the file comes from, and what transformers shall do with it.
    "_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "tokenizer_class",
    "use_cache", "cache_implementation", "attn_implementation", "_attn_implementation", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "chunk_size_feed_forward", "task_specific_params",
    "_attn_implementation_autoset", "transformers.js_config", "is_llama_config", "unsloth_fixed", "unsloth_version",
    "max_sequence_length",
    # Tokens that begin and end texts: they stand with the tokenizer and the settings of generation.
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
    # Training: dropout, of which there is none here, and noise on routers.
    "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "router_jitter_noise", "seq_aux",
    "gradient_checkpointing",
    # Heads of classifiers.
    "id2label", "label2id", "num_labels", "_num_labels", "problem_type", "summary_type", "summary_use_proj",
    "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    # How the same numbers are computed: products in slices, attention in float32, where experts are.
    "pretraining_tp", "reorder_and_upcast_attn", "ep_size",
})
# fmt: on


class Source:
    """A config.json that is being read: keys that were asked for are understood, the others are left over."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._left, self.where = values, dict(values), where

    def had(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = REQUIRED) -> Any:
        if key not in self._left and default is REQUIRED:
            raise ConfigError(f"{self.where}: missing key '{key}'")
        return self._left.pop(key, default)

    def count(self, key: str, default: Any = REQUIRED, least: int = 1, null: bool = False) -> Any:
        return self._checked(key, default, int, least, null, f"an integer, at least {least}")

    def number(self, key: str, default: Any = REQUIRED, null: bool = False) -> Any:
        return self._checked(key, default, int | float, 0, null, "a number that is not negative")

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        return self._checked(key, default, bool, False, False, "true or false")

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        return self._checked(key, default, str, "", False, "a name")

    def mapping(self, key: str) -> dict[str, Any]:
        """Keys and values; none of them where there is no such key, or null."""
        value = self.take(key, None)
        if not isinstance(value, dict | None):
            raise self.refuse(key, value, "keys and values")
        return value or {}

    def _checked(self, key: str, default: Any, kind: Any, least: Any, null: bool, expected: str) -> Any:
        """A value of a kind; null where it may be that, as where it is the default."""
        value = self.take(key, default)
        # True is an integer in Python.
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool) and value >= least
        if not fits and not (value is None and (null or default is None)):
            raise self.refuse(key, value, expected)
        return value

    def finish(self) -> None:
        """Raise for the keys that nothing asked for."""
        unknown = sorted(self._left.keys() - CHANGE_NOTHING)
        if unknown:
            found = ", ".join(f"'{key}' = {shortened(self._left[key])}" for key in unknown)
            raise ConfigError(
                f"{self.where}: unknown key{'s' * (len(unknown) > 1)} {found}; expected none but those of the "
                "family, since any other may change what the model computes"
            )

    def refuse(self, key: str, found: Any, expected: str) -> ConfigError:
        return ConfigError(f"{self.where}: {key}: found {shortened(found)}; expected {expected}")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Setting(Protocol):
    def read(self, source: Source, fields: Fields) -> None:
        """Take keys and set fields; earlier settings of the table have set theirs."""

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The keys and their values; what they cannot express is found by reading them back."""


@dataclass(frozen=True)
class Key:
    """One key and the fields that it sets."""

    name: str
    fields: str | tuple[str, ...]
    default: Any = REQUIRED  # where the file has no such key: what the class in transformers says
    spellings: Mapping[Any, Any] | None = None  # their values and ours, all there are; the first of equals is written
    null: Callable[[Fields], Any] | None = None  # what null stands for, where that is not null
    count: bool = False  # a whole number above zero, with which other settings compute
    alias: str | None = None  # another name of the key, read and not written
    optional: bool = False  # not written where the value is None

    def read(self, source: Source, fields: Fields) -> None:
        take = source.flag if isinstance(self.default, bool) else source.count if self.count else source.take
        value = take(self.name, None if self.default is DERIVED else self.default)
        if self.alias is not None and (again := take(self.alias, value)) != value:
            if source.had(self.name):
                raise source.refuse(self.alias, again, f"{value!r} as {self.name} says")
            value = again
        if value is None and self.null is not None:
            value = self.null(fields)
        elif self.spellings is not None:
            value = meaning(source, self.name, value, self.spellings)
        fields |= dict.fromkeys(self._names, value)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        value = field(model, self._names[0])
        if self.spellings is not None:
            spelled = [theirs for theirs, ours in self.spellings.items() if ours == value]
            return {self.name: spelled[0]} if spelled else {}
        return {} if self.optional and value is None else {self.name: value}

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.fields,) if isinstance(self.fields, str) else self.fields


@dataclass(frozen=True)
class Fixed:
    """A key of which our decoder knows one value."""

    name: str
    value: Any
    also: tuple[Any, ...] = ()  # values that mean the same
    written: bool = True  # whether readers look at it

    def read(self, source: Source, fields: Fields) -> None:
        found = source.take(self.name, self.value)
        if not any(type(found) is type(same) and found == same for same in (self.value, *self.also)):
            raise source.refuse(self.name, found, f"{self.value!r}, the only value that can be honoured")

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {self.name: self.value} if self.written else {}


@dataclass(frozen=True)
class Follows:
    """A key that repeats what others say, which must be so. It is not written."""

    name: str
    value: Callable[[Fields], Any]
    spellings: Mapping[Any, Any] | None = None

    def read(self, source: Source, fields: Fields) -> None:
        expected = self.value(fields)
        found = source.take(self.name, None)
        if found is None:
            return
        if expected != (meaning(source, self.name, found, self.spellings) if self.spellings else found):
            raise source.refuse(self.name, found, f"{expected!r}, which follows from other keys")

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Implied:
    """A field that no key sets: it follows from others."""

    field: str
    value: Callable[[Fields], Any]

    def read(self, source: Source, fields: Fields) -> None:
        fields[self.field] = self.value(fields)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class LeftOutKey:
    """A key of something that we leave out: any value is read, and the one that is true of our files is written."""

    name: str
    written: Any

    def read(self, source: Source, fields: Fields) -> None:
        source.take(self.name, None)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {self.name: self.written}


class WholeHeads:
    """A width that is whole heads, without which the class in transformers refuses the file."""

    def read(self, source: Source, fields: Fields) -> None:
        if fields["embed_dim"] % fields["num_heads"]:
            raise source.refuse("hidden_size", fields["embed_dim"], f"a multiple of the {fields['num_heads']} heads")

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {}


def field(model: ModelConfig, name: str) -> Any:
    """The value of a dotted field; None where its section is absent."""
    value: Any = model
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value


def valued(model: ModelConfig, name: str) -> str:
    """A dotted field and its value, for a message."""
    try:
        return f"{name} = {shortened(field(model, name))}"
    except AttributeError:
        return name


def meaning(source: Source, name: str, value: Any, spellings: Mapping[Any, Any]) -> Any:
    """What one of their values is with us."""
    # True equals 1 in Python, and a list is no key.
    for theirs, ours in spellings.items():
        if type(value) is type(theirs) and value == theirs:
            return ours
    raise source.refuse(name, value, " or ".join(map(repr, spellings)))


def nested(fields: Fields) -> dict[str, Any]:
    """The sections that dotted names stand for."""
    values: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, last = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = value
    return values
