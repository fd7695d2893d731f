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


# First words of letters' Unicode names, and the ISO 15924 code of their script. Han stands apart below.
_NAMED = {
    "LATIN": "Latn",
    "CYRILLIC": "Cyrl",
    "GREEK": "Grek",
    "ARABIC": "Arab",
    "HEBREW": "Hebr",
    "HIRAGANA": "Hira",
    "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana",
    "BOPOMOFO": "Bopo",
    "HANGUL": "Hang",
    "DEVANAGARI": "Deva",
    "BENGALI": "Beng",
    "GURMUKHI": "Guru",
    "GUJARATI": "Gujr",
    "ORIYA": "Orya",
    "TAMIL": "Taml",
    "TELUGU": "Telu",
    "KANNADA": "Knda",
    "MALAYALAM": "Mlym",
    "SINHALA": "Sinh",
    "THAI": "Thai",
    "LAO": "Laoo",
    "TIBETAN": "Tibt",
    "MYANMAR": "Mymr",
    "KHMER": "Khmr",
    "GEORGIAN": "Geor",
    "ARMENIAN": "Armn",
    "ETHIOPIC": "Ethi",
    "MONGOLIAN": "Mong",
    "SYRIAC": "Syrc",
    "THAANA": "Thaa",
    "YI": "Yiii",
    "CHEROKEE": "Cher",
    "CANADIAN": "Cans",
    "TIFINAGH": "Tfng",
    "NKO": "Nkoo",
    "JAVANESE": "Java",
    "COPTIC": "Copt",
}
# Codes by the numbers in `scripts`: no letter, a letter of another script, Han characters that simplified text alone
# has, that traditional text alone has, that both have, and the scripts above.
SCRIPTS = ("", "Zzzz", "Hans", "Hant", "Hani", *dict.fromkeys(_NAMED.values()))


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


@cache
def scripts() -> np.ndarray:
    """The script of each letter as an index into `SCRIPTS`, uint8 [0x110000]; 0 for what is no letter.

    Simplified are the Han characters that OpenCC's s2t alone changes, traditional those that its t2s alone changes.
    """
    import opencc

    table = np.zeros(CODE_POINTS, np.uint8)
    numbers = {name: SCRIPTS.index(script) for name, script in _NAMED.items()}
    numbers |= {"CJK": SCRIPTS.index("Hani"), "IDEOGRAPHIC": SCRIPTS.index("Hani")}
    for code in np.flatnonzero(kinds() & ALPHA).tolist():
        words = unicodedata.name(chr(code), "").split()
        first = words[1] if words and words[0] in ("FULLWIDTH", "HALFWIDTH") else "".join(words[:1])
        table[code] = numbers.get(first, SCRIPTS.index("Zzzz"))
    han = np.flatnonzero(table == SCRIPTS.index("Hani"))
    lines = "\n".join(map(chr, han.tolist()))
    simplified, traditional = (
        np.array(opencc.OpenCC(name).convert(lines).split("\n")) != lines.split("\n") for name in ("s2t", "t2s")
    )
    table[han[simplified & ~traditional]] = SCRIPTS.index("Hans")
    table[han[traditional & ~simplified]] = SCRIPTS.index("Hant")
    return table
