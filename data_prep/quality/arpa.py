"""The ARPA format of n-gram models, which KenLM, SRILM and others read: text, with decimal logarithms."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.quality.kneser_ney import BEGIN, Ngrams

SPECIAL_NAMES = ("<unk>", "<s>", "</s>")
# No word follows another as <s>; the format's usual number for that.
NEVER = -99.0
BATCH = 2**16


def write_arpa(path: Path, ngrams: Sequence[Ngrams], words: Sequence[str]) -> None:
    """Write a model whose word SPECIAL + i is words[i].

    A word that the format cannot have, as it means something else there, is written between U+2039 and U+203A.
    """
    names = [*SPECIAL_NAMES, *map(_spelt, words)]
    assert len(names) == len(ngrams[0].word)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {length}={len(level.word)}\n" for length, level in enumerate(ngrams, 1))
        for length, level in enumerate(ngrams, 1):
            file.write(f"\n\\{length}-grams:\n")
            for start in range(0, len(level.word), BATCH):
                file.writelines(_lines(ngrams, length, np.arange(start, min(start + BATCH, len(level.word))), names))
        file.write("\n\\end\\\n")


def _spelt(word: str) -> str:
    return f"‹{word.strip('<>')}›" if word in SPECIAL_NAMES else word.replace("\0", "‹0›")


def _lines(ngrams: Sequence[Ngrams], length: int, places: np.ndarray, names: Sequence[str]) -> list[str]:
    level = ngrams[length - 1]
    log_p = (level.log_p[places] / math.log(10)).tolist()
    if length == 1:
        log_p = [NEVER if place == BEGIN else value for place, value in zip(places.tolist(), log_p, strict=True)]
    backoff = np.log10(level.backoff[places]).tolist()
    spelt = [[] for _ in places]
    for one in reversed(ngrams[:length]):
        for line, word in zip(spelt, one.word[places].tolist(), strict=True):
            line.append(names[word])
        places = one.context[places]
    ends = [""] * len(spelt) if length == len(ngrams) else [f"\t{value:.7g}" for value in backoff]
    rows = zip(log_p, spelt, ends, strict=True)
    return [f"{value:.7g}\t{' '.join(reversed(line))}{end}\n" for value, line, end in rows]
