"""Whether a tokenizer gives every text back, and what it makes of the first one that it does not."""

import unicodedata
from collections.abc import Sequence
from functools import cache

from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# Of code points without a character one in so many is tried: their bytes are those of the others.
UNASSIGNED = 256
PROBE_CHARACTERS = 256


@cache
def probes() -> tuple[str, ...]:
    """Texts that a tokenizer tends to lose.

    Every byte that is a text by itself, alone; every character of all planes of Unicode, and some code points that are
    none, so that every byte occurs which UTF-8 has; controls, blanks, and text that looks like a token.
    """
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and _is_tried(code)]
    planes = "".join(map(chr, codes))
    return (
        *map(chr, range(0x80)),
        *(planes[start : start + PROBE_CHARACTERS] for start in range(0, len(planes), PROBE_CHARACTERS)),
        "  two  blanks  ",
        "\n\n\t \r\n\r x \n",
        "def f():\n    if x:\n\treturn  \n\n",
        "a\0b\x00\n",
        "\u2581 \u2581\u2581",
        "##a # ## a##",
        "1234567 3.14159 1e-05",
        "漢字かな交じり文、한국어. 中文沒有空格",
        "e\u0301 \u00e9 \ufb01 \u2126 \uff21",
        "👩‍👩‍👧‍👦🇪🇺 \U0010ffff\ufffd\ufeff",
        f"{BOS}x{EOS} <s></s><unk> <0x0A>",
        "x" * 3000,
        "12" * 500,
    )


def _is_tried(code: int) -> bool:
    return unicodedata.category(chr(code)) not in ("Cn", "Co") or code % UNASSIGNED in (0, UNASSIGNED - 1)


def find_difference(tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """What the first text that does not come back becomes, or None."""
    return next(
        (difference(text, back) for text in texts if (back := tokenizer.decode(tokenizer.encode(text))) != text), None
    )


def difference(text: str, back: str) -> str:
    """The place where a decoded text begins to differ, with what stands before it."""
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    before = f" after {ascii(text[max(0, place - 20) : place])}" if place else ""
    return f"{show(text[place:])} becomes {show(back[place:])}{before}"


def lossy(difference: str) -> DataError:
    return DataError(
        f"the tokenizer does not give its text back: {difference}; use another one, or set tokenizer.allow_lossy=true"
    )


def show(text: str) -> str:
    """The beginning of a text for a message."""
    return ascii(text[:20]) + ("..." if len(text) > 20 else "")
