"""The tokenizer that lies beside the shards: text to ids and back, whichever library made it."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maxlm.data.shards import TokenizerEntry
from maxlm.errors import DataError

FILE_NAMES = {"tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}
# sentencepiece writes a space as this character, so that the character itself can only be kept as its bytes.
META_SPACE = "\u2581"
BRACKETED = re.compile(rf"{META_SPACE}?<[^<>]+>")


class Tokenizer:
    """Encodes and decodes text; `bos_id` is None where the tokenizer's convention has none."""

    def __init__(self, directory: str | Path, entry: TokenizerEntry):
        path = Path(directory) / FILE_NAMES[entry.kind]
        if not path.is_file():
            raise DataError(f"{path}: missing; the tokenizer's file is needed")
        self.directory, self.entry = Path(directory), entry
        self.vocab_size, self.bos_id, self.eos_id = entry.vocab_size, entry.bos_id, entry.eos_id
        if entry.kind == "tokenizers":
            import tokenizers

            self._library = tokenizers.Tokenizer.from_file(str(path))
            self._library.encode_special_tokens = True
        else:
            import sentencepiece

            self._library = sentencepiece.SentencePieceProcessor(model_file=str(path))
            self._meta_space_ids = self._find_meta_space()

    def __getstate__(self) -> dict:
        return {"directory": self.directory, "entry": self.entry}

    def __setstate__(self, state: dict) -> None:
        # Opened anew: the library's own pickle forgets that special tokens in a text are ordinary text.
        self.__init__(**state)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without BOS and EOS; special tokens in the text are ordinary text."""
        if self.entry.kind == "tokenizers":
            return self._library.encode(text, add_special_tokens=False).ids
        if META_SPACE not in text or self._meta_space_ids is None:
            return self._library.encode(text)
        ids: list[int] = []
        for number, piece in enumerate(text.split(META_SPACE)):
            ids += (self._meta_space_ids if number else []) + self._library.encode(piece)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text, as uint32 arrays."""
        if self.entry.kind == "tokenizers":
            rows = [row.ids for row in self._library.encode_batch_fast(list(texts), add_special_tokens=False)]
        else:
            rows = map(self.encode, texts)
        return [np.array(row, np.uint32) for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD, special tokens are left out."""
        special = {self.bos_id, self.eos_id}
        return self._library.decode([int(i) for i in ids if i not in special])

    def token_id(self, text: str) -> int | None:
        """The id of the token that is written so, special or not; None where the vocabulary has none."""
        if self.entry.kind == "tokenizers":
            return self._library.token_to_id(text)
        number = self._library.piece_to_id(text)  # the unknown piece's for what it does not know
        return number if self._library.id_to_piece(number) == text else None

    def special_tokens(self) -> list[str]:
        """Tokens that are no pieces of ordinary text, or are written as if they were none, by id."""
        if self.entry.kind == "tokenizers":
            return [added.content for _, added in sorted(self._library.get_added_tokens_decoder().items())]
        pieces = [(i, self._library.id_to_piece(i)) for i in range(self.vocab_size) if not self._library.is_byte(i)]
        return [piece for i, piece in pieces if self._library.is_control(i) or BRACKETED.fullmatch(piece)]

    def _find_meta_space(self) -> list[int] | None:
        """Ids of META_SPACE's bytes; None for a model without bytes, or one that puts a blank before every text."""
        ids = [self._library.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()]
        if self._library.unk_id() in ids or self._library.encode("x", out_type=str)[0].startswith(META_SPACE):
            return None
        return ids
