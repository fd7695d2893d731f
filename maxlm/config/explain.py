"""What is wrong with a configuration, in one line per key."""

import difflib
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from maxlm.config.section import Section


def explain(error: ValidationError, schema: type[Section]) -> list[str]:
    """One line per faulty key: what was found, what is allowed, and for an unknown key the nearest one."""
    lines: dict[str, list[str]] = {}
    for problem in error.errors():
        key, section = _locate(problem["loc"], schema)
        if problem["type"] == "extra_forbidden":
            lines[key] = [f"unknown key '{key}'; {_nearest(key, section, schema)}"]
        elif problem["type"] == "missing":
            lines[key] = [f"missing key '{key}'"]
        elif problem["type"] == "union_tag_invalid":  # of sections of several kinds, a name that is none of them
            found = problem["ctx"]
            lines[f"{key}.name"] = [f"{key}.name: found {found['tag']!r}; expected one of {found['expected_tags']}"]
        elif problem["type"] == "union_tag_not_found":
            lines[f"{key}.name"] = [f"missing key '{key}.name'"]
        elif problem["type"] == "value_error":
            text = str(problem["ctx"]["error"])
            lines.setdefault(key, [f"{key}: {text}" if key else text])
        else:
            # The alternatives of a union arrive as several problems of one key.
            found = lines.setdefault(key, [f"{key}: found {problem['input']!r}"])
            found.append(problem["msg"][0].lower() + problem["msg"][1:])
    return [found[0] + (f"; {' or '.join(dict.fromkeys(found[1:]))}" if found[1:] else "") for found in lines.values()]


def _locate(loc: tuple, schema: type[Section]) -> tuple[str, type[Section]]:
    """Dotted key of a pydantic location, and the section it stands in.

    What pydantic adds to tell the members of a union, or a dictionary's keys from its values, is left out.
    """
    parts: list[str] = []
    section: type[Section] = schema
    annotation: Any = schema
    for part in loc:
        alternatives = _alternatives(annotation)
        if len(alternatives) == 1:
            annotation = alternatives[0]
        elif named := [member for member in alternatives if part in _names(member)]:
            annotation = named[0]
            continue
        if part == "[key]":
            break
        if isinstance(annotation, type) and issubclass(annotation, Section):
            section = annotation
            field = section.fields_by_key().get(part)
            annotation = field.annotation if field else None
        elif get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
        else:
            break
        parts.append(str(part))
    return ".".join(parts), section


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union but None, also where it is `Annotated`; none of what is no union."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return []
    members = [member for member in get_args(annotation) if member is not NoneType]
    return (_alternatives(members[0]) or members) if len(members) == 1 else members


def _names(member: Any) -> tuple[str, ...]:
    """What the `name` of a section may be, by which the sections of a union are told apart."""
    fields = member.model_fields if isinstance(member, type) and issubclass(member, Section) else {}
    return get_args(fields["name"].annotation) if "name" in fields else ()


def _section_of(annotation: Any) -> type[Section] | None:
    """The section class inside an annotation such as `dict[str, SourceConfig]` or `ProfileConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in get_args(annotation):
        if (found := _section_of(inner)) is not None:
            return found
    return None


def _all_keys(schema: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in schema.fields_by_key().items():
        keys.append(prefix + name)
        if (inner := _section_of(field.annotation)) is not None:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _nearest(key: str, section: type[Section], schema: type[Section]) -> str:
    """Name the nearest key by the spelling of its last part: in the same section, else anywhere."""
    prefix, _, last = key.rpartition(".")
    siblings = list(section.fields_by_key())
    if close := difflib.get_close_matches(last, siblings, 1):
        return f"the nearest is '{prefix + '.' if prefix else ''}{close[0]}'"
    # Of keys that end alike the first one is named.
    anywhere = {key.rpartition(".")[2]: key for key in reversed(_all_keys(schema))}
    if close := difflib.get_close_matches(last, anywhere, 1):
        return f"the nearest is '{anywhere[close[0]]}'"
    return f"known here: {', '.join(siblings)}"
