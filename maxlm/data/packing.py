"""From windows to the rows of a batch. Dimensions in the docstrings: R rows of the batch, S positions of a row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maxlm.data.transforms import Prefixes

Batch = dict[str, NDArray]

_NO_ENDS = np.zeros(0, np.int64)


class Text(NamedTuple):
    """What a window holds: at most S tokens, and one more that is only a target."""

    tokens: NDArray  # integers [n + 1], n <= S
    ends: NDArray[np.int64]  # exclusive ends, within 1..n, of the documents that end in the window
    prefixes: Prefixes | None = None  # of its documents, where the source has some


class Piece(NamedTuple):
    """Consecutive tokens of a source among the inputs of a window."""

    first: int  # which token of the source comes first
    length: int
    slot: int  # of the window, where the first token lies


class Packed(NamedTuple):
    """How well documents fit into windows."""

    fill_rate: float  # share of the slots that hold a token
    truncated_share: float  # share of the documents that are cut
    documents: int  # that were looked at
    dropped: int  # documents that no window holds


def assemble(
    texts: Sequence[Text | None], seq_len: int, mask_documents: bool = True, has_prefixes: bool = False
) -> Batch:
    """The rows of a batch from their windows; a row without one (None) is all padding: segment 0, weight 0.

    With `mask_documents`, segment_ids number the documents of a window from 1, positions restart at 0 with each of
    them and at the window's start, and the last token of a document, whose successor belongs to another one, has
    weight 0: no target crosses a document. Without, a window is one text: segment 1, positions 0..S-1, and every
    token predicts its successor, also from one document to the next.

    Returns: tokens, targets, segment_ids, positions: int32 [R, S]; weights: float32 [R, S], 1 where the target counts;
    with `has_prefixes` prefix: bool [R, S], the tokens that see each other in both directions.
    """
    shape = (len(texts), seq_len)
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    lengths = [len(text.tokens) - 1 if text is not None else 0 for text in texts]
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        if text is not None:
            tokens[row, :length] = text.tokens[:-1]
            targets[row, :length] = text.tokens[1:]
    ends = [text.ends if text is not None and mask_documents else _NO_ENDS for text in texts]
    batch = {"tokens": tokens, "targets": targets} | _segments(ends, lengths, seq_len)
    if has_prefixes:
        batch["prefix"] = np.zeros(shape, bool)
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            if text is not None and text.prefixes is not None:
                batch["prefix"][row, :length] = text.prefixes.prefix
                batch["weights"][row, :length] *= text.prefixes.weights
    return batch


def _segments(ends: Sequence[NDArray[np.int64]], lengths: Sequence[int], seq_len: int) -> Batch:
    """segment_ids, positions and weights [R, S] from the ends of documents inside each row, and its length."""
    rows = len(lengths)
    row = np.repeat(np.arange(rows), [len(part) for part in ends])
    end = np.concatenate(ends)
    weights = np.ones((rows, seq_len), np.float32)
    weights[row, end - 1] = 0

    # A segment begins at every row's start and after every end that leaves the row another position.
    inside = end < seq_len
    begins = np.zeros((rows, seq_len), bool)
    begins[:, 0] = True
    begins[row[inside], end[inside]] = True
    begin = np.flatnonzero(begins)
    size = np.diff(begin, append=rows * seq_len)
    column = begin % seq_len
    number = np.arange(1, len(begin) + 1) - np.searchsorted(begin, begin - column)  # restarts with every row
    segment_ids = np.repeat(number.astype(np.int32), size).reshape(rows, seq_len)
    positions = np.arange(seq_len, dtype=np.int32) - np.repeat(column.astype(np.int32), size).reshape(rows, seq_len)

    batch = {"segment_ids": segment_ids, "positions": positions, "weights": weights}
    for number, length in enumerate(lengths):
        if length < seq_len:
            for array in batch.values():
                array[number, length:] = 0
    return batch
