"""Near copies of real texts with a known similarity, to measure how many a deduplication finds.

texts, pairs = plant(texts, share=0.05, seed=0)
"""

import random
import re
from collections.abc import Sequence

NGRAM = 5
# Words, and characters of scripts without spaces.
UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def plant(texts: Sequence[str], share: float, seed: int) -> tuple[list[str], list[tuple[int, int, float]]]:
    """Edited copies of a share of the texts, after all of them.

    In each copy up to every twentieth word is replaced by another one of the text, deleted or doubled.

    Returns: the texts with the copies, and (number of the text, number of the copy, Jaccard similarity of their sets
    of 5-grams of words).
    """
    generator = random.Random(seed)
    chosen = sorted(generator.sample(range(len(texts)), round(share * len(texts))))
    result, pairs = list(texts), []
    for number in chosen:
        copy = edited(texts[number], generator.uniform(0, 0.05), generator)
        pairs.append((number, len(result), jaccard(texts[number], copy)))
        result.append(copy)
    return result, pairs


def edited(text: str, rate: float, generator: random.Random) -> str:
    """The text with a share of its words replaced, deleted or doubled, one at least."""
    spans = [match.span() for match in UNIT.finditer(text)]
    if not spans:
        return text + " copy"
    touched = [index for index in range(len(spans)) if generator.random() < rate] or [generator.randrange(len(spans))]
    pieces, last = [], 0
    for index in touched:
        start, stop = spans[index]
        word = text[start:stop]
        other = text[slice(*generator.choice(spans))]
        pieces += [text[last:start], generator.choice([other, "", f"{word} {word}"])]
        last = stop
    return "".join([*pieces, text[last:]])


def jaccard(one: str, other: str) -> float:
    """Jaccard similarity of the sets of 5-grams of two texts; shorter texts have one."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def shingles(text: str) -> set[tuple[str, ...]]:
    units = [unit.lower() for unit in UNIT.findall(text)]
    return {tuple(units[start : start + NGRAM]) for start in range(max(1, len(units) - NGRAM + 1))}
