"""Concat packing: windows of a source's token stream become the rows of a batch.

A window is a span of the flat stream, so nothing is cut away, and no slot is empty but in a source's last window.
Dimensions in the docstrings: R rows of the batch, S positions of a row.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maxlm.data.shards import Shards

Batch = dict[str, NDArray]
Window = tuple[Shards, int]

_NO_ENDS = np.zeros(0, np.int64)


def concat(windows: Sequence[Window | None], seq_len: int, mask_documents: bool) -> Batch:
    """Read windows into the rows of a batch.

    Window k of a source reads its tokens kS .. kS+S: the first S are inputs, the last S targets. A window that ends
    beyond the source is padded, and a row without a window (None) is all padding: segment 0, weight 0.

    With `mask_documents`, segment_ids number the documents of a window from 1, positions restart at 0 with each of
    them and at the window's start, and the last token of a document, whose successor belongs to another one, has
    weight 0: no target crosses a document. Without, a window is one text: segment 1, positions 0..S-1, and every
    token predicts its successor, also from one document to the next.

    Returns: tokens, targets, segment_ids, positions: int32 [R, S]; weights: float32 [R, S], 1 where the target counts.
    """
    shape = (len(windows), seq_len)
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    document_ends, lengths = [], []  # per row: ends within it, and how many positions are not padding
    for row, window in enumerate(windows):
        length, ends = 0, _NO_ENDS
        if window is not None:
            shards, first = window[0], window[1] * seq_len
            length = min(seq_len, len(shards) - 1 - first)
            text = shards.read(first, first + length + 1)
            tokens[row, :length] = text[:-1]
            targets[row, :length] = text[1:]
            if mask_documents:
                ends = shards.ends(first, first + length) - first
        document_ends.append(ends)
        lengths.append(length)
    return {"tokens": tokens, "targets": targets} | _segments(document_ends, lengths, seq_len)


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
