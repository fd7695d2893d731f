"""New pieces for a byte-level BPE tokenizer: its training goes on with other text, and every old id stays what it is.

The old tokenizer cuts the text into words and writes them in its own pieces; further merges of these are learnt by the
trainer of `tokenizers`, which is given every old id as one private character. New merges stand behind all old ones, so
that a text becomes the old tokens, some of them joined, and nothing else.

Memory: the trainer's, bounded by tokenizer.extend.max_bytes; the tokens lie in a file meanwhile. Measured: 1.6 GB
for 32 MB of Chinese in 15,000 documents.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import TokenizerConfig
from data_prep.documents import Part
from data_prep.manifest import save_error
from data_prep.tokenize.train import training_texts
from maxlm.data.tokenizer import EXTENSION_FORMAT, EXTENSION_VERSION, SYMBOLS, Tokenizer
from maxlm.errors import ConfigError, DataError

# Id i is the character PRIVATE + i: behind the surrogates there are 1,048,576 code points.
PRIVATE, MOST_IDS, BLANK = 0x10000, 0x100000, 0x20
BATCH = 64


def check(file: Path) -> dict[str, Any]:
    """The definition in a tokenizer.json; `ConfigError` where it cannot be extended."""
    can = "tokenizer.extend takes byte-level BPE in a tokenizer.json, as of GPT-2, Llama 3, Qwen and SmolLM"
    if file.suffix == ".model":
        raise ConfigError(f"{file}: sentencepiece cannot be extended, its pieces have no order of merges; {can}")
    try:
        definition = json.loads(file.read_bytes())
        model, steps = definition["model"], json.dumps([definition["pre_tokenizer"], definition["decoder"]])
        kind = model["type"] if model.get("type") else "BPE" if "merges" in model else "an unnamed model"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a tokenizer.json that can be read ({error!r})") from None
    if kind != "BPE":
        raise ConfigError(f"{file}: {kind} cannot be extended, it has no merges; {can}")
    if model.get("byte_fallback") or steps.count('"ByteLevel"') < 2:
        raise ConfigError(f"{file}: BPE over characters cannot be extended, its bytes cannot be merged; {can}")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise ConfigError(f"{file}: BPE with marks inside words or with dropout cannot be extended; {can}")
    return definition


def extend(
    old: Tokenizer, config: TokenizerConfig, parts: Sequence[Part], fraction: float, counts: dict[str, int], place: Path
) -> tuple[bytes, bytes]:
    """The extended tokenizer.json, and its extension.json; `place` is a directory for the tokens meanwhile.

    Raises `ConfigError` where the tokenizer cannot be extended, or the text is too little for so many pieces.
    """
    definition = check(old.path)
    model = definition["model"]
    added = {token["content"]: token["id"] for token in definition["added_tokens"]}
    vocabulary = model["vocab"] | added
    size = max(vocabulary.values()) + 1
    if size > MOST_IDS:
        raise ConfigError(f"{old.path}: has ids up to {size - 1}; at most {MOST_IDS} can be extended")
    texts = training_texts(parts, config.extend.max_bytes, fraction, counts, config.extend.languages)
    usable = np.ones(size, bool)
    if config.extend.keep_ascii:
        usable[[number for piece, number in vocabulary.items() if _is_ascii(piece)]] = False
    merges = _learn(old, texts, usable, config.extend.pieces, place)
    names = {number: piece for piece, number in vocabulary.items()}
    pieces: dict[str, list[int]] = {}
    joined: list[list[str]] = []
    for pair in merges:
        ids = [[ord(character) - PRIVATE for character in side] for side in pair]
        left, right = ("".join(names[number] for number in side) for side in ids)
        joined.append([left, right])
        # Other old ids may have the same text; it has one piece, however it came about.
        if left + right not in vocabulary:
            pieces.setdefault(left + right, [*ids[0], *ids[1]])
        if len(pieces) == config.extend.pieces:
            break
    if len(pieces) < config.extend.pieces:
        raise ConfigError(
            f"tokenizer.extend.pieces is {config.extend.pieces}, but {counts['bytes']:,} bytes of text in "
            f"{counts['documents']:,} documents give {len(pieces)}; give more text, or ask for at most {len(pieces)}"
        )
    # Added tokens as well: `tokenizers` would number those behind the vocabulary that it is given.
    model["vocab"] = vocabulary | {piece: size + number for number, piece in enumerate(pieces)}
    as_pairs = not model["merges"] or not isinstance(model["merges"][0], str)
    model["merges"] += joined if as_pairs else [" ".join(pair) for pair in joined]
    extension = {
        "format": EXTENSION_FORMAT,
        "version": EXTENSION_VERSION,
        "old_vocab_size": size,
        "old_hash": old.entry.hash,
        "pieces": list(pieces.values()),
    }
    return json.dumps(definition, indent=2, ensure_ascii=False).encode(), json.dumps(extension).encode()


def _is_ascii(piece: str) -> bool:
    return all(SYMBOLS.get(symbol, 0x80) < 0x80 for symbol in piece)


def _learn(old: Tokenizer, texts: Iterator[str], usable: np.ndarray, pieces: int, place: Path) -> list[tuple[str, str]]:
    """The next merges of the old tokenizer's ids, as strings of private characters, in the order they are learnt."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            met, lengths = np.zeros(MOST_IDS, bool), []
            for words in _words(old, texts, usable):
                met[words[words != BLANK] - PRIVATE] = True
                lengths.append(len(words))
                file.write(words)
            file.flush()
            tokens = np.memmap(file, "<u4", "r") if any(lengths) else np.zeros(0, "<u4")
            bounds = np.cumsum([0, *lengths])
            library = Library(models.BPE())
            library.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(chr(BLANK))
            # A pair of pieces whose text is another's is rare: none of the 8,192 first ones of Chinese.
            wanted = int(met.sum()) + pieces + pieces // 16
            trainer = trainers.BpeTrainer(vocab_size=wanted, min_frequency=2, show_progress=False)
            documents = (tokens[a:b].tobytes().decode("utf-32-le") for a, b in zip(bounds, bounds[1:], strict=False))
            library.train_from_iterator(documents, trainer)
    except OSError as error:
        raise save_error(place, error) from error
    merges = json.loads(library.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges]


def _words(old: Tokenizer, texts: Iterator[str], usable: np.ndarray) -> Iterator[np.ndarray]:
    """The code points of each text, `<u4`: a private one for every old id that is usable, and a blank between words.

    A word that has ids which are not usable, bool [old ids], is cut there.
    """
    while batch := list(islice(texts, BATCH)):
        for ids, words in old.encode_words(batch):
            kept = np.flatnonzero(usable[ids])
            starts = np.flatnonzero((np.diff(kept) > 1) | (np.diff(words[kept]) > 0)) + 1
            yield np.insert(ids[kept].astype("<u4") + np.uint32(PRIVATE), starts, BLANK)
