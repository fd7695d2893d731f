"""C4's rules for one line (Raffel et al. 2020, 1910.10683, section 2.2, with the rules that its code adds).

In the order of the published implementation of FineWeb's filters: a word too long; citations are cut out; no final
punctuation; too few words, separated by white space; "javascript"; phrases of policies. It counts what concerns whole
documents on the lines that get that far: "lorem ipsum", curly brackets, sentences.
"""

import numba
import numpy as np

from data_prep.rules import settings as place
from data_prep.rules.columns import C4
from data_prep.rules.phrases import find
from data_prep.rules.sentences import count_sentences
from data_prep.rules.settings import (
    C4_FEW_WORDS,
    C4_JAVASCRIPT,
    C4_LONG_WORD,
    C4_NO_PUNCTUATION,
    C4_POLICY,
    JAVASCRIPT_GROUP,
    KEPT,
    LOREM_GROUP,
    POLICY_GROUP,
)
from data_prep.rules.traits import DECIMAL
from data_prep.text.characters import SPACE
from data_prep.text.texts import decode

OPEN, CLOSE, CURLY, POINT = 0x5B, 0x5D, 0x7B, 0x2E
FINAL = (0x2E, 0x3F, 0x21, 0x22, 0x27)
_EDIT = np.frombuffer(b"edit]", np.uint8)
_NEEDED = np.frombuffer(b"citation needed]", np.uint8)


@numba.njit(cache=True)
def judge(data, start, stop, kinds, traits, settings, phrases, scratch, pieces, row):
    """The rule that removes the line start..stop, ends trimmed, or KEPT; and how many pieces of it are left.

    pieces int64 [.., 2] gets their start and stop: more than one where citations were cut out.
    """
    words, longest = _whitespace_words(data, start, stop, kinds)
    if settings[place.WORD_CHARACTERS] and longest > settings[place.WORD_CHARACTERS]:
        return C4_LONG_WORD, 0
    count = 1
    pieces[0, 0], pieces[0, 1] = start, stop
    if settings[place.CITATIONS]:
        count = cut_citations(data, start, stop, traits, pieces)
    if count > 1:
        size = 0
        for piece in range(count):
            for position in range(pieces[piece, 0], pieces[piece, 1]):
                scratch[size] = data[position]
                size += 1
        return _judge_text(scratch, 0, size, words, kinds, traits, settings, phrases, row), count
    return _judge_text(data, start, stop, words, kinds, traits, settings, phrases, row), count


@numba.njit(cache=True)
def _judge_text(data, start, stop, words, kinds, traits, settings, phrases, row):
    if settings[place.PUNCTUATION] and not _is_final(data, start, stop):
        return C4_NO_PUNCTUATION
    if words < settings[place.C4_LEAST_WORDS]:
        return C4_FEW_WORDS
    groups, _ = find(data, start, stop, phrases)
    row[C4] += groups >> LOREM_GROUP & 1
    if groups >> JAVASCRIPT_GROUP & 1:
        return C4_JAVASCRIPT
    for position in range(start, stop):
        if data[position] == CURLY:
            row[C4 + 1] += 1
            break
    if groups >> POLICY_GROUP & 1:
        return C4_POLICY
    row[C4 + 2] += max(1, count_sentences(data, start, stop, kinds, traits))
    return KEPT


@numba.njit(cache=True)
def _whitespace_words(data, start, stop, kinds):
    words = longest = length = 0
    position = start
    while position < stop:
        code, position = decode(data, position)
        if kinds[code] & SPACE:
            length = 0
            continue
        words += length == 0
        length += 1
        longest = max(longest, length)
    return words, longest


@numba.njit(cache=True)
def _is_final(data, start, stop):
    """Ends in one of . ? ! " ' and in no ellipsis."""
    if stop == start:
        return False
    last = data[stop - 1]
    if last != FINAL[0] and last != FINAL[1] and last != FINAL[2] and last != FINAL[3] and last != FINAL[4]:
        return False
    return not (stop - start >= 3 and last == POINT and data[stop - 2] == POINT and data[stop - 3] == POINT)


@numba.njit(cache=True)
def cut_citations(data, start, stop, traits, pieces):
    """What stands between [1], [], [edit] and [citation needed]: the number of pieces, one more than of citations."""
    count = 0
    position = begin = start
    while position < stop:
        if data[position] != OPEN:
            position += 1
            continue
        end = position + 1
        while end < stop and data[end] != CLOSE:
            code, after = decode(data, end)
            if not traits[code] & DECIMAL:
                break
            end = after
        if end < stop and data[end] == CLOSE:
            end += 1
        elif _starts_with(data, position + 1, stop, _EDIT):
            end = position + 1 + len(_EDIT)
        elif _starts_with(data, position + 1, stop, _NEEDED):
            end = position + 1 + len(_NEEDED)
        else:
            position += 1
            continue
        pieces[count, 0], pieces[count, 1] = begin, position
        count += 1
        position = begin = end
    pieces[count, 0], pieces[count, 1] = begin, stop
    return count + 1


@numba.njit(cache=True)
def _starts_with(data, position, stop, wanted):
    if stop - position < len(wanted):
        return False
    same = True
    for index in range(len(wanted)):
        same &= data[position + index] == wanted[index]
    return same
