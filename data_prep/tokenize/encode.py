"""Text to token ids in bulk, and the proof that the ids give the text back."""

import json
import mmap
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.text.texts import Texts
from data_prep.tokenize.lossless import difference, lossy, show
from data_prep.tokenize.patterns import FROM_LEFT, FROM_RIGHT, number_cuts
from data_prep.tokenize.tokens import spell
from maxlm.data.shards import TokenizerEntry
from maxlm.data.tokenizer import Tokenizer
from maxlm.errors import DataError

CHECKED_DOCUMENTS = 32
# gigatoken keeps every word it has met, for ever: 70 to 100 bytes each, and in Chinese a clause is a word. Measured on
# Chinese verse: 6 bytes for each byte of text. It is loaded anew (0.1 s) when the process has grown by so much.
CACHE_BYTES = 2**27


class Encoder:
    """Encodes documents; by `fast`, gigatoken, where there is one: the ids of `tokenizers`, 10 to 60 times as fast.

    The first documents it is given are compared with the tokenizer's own library, and with `lossless` every document
    is spelled again from its ids; a difference is a `DataError`.
    """

    def __init__(self, tokenizer: Tokenizer, fast: "Fast | None", lossless: bool):
        self.tokenizer, self.lossless = tokenizer, lossless
        self._fast = fast
        self._unchecked = CHECKED_DOCUMENTS if fast else 0

    @staticmethod
    def agrees(tokenizer: Tokenizer, texts: Sequence[str]) -> bool:
        """Whether gigatoken knows the tokenizer and gives the ids of its own library on `texts`."""
        fast = Fast.load(tokenizer)
        if fast is None:
            return False
        ids, counts = fast.encode(Texts.from_strings(texts))
        return all(row.tolist() == tokenizer.encode(text) for text, row in zip(texts, _rows(ids, counts), strict=True))

    def encode(self, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all documents, one after the other, uint32 [tokens], and how many each has, int64 [documents]."""
        if self._fast is None:
            rows = self.tokenizer.encode_batch(texts.strings())
            counts = np.array([len(row) for row in rows], np.int64)
            ids = np.concatenate([*rows, np.zeros(0, np.uint32)]).astype(np.uint32, copy=False)
        else:
            ids, counts = self._fast.encode(texts)
        if self._unchecked:
            self._compare(Texts(texts.data, texts.bounds[: self._unchecked + 1]).strings(), ids, counts)
            self._unchecked = max(0, self._unchecked - len(texts))
        if self.lossless and (found := next(self.lost(texts, ids, counts), None)) is not None:
            raise lossy(found[1])
        return ids, counts

    def _compare(self, texts: Sequence[str], ids: np.ndarray, counts: np.ndarray) -> None:
        for text, row in zip(texts, _rows(ids, counts), strict=False):
            if self.tokenizer.encode(text) != row.tolist():
                raise DataError(f"gigatoken gives other ids than tokenizers for {show(text)}; set tokenizer.fast=false")

    @property
    def fast(self) -> bool:
        return self._fast is not None

    def lost(self, texts: Texts, ids: np.ndarray, counts: np.ndarray) -> Iterator[tuple[int, str]]:
        """The number of each document that its ids do not give back, and what becomes of it."""
        if self._fast and self._fast.spells(ids, counts, texts):
            return
        for number, (text, row) in enumerate(zip(texts.strings(), _rows(ids, counts), strict=True)):
            if (back := self.tokenizer.decode(row.tolist())) != text:
                yield number, difference(text, back)


@lru_cache(maxsize=1)
def open_libraries(directory: Path, entry: str, fast: bool) -> "tuple[Tokenizer, Fast | None]":
    """The tokenizer of an entry in JSON, and gigatoken's form of it; kept for the next part, as both take 0.2 s."""
    tokenizer = Tokenizer(directory, TokenizerEntry.model_validate_json(entry))
    return tokenizer, Fast.load(tokenizer) if fast else None


class Fast:
    """gigatoken's form of a tokenizer; with `cut`, numbers are cut beforehand so that groups count from their end."""

    def __init__(self, definition: str, cut: bool = False):
        self._definition, self._cut = definition, cut
        self._load()
        vocabulary = self._library.vocab
        pieces = [vocabulary.get(number, b"") for number in range(max(vocabulary, default=-1) + 1)]
        self._pieces = np.frombuffer(b"".join(pieces), np.uint8)
        self._edges = np.cumsum([0, *map(len, pieces)], dtype=np.int64)

    def _load(self) -> None:
        import gigatoken

        self._library = None  # the former one goes first: both together would be the most memory of all
        self._library = gigatoken.Tokenizer.from_json(self._definition)
        self._resident = _resident()

    @classmethod
    def load(cls, tokenizer: Tokenizer) -> "Fast | None":
        """None where gigatoken does not know the tokenizer."""
        if tokenizer.entry.kind != "tokenizers":
            return None
        definition = json.loads(tokenizer.path.read_text("utf-8"))
        # Special tokens in a document are ordinary text: without them in the definition they cannot be anything else.
        definition["added_tokens"] = [token for token in definition["added_tokens"] if not token["special"]]
        cut = _count_from_left(definition)
        try:
            return cls(json.dumps(definition), cut)
        except (RuntimeError, ValueError):
            return None

    def encode(self, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
        """As `Encoder.encode`. The text is handed over where it lies, without an object per document."""
        import awkward as ak

        if _resident() - self._resident > CACHE_BYTES:
            self._load()
        bounds = texts.bounds
        if self._cut:
            bounds = np.sort(np.concatenate([bounds, number_cuts(texts)]))
        characters = ak.contents.NumpyArray(texts.data, parameters={"__array__": "char"})
        offsets = ak.index.Index64(bounds)
        strings = ak.contents.ListOffsetArray(offsets, characters, parameters={"__array__": "string"})
        # In one thread: there is a worker per core already.
        rows = self._library.encode_batch(ak.Array(strings), parallel=False).layout
        offsets = np.asarray(rows.offsets)
        if self._cut:
            offsets = offsets[np.searchsorted(bounds, texts.bounds)]
        return np.asarray(rows.content.data), np.diff(offsets)

    def spells(self, ids: np.ndarray, counts: np.ndarray, texts: Texts) -> bool:
        """Whether the ids give all the texts back: by the bytes of the tokens, or decoded where that is not all."""
        if spell(ids, counts, self._pieces, self._edges, texts.data, texts.bounds):
            return True
        return self._library.decode(ids) == texts.data[texts.bounds[0] : texts.bounds[-1]].tobytes()


def _count_from_left(definition: dict) -> bool:
    """Let a definition that groups digits from the end of a number group them from its beginning; whether it did."""
    for step in (definition["pre_tokenizer"] or {}).get("pretokenizers", []):
        expression = step.get("pattern", {}).get("Regex", "")
        if step["type"] == "Split" and f"|{FROM_RIGHT}|" in expression:
            step["pattern"]["Regex"] = expression.replace(FROM_RIGHT, FROM_LEFT)
            return True
    return False


def _resident() -> int:
    """Memory of this process in bytes; 0 where the system does not tell (Linux does)."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _rows(ids: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return np.split(ids, np.cumsum(counts)[:-1]) if len(counts) else []
