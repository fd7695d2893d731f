"""A history as text for the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.console import size
from data_prep.report.excerpts import head, plain, shortened, shown
from data_prep.report.pictures import value

Json = Mapping[str, Any]
SIGNS = {"=": "{}", "-": "[-{}-]", "+": "{{+{}+}}", "…": "[… {}]"}
EDITS, WIDTH = 5, 160


def lines(history: Json) -> Iterator[str]:
    yield shown(history["id"])
    yield from _facts(history)
    for entry in history["stages"]:
        yield f"{shown(entry['stage'])}: {_did(entry)}"
        yield from _details(entry)
    yield _where(history)
    for title, key in (("text as it was read", "text_before"), ("text as it is now", "text_after")):
        if key == "text_after" and history["text_after"] == history["text_before"]:
            yield "the text was not changed"
            continue
        yield f"{title}:"
        yield _piece(head(history[key].encode()))


def _facts(history: Json) -> Iterator[str]:
    yield f"  source {shown(history['source'])}, read from {shown(str(history['read']['from']))}"
    if history["url"]:
        yield f"  {shown(history['url'])}"
    language = f", language {shown(history['language'])}" if history["language"] else ""
    yield f"  {size(history['read']['bytes'])} of text{language}"
    yield f"  row {history['shard']['row']:,} of {history['shard']['file']}"


def _did(entry: Json) -> str:
    if entry["did"] == "dropped":
        return f"dropped, {shown(entry['reason'])}"
    note = f", {shown(entry['note'])}" if entry.get("note") else ""
    return f"{entry['did']}{note}" if entry["did"] != "found" else "found out"


def _details(entry: Json) -> Iterator[str]:
    for one in entry.get("values", ()):
        side = "least" if "least" in one else "most"
        yield f"  {one['name']} is {value(one['value'])}, limit: at {side} {value(one[side])}"
    if copy := entry.get("copy"):
        yield f"  the copy that stayed: {shown(copy['id'])}"
    for name, found in entry.get("columns", {}).items():
        yield f"  {name} = {plain(found)}"
    edits = entry.get("edits", ())
    for edit in edits[:EDITS]:
        before, after = (shortened(_one_line(edit[key]), WIDTH) for key in ("before", "after"))
        put = f" -> '{after}'" if after else ""
        yield f"  bytes {edit['start']:,} to {edit['stop']:,}: '{before}'{put}"
    if len(edits) > EDITS:
        yield f"  and {len(edits) - EDITS:,} more edits"


def _one_line(text: str) -> str:
    return text[: 8 * WIDTH].replace("\n", "\\n").replace("\t", "\\t")


def _where(history: Json) -> str:
    if (output := history["output"]) is None:
        return f"in no output: {shown(history['why_not'])}"
    place = f"shard {output['shard']}, row {output['row']:,}"
    copies = f", {output['copies']} times" if output["copies"] > 1 else ""
    return f"output: {Path(output['directory'])}, {place}, {output['tokens']:,} tokens{copies}"


def _piece(pieces: list[list[str]]) -> str:
    text = "".join(SIGNS[kind].format(one) for kind, one in pieces)
    return "\n".join(f"  {line}" for line in text.splitlines())
