"""Pieces of text that a page can show: short, without characters that act on a reader or his terminal.

An excerpt is a list of [kind, text]: "=" stays, "-" is cut out, "+" is put in, "*" is what mattered, "…" says what is
left out.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from data_prep.report.lives import Span

CHARACTERS = 600
CONTEXT, LONGEST = 90, 180
# They join letters of several scripts, and emoji.
JOINERS = "\u200c\u200d"
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Most marks that stand on one letter: more are no writing.
MARKS = 4

Excerpt = list[list[str]]


def shown(text: str) -> str:
    """The text with the numbers of characters that would not be seen, turn the text around or move a cursor."""
    found, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > MARKS or (category in HIDDEN and character not in "\n\t" + JOINERS):
            found.append(f"\\x{ord(character):02x}")
        else:
            found.append(character)
    return "".join(found)


def shortened(text: str, most: int = 200) -> str:
    """A name or an address on one line, its middle left out where it is long."""
    text = shown(" ".join(text[: 4 * most].split())) if len(text) > 4 * most else shown(" ".join(text.split()))
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def plain(value: Any) -> Any:
    """A column's value as JSON has it, short."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return shortened(value if isinstance(value, str) else str(value))


def head(text: bytes, most: int = CHARACTERS) -> Excerpt:
    """The beginning of a text."""
    whole = text[: 4 * most + 4].decode(errors="ignore")
    piece = shown(whole[:most])[:most]
    left = len(text) - len(whole[:most].encode())
    return [["=", piece], *([["…", f"{left:,} more bytes"]] if left > 0 else [])]


def changes(text: bytes, edits: Sequence[Span], most: int = CHARACTERS) -> Excerpt:
    """The first edits of a text, with some text around each."""
    pieces: Excerpt = []
    place = used = done = 0
    for start, stop, new in edits:
        if used >= most:
            break
        pieces += _between(text, place, start, first=not done)
        pieces += [["-", one] if kind == "=" else [kind, one] for kind, one in _middle(text[start:stop])]
        pieces += [["+", one] if kind == "=" else [kind, one] for kind, one in _middle(new.encode())]
        used = sum(len(one) for kind, one in pieces if kind != "…")
        place, done = stop, done + 1
    after = _start(text[place:], CONTEXT)
    pieces.append(["=", after])
    left = [f"{len(edits) - done:,} more changes"] if done < len(edits) else []
    if rest := len(text) - place - len(after.encode()):
        left.append(f"{max(rest, 1):,} more bytes")
    return [piece for piece in [*pieces, ["…", ", ".join(left)]] if piece[1]]


def around(text: bytes, places: Sequence[tuple[int, int]], most: int = CHARACTERS) -> Excerpt:
    """The first places of a text that mattered, in bytes, with some text around each."""
    found = changes(text, [(start, stop, "") for start, stop in places], most)
    return [["*" if kind == "-" else kind, one.replace("more changes", "more places")] for kind, one in found]


def _between(text: bytes, start: int, stop: int, first: bool) -> Excerpt:
    """What stands before an edit, and behind the one before it."""
    if stop - start <= 2 * CONTEXT:
        return [["=", shown(text[start:stop].decode(errors="ignore"))]]
    before = "" if first else _start(text[start:stop], CONTEXT)
    left = stop - start - (1 if first else 2) * CONTEXT
    return [["=", before], ["…", f"{left:,} bytes"], ["=", _end(text[start:stop], CONTEXT)]]


def _middle(text: bytes) -> Excerpt:
    if len(text) <= 2 * LONGEST:
        return [["=", shown(text.decode(errors="ignore"))[: 2 * LONGEST]]]
    return [["=", _start(text, LONGEST)], ["…", f"{len(text) - 2 * LONGEST:,} bytes"], ["=", _end(text, LONGEST)]]


def _start(text: bytes, size: int) -> str:
    return shown(text[:size].decode(errors="ignore"))[:size]


def _end(text: bytes, size: int) -> str:
    return shown(text[-size:].decode(errors="ignore"))[-size:]
