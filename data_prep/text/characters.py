"""What each code point is, as tables that compiled loops look up: uint8 or uint32 [code points].

They come from Python's Unicode data, whose version enters the keys of what is computed with them (`UNICODE`).
"""

import unicodedata
from functools import cache

import numpy as np

UNICODE = unicodedata.unidata_version
CODE_POINTS = 0x110000

# Bits of `kinds`.
WORD, ALPHA, DIGIT, SPACE, SINGLE, PUNCTUATION, UPPER = 1, 2, 4, 8, 16, 32, 64

# Blocks of scripts that put no spaces between words: each character is a word of its own.
_SINGLE = [
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    *((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Han
]


@cache
def kinds() -> np.ndarray:
    """Bits of each code point, uint8 [0x110000].

    WORD: str.isalnum(), marks and the underscore; ALPHA: str.isalpha(); DIGIT: str.isdigit(); SPACE: str.isspace();
    SINGLE: a word character of a script without spaces; PUNCTUATION: categories P and S; UPPER: str.isupper().
    """
    table = np.zeros(CODE_POINTS, np.uint8)
    categories = np.array([unicodedata.category(chr(code)) for code in range(CODE_POINTS)])
    first = categories.astype("U1")
    letters = first == "L"
    table[letters] |= ALPHA | WORD
    table[(first == "N") | (first == "M")] |= WORD
    table[ord("_")] |= WORD
    table[(first == "P") | (first == "S")] |= PUNCTUATION
    table[categories == "Lu"] |= UPPER
    for code in np.flatnonzero((first == "Z") | (categories == "Cc") | (first == "N")).tolist():
        if chr(code).isspace():
            table[code] |= SPACE
        if chr(code).isdigit():
            table[code] |= DIGIT
    for low, high in _SINGLE:
        block = table[low : high + 1]
        block[(block & WORD) > 0] |= SINGLE
    return table


@cache
def folded(traditional: bool = True) -> np.ndarray:
    """Each code point as comparisons see it, uint32 [0x110000]: compatibility forms and case are folded.

    NFKC and lower case where they give one code point, else unchanged; with `traditional`, traditional Han characters
    become simplified ones, one by one (OpenCC's t2s), so that both scripts of a text are equal.
    """
    table = np.arange(CODE_POINTS, dtype=np.uint32)
    for code in range(0x80, CODE_POINTS):
        if 0xD800 <= code < 0xE000:
            continue
        character = chr(code)
        plain = unicodedata.normalize("NFKC", character).lower()
        if plain != character and len(plain) == 1:
            table[code] = ord(plain)
    table[ord("A") : ord("Z") + 1] = np.arange(ord("a"), ord("z") + 1)
    if traditional:
        import opencc

        han = [code for low, high in _SINGLE[-4:] for code in range(low, min(high, 0x2FA1F) + 1)]
        lines = "\n".join(chr(int(table[code])) for code in han)
        simplified = opencc.OpenCC("t2s").convert(lines).split("\n")
        for code, character in zip(han, simplified, strict=True):
            if len(character) == 1:
                table[code] = ord(character)
    return table
