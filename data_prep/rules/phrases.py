"""Many phrases looked for in one pass: an automaton (Aho and Corasick, 1975) over characters in lower case.

Case is folded character by character (str.lower where it gives one character), so a text is not copied to be searched.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numba
import numpy as np

from data_prep.text.characters import CODE_POINTS
from data_prep.text.texts import decode

# Characters with case all stand in the first two planes.
_CASED = 0x20000


class Phrases(NamedTuple):
    """`classes` uint16 [code points]; `following` int32 [states, classes]; `groups` int64 [states]: bits of the groups
    that have a phrase which ends in a state; `whole` int64 [states], `depths` int32 [states]: for whole lines."""

    classes: np.ndarray
    following: np.ndarray
    groups: np.ndarray
    whole: np.ndarray
    depths: np.ndarray


@cache
def _lower() -> np.ndarray:
    table = np.arange(CODE_POINTS, dtype=np.uint32)
    for code in range(_CASED):
        if len(lower := chr(code).lower()) == 1:
            table[code] = ord(lower)
    return table


def compile_phrases(contained: Mapping[int, Sequence[str]], whole: Mapping[int, Sequence[str]]) -> Phrases:
    """Phrases by group (a bit's number): those that a line contains, and those that a line is, ends trimmed."""
    lower = _lower()
    entries = [
        ([int(lower[ord(character)]) for character in phrase], group, table is whole)
        for table in (contained, whole)
        for group, phrases in table.items()
        for phrase in phrases
    ]
    alphabet = {
        code: number + 1 for number, code in enumerate(sorted({code for entry in entries for code in entry[0]}))
    }
    table = np.zeros(CODE_POINTS, np.uint16)
    for code, number in alphabet.items():
        table[code] = number
    classes = table[lower]
    children: list[dict[int, int]] = [{}]
    groups, wholes, depths = [0], [0], [0]
    for codes, group, is_whole in entries:
        state = 0
        for code in codes:
            symbol = alphabet[code]
            if symbol not in children[state]:
                children[state][symbol] = len(children)
                children.append({})
                groups.append(0)
                wholes.append(0)
                depths.append(depths[state] + 1)
            state = children[state][symbol]
        (wholes if is_whole else groups)[state] |= 1 << group
    following = np.zeros((len(children), len(alphabet) + 1), np.int32)
    waiting = deque([(0, 0)])
    while waiting:
        state, fallback = waiting.popleft()
        if state:
            following[state] = following[fallback]
            groups[state] |= groups[fallback]
        for symbol, child in children[state].items():
            waiting.append((child, int(following[fallback, symbol]) if state else 0))
            following[state, symbol] = child
    return Phrases(
        classes, following, np.array(groups, np.int64), np.array(wholes, np.int64), np.array(depths, np.int32)
    )


@numba.njit(cache=True)
def find(data, start, stop, phrases):
    """Bits of the groups with a phrase in the bytes start..stop, or that is all of them; and how many characters."""
    classes, following, groups, whole, depths = phrases
    state = 0
    found = np.int64(0)
    characters = 0
    position = start
    while position < stop:
        code, position = decode(data, position)
        characters += 1
        state = following[state, classes[code]]
        found |= groups[state]
    if depths[state] == characters:
        found |= whole[state]
    return found, characters
