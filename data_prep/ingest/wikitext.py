"""Wikitext -> text, with mwparserfromhell.

Templates, tables, references, galleries, files and categories are left out. Headings stay as lines, lists with a dash
for each item, links as what is seen of them.

The parser takes time in the square of the length for wikitext that opens much and closes nothing (30 kB of `<a b='`:
44 seconds; an article of that length: 0.07), so that a page goes to it section by section.
"""

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Node, Tag, Wikilink
    from mwparserfromhell.wikicode import Wikicode

# Tags with nothing to read in them, and those that stand in lines of their own.
LEFT_OUT = frozenset(
    {"ref", "references", "table", "gallery", "timeline", "imagemap", "score", "graph", "mapframe", "maplink"}
    | {"templatestyles", "indicator", "inputbox", "categorytree", "style", "script"}
)
BLOCKS = frozenset({"p", "div", "blockquote", "li", "pre", "syntaxhighlight", "source", "poem", "center"})
# Namespaces whose links show no text, in English; a dump says what its wiki calls them.
MEDIA = frozenset({"file", "image", "media", "category"})
# A link to the same page in another language, as older dumps have them.
OTHER_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]{2,10})*|simple")
ITEM, DEFINITION, TERM = "li", "dd", "dt"

_HEADING = re.compile(r"^(?==)", re.MULTILINE)
_PAIRS = (("{{", "}}"), ("{|", "|}"), ("<!--", "-->"))
_SWITCH = re.compile(r"__[A-Z]+__")
# Brackets that held nothing but templates.
_EMPTY_BRACKETS = re.compile(r" ?[(\uff08][\s,;:\uff0c\uff1b\uff1a]*[)\uff09]")
_SPACES = re.compile(r"(?<=\S) {2,}(?=\S)")
_BLANK_LINES = re.compile(r"\n\s*\n")


def wikitext_to_text(wikitext: str, media: Collection[str] = MEDIA) -> str:
    """The text of a page; `media` are the names of namespaces whose links show nothing, in small letters."""
    import mwparserfromhell

    text = "".join(_text(mwparserfromhell.parse(section), media) for section in _sections(wikitext))
    text = _SPACES.sub(" ", _EMPTY_BRACKETS.sub("", _SWITCH.sub("", text)))
    lines = [line.rstrip() for line in text.split("\n")]
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def _sections(wikitext: str) -> Iterator[str]:
    """Pieces from heading to heading, longer where a template, table or comment goes across headings."""
    pieces: list[str] = []
    opened = dict.fromkeys(_PAIRS, 0)
    for section in _HEADING.split(wikitext):
        pieces.append(section)
        for opening, closing in _PAIRS:
            opened[opening, closing] += section.count(opening) - section.count(closing)
        if all(count <= 0 for count in opened.values()):
            yield "".join(pieces)
            pieces, opened = [], dict.fromkeys(_PAIRS, 0)
    # What is never closed is no template; its sections are read on their own.
    yield from pieces


def _text(code: "Wikicode", media: Collection[str]) -> str:
    pieces: list[str] = []
    markers: list[str] = []
    for node in code.nodes:
        if (marker := _marker(node)) is not None:
            markers.append(marker)
            continue
        text = _node(node, media)
        if markers:
            text = _bullet(markers, not pieces or pieces[-1].endswith("\n")) + text.lstrip(" ")
            markers = []
        if text:
            pieces.append(text)
    return "".join(pieces)


def _marker(node: "Node") -> str | None:
    """Of what an asterisk, number sign, colon or semicolon at the beginning of a line begins an entry."""
    tag = str(node.tag) if type(node).__name__ == "Tag" and node.wiki_markup else None
    return tag if tag in (ITEM, DEFINITION, TERM) else None


def _bullet(markers: list[str], begins: bool) -> str:
    """What stands for markers in a row: items are indented by how many there are."""
    if not begins:
        return ": "
    return "  " * (len(markers) - 1) + "- " if markers[-1] == ITEM else ""


def _node(node: "Node", media: Collection[str]) -> str:
    kind = type(node).__name__
    if kind == "Text":
        return node.value
    if kind == "Wikilink":
        return _link(node, media)
    if kind == "Tag":
        return _tag(node, media)
    if kind == "Heading":
        return f"\n{_text(node.title, media).strip()}\n"
    if kind == "ExternalLink":
        return _text(node.title, media) if node.title is not None else "" if node.brackets else str(node.url)
    if kind == "HTMLEntity":
        return node.normalize()
    # Templates, their arguments and comments.
    return ""


def _link(node: "Wikilink", media: Collection[str]) -> str:
    title = str(node.title).strip()
    prefix, colon, _ = title.partition(":")
    prefix = prefix.strip().lower()
    if colon and (prefix in media or (node.text is None and OTHER_LANGUAGE.fullmatch(prefix))):
        return ""
    return _text(node.text, media) if node.text is not None else title.removeprefix(":").replace("_", " ")


def _tag(node: "Tag", media: Collection[str]) -> str:
    name = str(node.tag).strip().lower()
    if name in LEFT_OUT or node.wiki_markup == "----":
        return ""
    if name == "br":
        return "\n"
    inside = _text(node.contents, media) if node.contents is not None else ""
    return f"\n{inside}\n" if name in BLOCKS else inside
