"""The inputs of the golden files: documents alone, beyond the original context, and padded on either side."""

from typing import NamedTuple

import hashed
import numpy as np
from golden_models import LONGEST, ORIGINAL

LENGTHS = {
    "ragged": (1, 4, 9, ORIGINAL),  # every document a batch of its own
    "long": (LONGEST,),
    "right": (4, 9, 13),  # one batch, padded at the right
    "left": (2, 7, 13),
}
PADDED = ("right", "left")

RATES = {"sgd": 1e-2, "adamw": 1e-4}  # learning rates of the one step


class Document(NamedTuple):
    kind: str
    tokens: np.ndarray  # int32 [S]

    @property
    def kept(self) -> range:
        """Positions whose logits the golden files hold: every third from the last."""
        return range(len(self.tokens) - 1, -1, -3)


def documents(vocab_size: int) -> list[Document]:
    return [
        Document(kind, hashed.tokens(0, f"{kind} {length}", length, vocab_size))
        for kind, lengths in LENGTHS.items()
        for length in lengths
    ]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of logits [..., V], relative to the largest logit of the row in which it stands."""
    return float(np.max(np.abs(found - expected) / np.max(np.abs(expected), axis=-1, keepdims=True)))


def training_tokens(vocab_size: int) -> np.ndarray:
    """int32 [2, 25]: two rows of 24 tokens and their targets."""
    return np.stack([hashed.tokens(0, f"training {row}", 25, vocab_size) for row in range(2)])


class Batch(NamedTuple):
    """Rows of equal length, one document each."""

    tokens: np.ndarray  # int32 [B, S]
    segments: np.ndarray  # int32 [B, S], 1 where there is a token and 0 where there is padding
    positions: np.ndarray  # int32 [B, S], 0 in padding
    starts: np.ndarray  # int, the column of each document's first token


def padded(rows: list[np.ndarray], length: int, left: list[bool]) -> Batch:
    """The documents in rows of `length`, those marked at the right end of their rows. Padding is token 0."""
    batch = Batch(*(np.zeros((len(rows), length), np.int32) for _ in range(3)), np.zeros(len(rows), int))
    for row, document in enumerate(rows):
        start = batch.starts[row] = length - len(document) if left[row] else 0
        place = slice(start, start + len(document))
        batch.tokens[row, place], batch.segments[row, place] = document, 1
        batch.positions[row, place] = np.arange(len(document))
    return batch


def packed(rows: list[np.ndarray], length: int) -> tuple[Batch, list[int]]:
    """The documents one after the other, as many to a row as fit, and the row of each; as many rows as documents."""
    batch = Batch(*(np.zeros((len(rows), length), np.int32) for _ in range(3)), np.zeros(len(rows), int))
    row, end, row_of = 0, 0, []
    for number, document in enumerate(rows):
        if end + len(document) > length:
            row, end = row + 1, 0
        batch.starts[number], place = end, slice(end, end + len(document))
        batch.tokens[row, place], batch.segments[row, place] = document, number + 1
        batch.positions[row, place] = np.arange(len(document))
        row_of, end = [*row_of, row], place.stop
    return batch, row_of
