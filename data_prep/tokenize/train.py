"""Tokenizers that are trained here.

byte_bpe               byte-level BPE, trained by `tokenizers`
wordpiece              the longest piece that fits, from left to right, over the same words and bytes; by `tokenizers`
sentencepiece_bpe,     trained by `sentencepiece`: text unchanged (identity normalisation, no dummy prefix, spaces
sentencepiece_unigram  kept), bytes for what the vocabulary lacks

Words are cut as patterns.py says. Memory is that of the libraries, bounded by tokenizer.max_bytes.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_prep.config import TokenizerConfig
from data_prep.documents import SAMPLE_SALT, Part, chosen, held_out, iterate
from data_prep.engine import advance
from data_prep.tokenize.lossless import BOS, EOS
from data_prep.tokenize.patterns import ANY, LONGEST_WORD, pattern
from maxlm.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

# In front of WordPiece's pieces inside a word: no character of the byte alphabet, unlike "##", which a text may have.
INSIDE = "\u2581"
UNKNOWN = "<|unknown|>"  # WordPiece must name one; it has every byte, so that no text becomes it
# sentencepiece adds floating-point counts thread by thread: a fixed number trains the same model on every machine.
SENTENCEPIECE_THREADS = 8
SENTENCE_CHARACTERS = 2**12


def train(config: TokenizerConfig, texts: Iterable[str]) -> tuple[str, bytes]:
    """The kind and the file of a tokenizer that is trained on texts."""
    if config.algorithm == "byte_bpe":
        return "tokenizers", _train_byte_bpe(config, texts)
    if config.algorithm == "wordpiece":
        return "tokenizers", _train_wordpiece(config, texts)
    return "sentencepiece", _train_sentencepiece(config, texts)


def training_texts(
    parts: Sequence[Part],
    max_bytes: int,
    fraction: float,
    counts: dict[str, int],
    languages: Sequence[str] | None = None,
) -> Iterator[str]:
    """A sample of about `max_bytes` of the documents that are not held out; adds what it yields to `counts`.

    With `languages`, of the documents of these alone; the sample is then smaller by the share of the others.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    share = max_bytes / max(1, (1 - fraction) * sum(part.bytes for part in parts))
    for part in parts:
        for table in iterate(part, [*dict.fromkeys(("id_hash", "text", "bytes", "language", part.split_by))]):
            wanted = ~held_out(table[part.split_by].to_numpy(), fraction)
            if share < 1:
                wanted &= chosen(table["id_hash"].to_numpy(), SAMPLE_SALT, share)
            if languages is not None:
                wanted &= np.isin(table["language"].to_pylist(), languages)
            table = table.filter(pa.array(wanted))
            yield from table["text"].to_pylist()
            total = pc.sum(table["bytes"]).as_py() or 0
            counts["documents"] += table.num_rows
            counts["bytes"] += total
            advance(total)


def _train_byte_bpe(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_split(pattern(config)), _bytes_as_characters()])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[BOS, EOS, *config.special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode()


def _train_wordpiece(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    """Every byte is a piece in both forms, at the start of a word and inside: else rare characters are lost."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"unk_token": UNKNOWN, "continuing_subword_prefix": INSIDE}
    tokenizer = Tokenizer(models.WordPiece({}, max_input_chars_per_word=4 * LONGEST_WORD, **options))
    steps = [_split(pattern(config)), _split(ANY), _bytes_as_characters()]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(INSIDE, ""), decoders.ByteLevel()])
    special = [BOS, EOS, UNKNOWN, *config.special_tokens]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        # The trainer numbers bytes inside words as it meets them, in another order each time, and decides ties by the
        # numbers. What is named here has its number beforehand.
        special_tokens=[*special, *(INSIDE + symbol for symbol in alphabet)],
        initial_alphabet=alphabet,
        continuing_subword_prefix=INSIDE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] in special]
    return json.dumps(definition, indent=2, ensure_ascii=False).encode()


def _split(expression: str) -> "tokenizers.pre_tokenizers.Split":
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(expression), "isolated")


def _bytes_as_characters() -> "tokenizers.pre_tokenizers.ByteLevel":
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _train_sentencepiece(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=config.algorithm.removeprefix("sentencepiece_"),
            vocab_size=config.vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=config.space_runs,
            add_dummy_prefix=False,
            split_digits=config.digits != "free",
            character_coverage=config.character_coverage,
            max_sentence_length=4 * SENTENCE_CHARACTERS,
            num_threads=SENTENCEPIECE_THREADS,
            bos_piece=BOS,
            eos_piece=EOS,
            # Control symbols: unlike user-defined ones they are not looked for in the text.
            control_symbols=config.special_tokens,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].strip().replace("--character", "tokenizer.character")
        raise ConfigError(f"tokenizer: sentencepiece cannot train {config.vocab_size} pieces: {reason}") from None
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines in pieces that sentencepiece does not skip for their length; it has no use for NUL in training."""
    for text in texts:
        for line in text.replace("\0", "").split("\n"):
            for start in range(0, len(line), SENTENCE_CHARACTERS):
                yield line[start : start + SENTENCE_CHARACTERS]
