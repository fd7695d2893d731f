"""What rules ask of single characters, as a table beside `text.characters.kinds`: uint8 [0x110000].

SYMBOL   A word of such characters alone is no word to Gopher's rules: ASCII punctuation, control characters, the
         punctuation of CCNet's text_normalizer (Wenzek et al. 2020) and SENTENCE_END, as FineWeb has them.
BREAK    Ends a line for str.splitlines.
END      Ends a sentence: Unicode's Sentence_Terminal and the ellipsis.
ANYWHERE Of these the ones that end a sentence wherever they stand; the others do so before white space alone, so
         that 3.14, example.org and U.S.A. are no three sentences.
CLOSER   Quotes and brackets that still belong to the sentence which they follow.
DECIMAL  str.isdecimal(), which \\d matches.
STOP     Ends a line as FineWeb's share of punctuated lines counts it; set by `with_stop`.
"""

import unicodedata
from functools import cache

import numpy as np

from data_prep.text.characters import CODE_POINTS

VERSION = 1
SYMBOL, BREAK, END, ANYWHERE, CLOSER, DECIMAL, STOP = 1, 2, 4, 8, 16, 32, 64
SENTENCE_TERMINAL = "sentence_terminal"
_ASCII_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_CCNET_PUNCTUATION = "，。、„”“«»１」「《》´∶：？！（）；–—．～’…━〈〉【】％►"
_BREAKS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
# PropList.txt of Unicode 17, property Sentence_Terminal, as hexadecimal ranges.
_SENTENCE_TERMINAL = """
0021 002E 003F 0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B 1362 1367-1368 166E 1735-1736
17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 2024 203C-203D
2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9
AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89
11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 1144B-1144C
115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44
16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88
"""


def sentence_terminal() -> list[int]:
    """Code points of Unicode's property Sentence_Terminal."""
    ranges = [[int(end, 16) for end in entry.split("-")] for entry in _SENTENCE_TERMINAL.split()]
    return [code for ends in ranges for code in range(ends[0], ends[-1] + 1)]


@cache
def traits() -> np.ndarray:
    table = np.zeros(CODE_POINTS, np.uint8)
    ends = sentence_terminal()
    symbols = [ord(character) for character in _ASCII_PUNCTUATION + _CCNET_PUNCTUATION]
    table[[*symbols, *ends, *range(0x20), *range(0x7F, 0xA0)]] |= SYMBOL
    table[[ord(character) for character in _BREAKS]] |= BREAK
    table[ends] |= END | ANYWHERE
    table[[ord(character) for character in "…\u2024"]] |= END
    table[[ord(character) for character in ".!?\u2024"]] &= ~np.uint8(ANYWHERE)
    for code in range(CODE_POINTS):
        category = unicodedata.category(chr(code))
        if category in ("Pe", "Pf", "Pi") or chr(code) in "\"'＂＇":
            table[code] |= CLOSER
        if category == "Nd":
            table[code] |= DECIMAL
    return table


def with_stop(characters: str | tuple[str, ...]) -> np.ndarray:
    """The table with STOP for these characters, or for all of `SENTENCE_TERMINAL`."""
    table = traits().copy()
    codes = sentence_terminal() if characters == SENTENCE_TERMINAL else [ord(character) for character in characters]
    table[codes] |= STOP
    return table
