"""Reading, merging and writing configurations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from maxlm.config.explain import explain
from maxlm.config.section import Section
from maxlm.config.sections import Config
from maxlm.errors import ConfigError

WHOLE_LISTS = "lists are replaced whole, for example data.mixture='[{tokens: 1e9, weights: {web: 1}}]'"
S = TypeVar("S", bound=Section)


def load(path: str | Path, overrides: Sequence[str] = (), schema: type[S] = Config) -> S:
    """Read, merge and validate a configuration file; raises `ConfigError` with one line per problem."""
    return validate(read(path, overrides), schema, str(path))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The merged values of a configuration file and `key=value` overrides, not validated."""
    merged = _read(Path(path), ())
    try:
        for text in overrides:
            key, equals, _ = text.partition("=")
            if not equals or not key or "[" in key:
                raise ConfigError(f"override '{text}': expected key=value with dots between keys; {WHOLE_LISTS}")
            try:
                merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([text]))
            except TypeError:  # a key below a list
                raise ConfigError(f"override '{text}': {WHOLE_LISTS}") from None
        return OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None


def validate(values: Any, schema: type[S], where: str) -> S:
    """Turn plain values into a configuration; `where` names their origin in the error."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in explain(error, schema))) from None


def to_yaml(config: Section) -> str:
    """The resolved configuration, as it stands in a run directory."""
    return as_yaml(config.model_dump(mode="json"))


def as_yaml(values: dict[str, Any]) -> str:
    """Plain values as a file that `load` reads, and `extends` may name."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def json_schema(schema: type[Section] = Config) -> dict:
    """JSON schema of a configuration file, for editors; `extends` is a key of files alone."""
    document = schema.model_json_schema()
    document["properties"] = {
        "extends": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Files, relative to this one, that are read first, in order.",
        }
    } | document["properties"]
    # A file may leave to `extends` or to the command line what the whole configuration requires.
    for section in (document, *document.get("$defs", {}).values()):
        section.pop("required", None)
    return document


def _read(path: Path, parents: tuple[Path, ...]):
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file" + (f" (named in {parents[-1]})" if parents else ""))
    if path.resolve() in [parent.resolve() for parent in parents]:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(map(str, parents))}")
    try:
        own = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a YAML file: {_first_line(error)}") from None
    if not OmegaConf.is_dict(own):
        raise ConfigError(f"{path}: expected keys and values, found a {type(own).__name__}")
    bases = own.pop("extends", [])
    if isinstance(bases, str) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: extends must be a list of file names, found {bases!r}")
    merged = OmegaConf.create({})
    for base in bases:
        merged = OmegaConf.merge(merged, _read(path.parent / base, (*parents, path)))
    return OmegaConf.merge(merged, own)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:3]).strip()
