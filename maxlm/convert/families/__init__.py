"""Families of models as Hugging Face writes them: one table each, read in both directions."""

from collections.abc import Iterable, Mapping
from typing import Any

from maxlm.config import ModelConfig, validate
from maxlm.convert.families.deepseek_v2 import DEEPSEEK_V2
from maxlm.convert.families.deepseek_v3 import DEEPSEEK_V3
from maxlm.convert.families.gemma2 import GEMMA2
from maxlm.convert.families.gemma3_text import GEMMA3_TEXT
from maxlm.convert.families.gpt2 import GPT2
from maxlm.convert.families.llama import LLAMA
from maxlm.convert.families.mistral import MISTRAL
from maxlm.convert.families.mixtral import MIXTRAL
from maxlm.convert.families.olmo2 import OLMO2
from maxlm.convert.families.phi3 import PHI3
from maxlm.convert.families.qwen2 import QWEN2
from maxlm.convert.families.qwen3 import QWEN3
from maxlm.convert.families.qwen3_moe import QWEN3_MOE
from maxlm.convert.links import Link
from maxlm.convert.mathematics import differences
from maxlm.convert.settings import Fixed, Source, nested, shortened, valued
from maxlm.convert.table import Family, Names, build_links, match
from maxlm.errors import ConfigError

# In the order in which an export asks them: the plainest that can express a model is its family.
DENSE = (LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, GEMMA2, GEMMA3_TEXT, PHI3, GPT2)
WITH_EXPERTS = (MIXTRAL, QWEN3_MOE, DEEPSEEK_V2, DEEPSEEK_V3)
TABLES: dict[str, Family] = {table.name: table for table in (*DENSE, *WITH_EXPERTS)}

# What the classes in transformers take instead are numbers of their first tokenizers; who exports sets the model's own.
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))

# True of every family here, and of no other value in our decoder.
COMMON = (Fixed("is_encoder_decoder", False, written=False), Fixed("add_cross_attention", False, written=False))


def read_config(config: Mapping[str, Any], where: str) -> tuple[str, ModelConfig]:
    """The family (their model_type) and the model that a config.json describes; `where` names it in messages.

    Raises `ConfigError` for a family that has no table, a key that no table knows, and a value that our decoder cannot
    honour: nothing that changes the mathematics is passed over.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TABLES:
        inner = config.get("text_config")
        hint = f", whose text_config is of {inner.get('model_type')!r}" if isinstance(inner, dict) else ""
        raise ConfigError(
            f"{where}: model_type: found {kind!r}{hint}; expected a model of text alone, one of {', '.join(TABLES)}"
        )
    if config.get("quantization_config") is not None:
        raise ConfigError(
            f"{where}: quantization_config: found {shortened(config['quantization_config'])}; expected none: quantised "
            "weights are not read, take the model in bfloat16 or convert it first"
        )
    return kind, _read(TABLES[kind], config, f"{where} ({kind})")


def write_config(model: ModelConfig, family: str | None = None) -> tuple[str, dict[str, Any]]:
    """The family, by default the first that can express the model, and its config.json.

    It has everything but the numbers of special tokens and the dtype. max_position_embeddings is the model's
    `context_length`, and is left out where that is None; some scalings are made of it, so it is set in the model, not
    in what comes of this. Raises `ConfigError` that names what no family (or not the one given) can express.
    """
    if family is not None and family not in TABLES:
        raise ConfigError(f"family: found {family!r}; expected one of {', '.join(TABLES)}")
    lacks: dict[str, list[str]] = {}
    for name in TABLES if family is None else (family,):
        written, lacks[name] = _written(TABLES[name], model)
        if not lacks[name]:
            return name, written
    # A family with other kinds of layers is not near, however much of the rest it expresses.
    nearest = min(lacks, key=lambda name: (_kinds_apart(TABLES[name], model) != [], len(lacks[name])))
    subject = f"{family} cannot" if family else f"no family can express the model; the nearest, {nearest}, cannot"
    raise ConfigError(f"export: {subject} express {', '.join(lacks[nearest])}")


def links(family: str, model: ModelConfig) -> list[Link]:
    """Every tensor of a model's files, embeddings first, then layer by layer; together they cover all parameters."""
    return build_links(TABLES[family], model)


def match_names(family: str, model: ModelConfig, expected: Iterable[Link], names: Iterable[str]) -> Names:
    """What the tensors in a folder are: those of the links, under their own names or without the family's prefix;
    copies; those that are left out, and why; and what is missing or extra."""
    return match(TABLES[family], model, [link.theirs for link in expected], names)


def _read(table: Family, config: Mapping[str, Any], where: str) -> ModelConfig:
    source, fields = Source(config, where), dict(table.fields)
    source.take("model_type")
    source.take("quantization_config", None)
    for setting in (*COMMON, *table.settings):
        setting.read(source, fields)
    source.finish()
    return validate(nested(fields), ModelConfig, where)


def _written(table: Family, model: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    """A config.json, and what of the model it loses: found by reading it."""
    if apart := _kinds_apart(table, model):
        return {}, apart
    written: dict[str, Any] = {"architectures": [table.architecture], "model_type": table.name} | NO_TOKENS
    for setting in table.settings:
        written |= setting.write(model)
    try:
        back = _read(table, written, f"config.json ({table.name})")
    except ConfigError as error:
        return {}, [str(error)]
    return written, [valued(model, name) for name in differences(model, back)]


def _kinds_apart(table: Family, model: ModelConfig) -> list[str]:
    """Kinds of layers that the model has and the family has not, or the other way round."""
    kinds = {name.partition(".")[0] for name in table.fields}
    has = {name: getattr(model, name) is not None for name in ("moe", "latent")}
    return [name if has[name] else f"a model without {name}" for name in has if has[name] != (name in kinds)]
