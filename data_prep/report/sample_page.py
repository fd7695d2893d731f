"""The part of the page with samples: by stage, what it dropped for each reason, changed and let pass."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from data_prep.report.excerpts import shortened, shown
from data_prep.report.pictures import value

Json = Mapping[str, Any]
TITLES = {"changed": "Changed: what is struck out was cut, what is green was put in", "kept": "Kept"}


def samples(found: Json) -> str:
    parts = []
    for stage in found["samples"]:
        groups = "".join(map(_group, stage["groups"]))
        number = sum(len(group["samples"]) for group in stage["groups"])
        told = f'<span class="why">&nbsp; {number} documents</span>'
        title = f"<summary>{escape(shown(stage['stage']))}{told}</summary>"
        parts.append(f'<details class="card">{title}{groups}</details>')
    told = "Some documents of each stage and reason, chosen by a hash of their ids; texts are cut."
    if found["masked"]:
        told += " Personal data are masked as the stage privacy does it, also where a document was dropped before."
    return f'<h2>Samples</h2><p class="soft">{told}</p>{"".join(parts)}' if parts else ""


def _group(group: Json) -> str:
    title = TITLES.get(group["kind"]) or f"Dropped: {shortened(group['reason'], 120)}"
    return f"<h4>{escape(title)}</h4>{''.join(map(_sample, group['samples']))}"


def _sample(one: Json) -> str:
    values = "".join(f'<div class="value">{escape(_value(entry))}</div>' for entry in one["values"])
    facts = [one["source"], one["url"] or "", one["note"] or ""]
    facts += [f"{key.replace('_', ' ')}: {_short(entry)}" for key, entry in one["columns"].items()]
    chips = "".join(f"<span>{escape(shown(str(fact)))}</span>" for fact in facts if fact)
    body = text(one["text"])
    if copy := one.get("copy"):
        stayed = f'<div>The copy that stayed: <span class="id">{escape(copy["id"])}</span>{text(copy["text"])}</div>'
        body = f'<div class="pair"><div>Dropped{body}</div>{stayed}</div>'
    head = f'<div class="id">{escape(one["id"])}</div>{values}<div class="chips">{chips}</div>'
    return f'<div class="sample">{head}{body}</div>'


def _value(entry: Json) -> str:
    limit = f"at least {value(entry['least'])}" if "least" in entry else f"at most {value(entry['most'])}"
    return f"{entry['name']} is {value(entry['value'])}, limit: {limit}"


def _short(entry: Any) -> str:
    return f"{entry:.4g}" if isinstance(entry, float) else str(entry)


def text(pieces: Sequence[Sequence[str]]) -> str:
    looks = {"=": "{}", "-": "<del>{}</del>", "+": "<ins>{}</ins>", "*": "<mark>{}</mark>", "…": "<em>[… {}]</em>"}
    return f'<div class="text" dir="auto">{"".join(looks[kind].format(escape(one)) for kind, one in pieces)}</div>'
