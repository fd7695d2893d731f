"""The tokenizer that lies beside the shards: text to ids and back, whichever library made it; and where it comes from.

A tokenizer that was extended (maxlm-prep's tokenizer.extend) has a file extension.json beside it, JSON of the format

    {"format": "maxlm-extension", "version": 1, "old_vocab_size": 49152, "old_hash": "9f2c...",
     "pieces": [[17, 203], ...]}

Ids below old_vocab_size are those of the old tokenizer, whose `TokenizerEntry.hash` is old_hash; id old_vocab_size + i
is a new piece, the text of the old ids pieces[i], two or more of them. A model that goes on with the new tokenizer
keeps its rows of the embedding and gives each new one the mean of the rows of pieces[i].
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maxlm.data.shards import EXTENSION, TokenizerEntry
from maxlm.errors import DataError

FILE_NAMES = {"tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}
# sentencepiece writes a space as this character, so that the character itself can only be kept as its bytes.
META_SPACE = "\u2581"
EXTENSION_FORMAT, EXTENSION_VERSION = "maxlm-extension", 1
BRACKETED = re.compile(rf"{META_SPACE}?<[^<>]+>")
BYTE = re.compile("<0x[0-9A-F]{2}>")


def _symbols() -> dict[str, int]:
    """The character of GPT-2 that stands for each byte: itself where it is visible, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


SYMBOLS = _symbols()


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class Extension:
    """How a tokenizer was extended: new id `old_vocab_size + i` has the text of ids[bounds[i] : bounds[i + 1]].

    ids int32 [old ids of all new pieces] below old_vocab_size, bounds int64 [new pieces + 1]; old_hash is the
    `TokenizerEntry.hash` of the old tokenizer.
    """

    old_vocab_size: int
    old_hash: str
    ids: np.ndarray
    bounds: np.ndarray

    @property
    def vocab_size(self) -> int:
        return self.old_vocab_size + len(self.bounds) - 1


def read_extension(directory: str | Path) -> Extension | None:
    """What the extension.json in a tokenizer's directory says; None where the tokenizer was not extended.

    Raises `DataError` where the file is not of the format above.
    """
    path = Path(directory) / EXTENSION
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    try:
        if (found["format"], found["version"]) != (EXTENSION_FORMAT, EXTENSION_VERSION):
            raise ValueError(f"format {found['format']} {found['version']}")
        size, old_hash, pieces = found["old_vocab_size"], found["old_hash"], found["pieces"]
        ids = np.array([number for piece in pieces for number in piece], np.int32)
        bounds = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        if not isinstance(old_hash, str) or (np.diff(bounds) < 1).any() or ((ids < 0) | (ids >= size)).any():
            raise ValueError("a piece without old ids, or with ids that are none")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not an extension of version {EXTENSION_VERSION} ({error}); extend the tokenizer again"
        ) from None
    return Extension(size, old_hash, ids, bounds)


class Tokenizer:
    """Encodes and decodes text; `bos_id` is None where the tokenizer's convention has none.

    Args:
        directory: where the tokenizer's file is, by its name in FILE_NAMES; or the file itself, whatever its name.
        entry: what the shards' manifest says of it.
    """

    def __init__(self, directory: str | Path, entry: TokenizerEntry):
        path = Path(directory)
        path = path if path.is_file() else path / FILE_NAMES[entry.kind]
        if not path.is_file():
            raise DataError(f"{path}: missing; the tokenizer's file is needed")
        self.path, self.directory, self.entry = path, Path(directory), entry
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

    def equals(self, other: "Tokenizer") -> bool:
        """Whether both make the same ids of every text: their files are the same, but for the tokens that `tokenizers`
        puts around a text where it is asked to (post_processor)."""
        if self.entry.hash == other.entry.hash:
            return True
        if not self.entry.kind == other.entry.kind == "tokenizers":
            return False
        one, two = (json.loads(tokenizer._library.to_str()) | {"post_processor": None} for tokenizer in (self, other))
        return one == two

    def extends(self, old: "Tokenizer", extension: Extension) -> bool:
        """Whether this tokenizer is `old` with the new pieces of its extension.json: by the hash there, or else by what
        both files say, but for the tokens that are put around a text."""
        if extension.old_hash == old.entry.hash:
            return True
        if not self.entry.kind == old.entry.kind == "tokenizers":
            return False
        mine, other = (json.loads(one._library.to_str()) | {"post_processor": None} for one in (self, old))
        if not {"vocab", "merges"} <= mine["model"].keys() & other["model"].keys():
            return False
        # An extended vocabulary has the added tokens in it as well, and its new merges behind the old ones.
        other["model"]["vocab"] |= {token["content"]: token["id"] for token in other["added_tokens"]}
        kept = {piece: number for piece, number in mine["model"]["vocab"].items() if number < extension.old_vocab_size}
        mine["model"] |= {"vocab": kept, "merges": mine["model"]["merges"][: len(other["model"]["merges"])]}
        return mine == other

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of the text alone, without BOS and EOS; special tokens in the text are ordinary text, unless `special`
        says that they are themselves, as in what a chat template writes."""
        if special:
            return self._encode_special(text)
        if self.entry.kind == "tokenizers":
            return self._library.encode(text, add_special_tokens=False).ids
        if META_SPACE not in text or self._meta_space_ids is None:
            return self._library.encode(text)
        ids: list[int] = []
        for number, piece in enumerate(text.split(META_SPACE)):
            ids += (self._meta_space_ids if number else []) + self._library.encode(piece)
        return ids

    def _encode_special(self, text: str) -> list[int]:
        if self.entry.kind == "tokenizers":
            self._library.encode_special_tokens = False
            try:
                return self._library.encode(text, add_special_tokens=False).ids
            finally:
                self._library.encode_special_tokens = True
        control = "|".join(map(re.escape, self.control_tokens()))
        parts = enumerate(re.split(f"({control})", text))
        return [i for n, part in parts for i in ([self.token_id(part)] if n % 2 else self.encode(part))]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text, as uint32 arrays."""
        if self.entry.kind == "tokenizers":
            rows = [row.ids for row in self._library.encode_batch_fast(list(texts), add_special_tokens=False)]
        else:
            rows = map(self.encode, texts)
        return [np.array(row, np.uint32) for row in rows]

    def encode_words(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every text the ids, uint32 [tokens], and the number of the word that each is in, int64 [tokens].

        Words are what the pieces of a vocabulary do not cross; only `tokenizers` tells them.
        """
        rows = self._library.encode_batch(list(texts), add_special_tokens=False)
        return [(np.array(row.ids, np.uint32), np.array(row.word_ids, np.int64)) for row in rows]

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

    def token_text(self, number: int) -> str:
        """How the token with this id is written."""
        if self.entry.kind == "tokenizers":
            return self._library.id_to_token(number)
        return self._library.id_to_piece(number)

    def control_tokens(self) -> list[str]:
        """Special tokens in the strict sense, by id: those that `encode` finds in no text, unless it is told to."""
        if self.entry.kind == "tokenizers":
            added = sorted(self._library.get_added_tokens_decoder().items())
            return [token.content for _, token in added if token.special]
        return [self._library.id_to_piece(i) for i in range(self.vocab_size) if self._library.is_control(i)]

    def special_tokens(self) -> list[str]:
        """Tokens that are no pieces of ordinary text, or are written as if they were none, by id."""
        if self.entry.kind == "tokenizers":
            return [added.content for _, added in sorted(self._library.get_added_tokens_decoder().items())]
        pieces = [(i, self._library.id_to_piece(i)) for i in range(self.vocab_size) if not self._library.is_byte(i)]
        return [piece for i, piece in pieces if self._library.is_control(i) or BRACKETED.fullmatch(piece)]

    def partial(self) -> np.ndarray:
        """Which ids are bytes that make no whole character alone, bool [vocab_size]."""
        if self.entry.kind == "sentencepiece":
            found = [i for i in range(self.vocab_size) if self._library.is_byte(i)]
            texts = {i: bytes([int(self._library.id_to_piece(i)[3:5], 16)]) for i in found}
        else:
            by_bytes = "ByteLevel" in json.dumps(json.loads(self._library.to_str())["decoder"])
            vocabulary = self._library.get_vocab(with_added_tokens=False).items()
            texts = {}
            for piece, number in vocabulary:
                if by_bytes:
                    texts[number] = bytes(SYMBOLS[character] for character in piece if character in SYMBOLS)
                elif BYTE.fullmatch(piece):
                    texts[number] = bytes([int(piece[3:5], 16)])
        result = np.zeros(self.vocab_size, bool)
        result[[number for number, text in texts.items() if not _is_text(text)]] = True
        return result

    def _find_meta_space(self) -> list[int] | None:
        """Ids of META_SPACE's bytes; None for a model without bytes, or one that puts a blank before every text."""
        ids = [self._library.piece_to_id(f"<0x{byte:02X}>") for byte in META_SPACE.encode()]
        if self._library.unk_id() in ids or self._library.encode("x", out_type=str)[0].startswith(META_SPACE):
            return None
        return ids
