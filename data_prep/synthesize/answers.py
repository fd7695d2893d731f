"""Answers: what a server said, and whether that is what was asked for."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxlm.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

PLAIN = "answer"
# What Qwen 3, DeepSeek R1 and others write before the answer, where the server does not take it out.
THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
FENCED = re.compile(r"```\w*\s+(.*)```", re.DOTALL)
SCORE_SCHEMA = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}
# Of a message about an answer, which may quote all of it.
MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class Answer:
    """What the server said to a request, in tokens as it counted them, and when.

    `finish` is its word for why the answer ended; `counted` says whether it told the tokens, which are the most that
    they can be where it did not.
    """

    content: str
    finish: str
    input_tokens: int
    output_tokens: int
    counted: bool
    cost: float
    time: str


@dataclass(frozen=True)
class Invalid:
    """Why an answer cannot be used: a reason that is counted, and what exactly."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Shape:
    """What an answer must be: an object that meets a JSON schema, or text where `validator` is None."""

    fields: tuple[str, ...]
    validator: "Validator | None" = None

    @staticmethod
    def load(schema: str | dict[str, Any] | None) -> "Shape":
        if schema is None:
            return Shape((PLAIN,))
        place, schema = ("answer.schema", schema) if isinstance(schema, dict) else (schema, _read(schema))
        return Shape.of(schema, place)

    @staticmethod
    def of(schema: Any, place: str) -> "Shape":
        """Raises `ConfigError` where it is no schema of an object with required properties; fetches nothing."""
        import jsonschema
        from referencing import Registry

        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ConfigError(f"{place}: not a JSON schema: {error.json_path}: {error.message}") from None
        required = schema.get("required") if isinstance(schema, dict) and schema.get("type") == "object" else None
        if not required:
            raise ConfigError(f"{place}: expected a schema of 'type: object' with 'required' properties")
        if outside := [ref for ref in _references(schema) if not ref.startswith("#")]:
            raise ConfigError(f"{place}: refers to {outside[0]}; expected one document, nothing is fetched")
        # With a registry of its own the library does not fetch what a schema refers to.
        return Shape(tuple(required), kind(schema, registry=Registry()))

    def read(self, answer: Answer) -> dict[str, Any] | Invalid:
        """The values of an answer by field."""
        if answer.finish in ("length", "content_filter"):
            return Invalid("cut off" if answer.finish == "length" else "content filter")
        content = THOUGHT.sub("", answer.content)
        if not content.strip():
            return Invalid("empty")
        if self.validator is None:
            return {PLAIN: content}
        problem = ""
        for text in (content, *FENCED.findall(content)):
            try:
                value = _parse(text)
            except (ValueError, RecursionError) as error:
                problem = str(error)[:MESSAGE_CHARACTERS]
            else:
                return self._check(value)
        return Invalid("not JSON", problem)

    def _check(self, value: Any) -> dict[str, Any] | Invalid:
        from referencing.exceptions import Unresolvable

        try:
            error = next(self.validator.iter_errors(value), None)
        except Unresolvable as problem:
            raise ConfigError(f"the schema of answers refers to what it does not have ({problem.ref})") from None
        return value if error is None else Invalid("schema", f"{error.json_path}: {error.message}"[:MESSAGE_CHARACTERS])


def _parse(text: str) -> Any:
    """A value that can be written as JSON in UTF-8 again: Python reads NaN and 1e999, and escapes that are no text."""
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def _read(name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(Path(name).expanduser().read_text("utf-8"))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{name}: cannot be read ({reason}); expected the JSON schema of answers") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: not JSON or YAML: {' '.join(str(error).split())}") from None


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [value for key, value in schema.items() if key in ("$ref", "$dynamicRef") and isinstance(value, str)]
        return own + [ref for value in schema.values() for ref in _references(value)]
    return [ref for value in schema for ref in _references(value)] if isinstance(schema, list) else []


def as_text(value: Any) -> str:
    """A value as texts have it: a string as it is, everything else in JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
