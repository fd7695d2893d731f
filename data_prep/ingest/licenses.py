"""Licences of source files, by the text of licence files or by what a file says of itself, under their SPDX names."""

import re
from collections.abc import Collection

UNKNOWN, NONE = "unknown", "none"
# SPDX name: what its text says, as `_words` gives it; all of one line of alternatives must occur.
TELL_TALES: dict[str, tuple[tuple[str, ...], ...]] = {
    "Apache-2.0": (("apache license version 2 0",),),
    "AGPL-3.0": (("gnu affero general public license version 3 19 november 2007",),),
    "GPL-3.0": (("gnu general public license version 3 29 june 2007",),),
    "GPL-2.0": (("gnu general public license version 2 june 1991",),),
    "LGPL-3.0": (("gnu lesser general public license version 3 29 june 2007",),),
    "LGPL-2.1": (("gnu lesser general public license version 2 1 february 1999",),),
    "LGPL-2.0": (("gnu library general public license version 2 june 1991",),),
    "MPL-2.0": (("mozilla public license version 2 0",), ("mozilla public license v 2 0",)),
    "EPL-2.0": (("eclipse public license v 2 0",),),
    "EPL-1.0": (("eclipse public license v 1 0",),),
    "CDDL-1.0": (("common development and distribution license cddl version 1 0",),),
    "EUPL-1.2": (("european union public licence v 1 2",),),
    "BSL-1.0": (("boost software license version 1 0",),),
    "Unlicense": (("this is free and unencumbered software released into the public domain",),),
    "CC0-1.0": (("cc0 1 0 universal",),),
    "CC-BY-4.0": (("creative commons attribution 4 0 international",),),
    "CC-BY-SA-4.0": (("creative commons attribution sharealike 4 0 international",),),
    "CC-BY-NC-4.0": (("creative commons attribution noncommercial 4 0 international",),),
    "Zlib": (("altered source versions must be plainly marked as such", "the origin of this software must not be"),),
    "Artistic-2.0": (("artistic license 2 0",),),
    "PSF-2.0": (("python software foundation license version 2",),),
    "PostgreSQL": (("without fee and without a written agreement is hereby granted",),),
    "NCSA": (("university of illinois ncsa open source license",),),
    "OFL-1.1": (("sil open font license version 1 1",),),
    "MS-PL": (("microsoft public license ms pl",),),
    "UPL-1.0": (("universal permissive license upl version 1 0",),),
    "MulanPSL-2.0": (("mulan permissive software license version 2",),),
    "WTFPL": (("do what the fuck you want to public license",),),
}
MIT = "permission is hereby granted free of charge to any person obtaining a copy of this software and associated"
MIT_NOTICE = "the above copyright notice and this permission notice shall be included in all copies"
ISC = "for any purpose with or without fee is hereby granted"
ISC_NOTICE = "provided that the above copyright notice and this permission notice appear in all copies"
BSD = "redistribution and use in source and binary forms with or without modification are permitted"
BSD_NAME = "endorse or promote products derived from this software without"
BSD_ADVERTISING = "all advertising materials mentioning features or use of this software"

HEADER_BYTES = 4096
_HEADER = re.compile(
    rb"SPDX-License-Identifier:[ \t]*([\w.+()-]+(?:[ \t]+(?:AND|OR|WITH)[ \t]+[\w.+()-]+)*)", re.IGNORECASE
)


def license_of_text(text: str) -> str:
    """The licences whose text a licence file has, joined by AND; `unknown` where it has none that is known."""
    words = _words(text)
    found = [name for name, ways in TELL_TALES.items() if any(all(tale in words for tale in way) for way in ways)]
    if MIT in words:
        found.append("MIT" if MIT_NOTICE in words else "MIT-0")
    if ISC in words and "redistribution" not in words:
        found.append("ISC" if ISC_NOTICE in words else "0BSD")
    if BSD in words:
        clauses = 4 if BSD_ADVERTISING in words else 3 if BSD_NAME in words else 2
        found.append(f"BSD-{clauses}-Clause")
    return " AND ".join(found) or UNKNOWN


def license_in_header(content: bytes) -> str | None:
    """What a source file's SPDX-License-Identifier says, if its first lines have one."""
    found = _HEADER.search(content[:HEADER_BYTES])
    return " ".join(found[1].decode("utf-8", "replace").split()) if found else None


def is_allowed(expression: str, allowed: Collection[str]) -> bool:
    """Whether a licence expression can be met with allowed licences alone: one side of an OR, both of an AND.

    `-only`, `-or-later` and `+` make no difference, as the text of a licence does not have them; nor do exceptions
    (WITH), which only add permissions.
    """
    without = re.sub(r"\s+WITH\s+[^\s()]+", "", expression, flags=re.IGNORECASE)
    return _either(re.findall(r"[()]|[^\s()]+", without), {_plain(name) for name in allowed})


def _either(tokens: list[str], names: Collection[str]) -> bool:
    """The value of alternatives at the front of the tokens, which are used up; AND binds more than OR."""
    value = _both(tokens, names)
    while tokens and tokens[0].upper() == "OR":
        del tokens[0]
        value |= _both(tokens, names)
    return value


def _both(tokens: list[str], names: Collection[str]) -> bool:
    value = _one(tokens, names)
    while tokens and tokens[0].upper() == "AND":
        del tokens[0]
        value &= _one(tokens, names)
    return value


def _one(tokens: list[str], names: Collection[str]) -> bool:
    if not tokens:
        return False
    token = tokens.pop(0)
    if token != "(":
        return _plain(token) in names
    value = _either(tokens, names)
    if tokens:
        del tokens[0]
    return value


def _plain(name: str) -> str:
    return re.sub(r"(-only|-or-later|\+)$", "", name.lower())


def _words(text: str) -> str:
    """Letters and digits in small letters with one space between words, so that layout makes no difference."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
