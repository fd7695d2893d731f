"""Paths that are URLs, and what of them may be told."""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s'\"<>]*)")


def is_url(path: str) -> bool:
    return _URL.match(path) is not None


def redact(text: str) -> str:
    """The text with every URL in it reduced to its address: no query, no user and password."""

    def address(found: re.Match) -> str:
        scheme, rest = found.groups()
        place = re.split(r"[?#]", rest, maxsplit=1)[0]
        before, at, after = place.rpartition("@")
        # hf://datasets/a/b@main and abfs://container@host are addresses: nothing before the @ is a password.
        secret = at and "/" not in before and (":" in before or scheme.lower() in ("http", "https"))
        return f"{scheme}://{after if secret else place}"

    return _URL.sub(address, text)


def secrets(url: str) -> list[str]:
    """What of a URL must not be told, in the forms in which it may turn up in a message, longest first."""
    parts = urlsplit(url)
    found = {parts.query, parts.password or "", *(value for _, value in parse_qsl(parts.query))}
    return sorted({form for text in found for form in (text, unquote(text)) if len(form) > 3}, key=len, reverse=True)
