"""Where text is cut before pieces are learnt and found: the regular expressions of what `tokenizers` trains.

They are those of GPT-4 and Llama 3 (words with the space or sign before them, signs, line ends, runs of white space)
with the choices of the configuration. gigatoken has compiled forms of some expressions alone, and knows none that cuts
numbers from their end; `number_cuts` cuts there beforehand, so that what remains is one it knows.
"""

import unicodedata
from functools import cache

import numba
import numpy as np

from data_prep.config import TokenizerConfig
from data_prep.text.characters import CODE_POINTS
from data_prep.text.texts import Texts, decode

FROM_LEFT, SINGLE, FREE = r"\p{N}{1,3}", r"\p{N}", r"\p{N}+"
# Groups of three counted from the end of a number: a group is followed by whole groups alone. A number is looked at
# for 300 digits, as a million digits of pi would else take time by their square; what is before those is cut from the
# left. 1 234 567 is what arithmetic needs (Singh and Strouse 2024, arXiv:2402.14903).
LOOKED_AT = 300
FROM_RIGHT = rf"\p{{N}}{{1,3}}(?=(?:\p{{N}}{{3}}){{0,{LOOKED_AT // 3 - 1}}}(?!\p{{N}}))|\p{{N}}{{3}}"
DIGITS = {"single": SINGLE, "groups_of_three": FROM_RIGHT, "groups_of_three_left": FROM_LEFT, "free": FREE}
# WordPiece looks for the longest piece from every place, which takes time by the cube of a word's length. No piece is
# longer than sentencepiece's longest by default.
LONGEST_WORD = 16
ANY = rf"[\s\S]{{1,{LONGEST_WORD}}}"


def pattern(config: TokenizerConfig) -> str:
    """The expression whose matches are the words that pieces never cross."""
    before, space = (r"[^\r\n\p{L}\p{N}]?", " ?") if config.leading_space else (r"[^\s\p{L}\p{N}]?", "")
    lines = [r"\s*[\r\n]+"]
    if config.code:
        # All of the indentation but the space that belongs to the next word; a line end behind signs stays with these.
        # It makes code 2.8 % shorter and prose 0.3 %. Cutting camelCase, as GPT-4o does, made code 0.6 % longer
        # (benchmarks/2026-11-28-tokenizers.md).
        lines = [r"\s*[\r\n]+[ \t]*(?= )"] * config.leading_space + [r"\s*[\r\n]+[ \t]*"]
    # The last space of a run is left to the word behind it.
    blanks = [*lines, *[r"\s+(?!\S)"] * config.leading_space, r"\s+"] if config.space_runs else [r"\s"]
    return "|".join(
        [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            rf"{before}\p{{L}}+",
            DIGITS[config.digits or "groups_of_three_left"],
            rf"{space}[^\s\p{{L}}\p{{N}}]+[\r\n]*",
            *blanks,
        ]
    )


def number_cuts(texts: Texts) -> np.ndarray:
    """Byte positions, int64 ascending, where a number is cut so that groups of three from the left end with it."""
    return _number_cuts(texts.data, texts.bounds, _numbers())


@cache
def _numbers() -> np.ndarray:
    """Whether a code point is in category N, bool [0x110000]."""
    return np.array([unicodedata.category(chr(code))[0] == "N" for code in range(CODE_POINTS)])


@numba.njit(cache=True)
def _number_cuts(data, bounds, numbers):
    cuts = []
    for document in range(len(bounds) - 1):
        position, end = bounds[document], bounds[document + 1]
        while position < end:
            if data[position] < 0x30 or 0x3A <= data[position] < 0x80:  # what most bytes are
                position += 1
                continue
            code, after = decode(data, position)
            if not numbers[code]:
                position = after
                continue
            first, length = position, 0
            while numbers[code]:
                length += 1
                position = after
                if position == end:
                    break
                code, after = decode(data, position)
            if length % 3 == 0 or length < 3:
                continue
            cut = length % 3 + max(0, -(-(length - LOOKED_AT) // 3) * 3)
            for _ in range(cut):
                _, first = decode(data, first)
            cuts.append(first)
    return np.array(cuts, np.int64) if len(cuts) else np.zeros(0, np.int64)
