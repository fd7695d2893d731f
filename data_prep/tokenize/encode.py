"""Text to token ids in bulk, and the proof that the ids give the text back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError

CHECKED_DOCUMENTS = 32


class Encoder:
    """Encodes lists of texts; with `fast` by gigatoken, which gives the ids of `tokenizers` about 30 times as fast.

    The first documents it is given are compared with the tokenizer's own library, and with `lossless` every document
    is decoded again; a difference is a `DataError`.
    """

    def __init__(self, tokenizer: Tokenizer, fast: bool, lossless: bool):
        self.tokenizer, self.lossless = tokenizer, lossless
        self._fast = load_fast(tokenizer) if fast else None
        self._unchecked = CHECKED_DOCUMENTS if fast else 0

    @staticmethod
    def agrees(tokenizer: Tokenizer, texts: Sequence[str]) -> bool:
        """Whether gigatoken knows the tokenizer and gives the ids of its own library on `texts`."""
        fast = load_fast(tokenizer)
        return fast is not None and all(fast.encode(text).tolist() == tokenizer.encode(text) for text in texts)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, one after the other, uint32 [tokens], and the number of each text, int64 [texts]."""
        rows = [self._fast.encode(text) for text in texts] if self._fast else self.tokenizer.encode_batch(texts)
        for text, row in zip(texts[: self._unchecked], rows, strict=False):
            if self.tokenizer.encode(text) != row.tolist():
                raise DataError(
                    f"gigatoken gives other ids than tokenizers for {_show(text)}; set tokenizer.fast=false"
                )
        self._unchecked = max(0, self._unchecked - len(texts))
        counts = np.array([len(row) for row in rows], np.int64)
        ids = np.concatenate([*rows, np.zeros(0, np.uint32)]).astype(np.uint32, copy=False)
        if self.lossless:
            self._check(texts, ids, counts)
        return ids, counts

    def _check(self, texts: Sequence[str], ids: np.ndarray, counts: np.ndarray) -> None:
        if self._fast and self._fast.decode(ids) == "".join(texts).encode():
            return
        for text, row in zip(texts, np.split(ids, np.cumsum(counts)[:-1]), strict=True):
            if (back := self.tokenizer.decode(row.tolist())) != text:
                raise lossy(difference(text, back))


def load_fast(tokenizer: Tokenizer) -> Any:
    """gigatoken's form of the tokenizer, or None where it has none."""
    if tokenizer.entry.kind != "tokenizers":
        return None
    import gigatoken

    definition = json.loads((Path(tokenizer.directory) / "tokenizer.json").read_text("utf-8"))
    # Special tokens in a document are ordinary text: without them in the definition they cannot be anything else.
    definition["added_tokens"] = [token for token in definition["added_tokens"] if not token["special"]]
    try:
        return gigatoken.Tokenizer.from_json(json.dumps(definition))
    except (RuntimeError, ValueError):
        return None


def find_difference(tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """What the first text that does not come back becomes, or None."""
    return next(
        (difference(text, back) for text in texts if (back := tokenizer.decode(tokenizer.encode(text))) != text), None
    )


def difference(text: str, back: str) -> str:
    """The place where a decoded text begins to differ."""
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return f"{_show(text[place:])} becomes {_show(back[place:])}"


def lossy(difference: str) -> DataError:
    return DataError(
        f"the tokenizer does not give its text back: {difference}; use another one, or set tokenizer.allow_lossy=true"
    )


def _show(text: str) -> str:
    return ascii(text[:20]) + ("..." if len(text) > 20 else "")
