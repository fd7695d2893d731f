"""Sentence splitters: where the sentences of a text end. A splitter has a name and a version, which enter keys.

punctuation  A sentence ends behind a run of . ! ? … before white space or the end, or behind 。 and the other marks
             that end sentences in some script, wherever they stand; quotes and brackets that close go with it. What has
             no word character belongs to the sentence before it. Abbreviations ("Dr. Who") are not known.

C4 counts sentences line by line, so a line break need not end one.
"""

import difflib

import numba
import numpy as np

from data_prep.rules.traits import ANYWHERE, CLOSER, END, traits
from data_prep.text import characters
from data_prep.text.characters import SPACE, WORD
from data_prep.text.texts import decode
from maxlm.errors import ConfigError

VERSIONS = {"punctuation": 1}


def version(splitter: str) -> list:
    """What enters the key of results that were computed with a splitter; `ConfigError` where there is none."""
    if splitter not in VERSIONS:
        close = difflib.get_close_matches(splitter, VERSIONS, 1)
        nearest = f"; the nearest is '{close[0]}'" if close else ""
        raise ConfigError(f"no sentence splitter is called '{splitter}'{nearest}; there is {', '.join(VERSIONS)}")
    return [splitter, VERSIONS[splitter], characters.UNICODE]


def split(text: str) -> list[str]:
    """The sentences of a text, which together are the text; one at least."""
    encoded = text.encode()
    data = np.frombuffer(encoded, np.uint8)
    edges = [0]
    while True:
        end, found = sentence_end(data, edges[-1], len(data), characters.kinds(), traits())
        if not found:
            break
        edges.append(end)
    edges = [*edges[: max(len(edges) - 1, 1)], len(data)]
    return [encoded[a:b].decode() for a, b in zip(edges, edges[1:], strict=False)]


@numba.njit(cache=True)
def count_sentences(data, start, stop, kinds, traits):
    count = 0
    position, found = sentence_end(data, start, stop, kinds, traits)
    while found:
        count += 1
        position, found = sentence_end(data, position, stop, kinds, traits)
    return count


@numba.njit(cache=True)
def sentence_end(data, position, stop, kinds, traits):
    """Where the sentence ends that begins at a byte, and whether it has a word character; else it is none."""
    wordy = False
    while position < stop:
        code, position = decode(data, position)
        if kinds[code] & WORD:
            wordy = True
        if not traits[code] & END or not wordy:
            continue
        anywhere = traits[code] & ANYWHERE
        ended = True
        while position < stop:
            following, after = decode(data, position)
            if not traits[following] & (END | CLOSER):
                ended = (kinds[following] & SPACE) != 0
                break
            anywhere |= traits[following] & ANYWHERE
            position = after
        if ended or anywhere:
            break
    return position, wordy
