"""Tokenizer stage: train one, or take one that exists; find out whether it gives every text back.

byte_bpe               byte-level BPE, trained by `tokenizers`: splits as GPT-4 and Llama 3 do (words with their
                       leading space, digits in groups of at most three), all 256 bytes in the alphabet
sentencepiece_bpe,     trained by `sentencepiece`: text unchanged (identity normalisation, no dummy prefix, spaces
sentencepiece_unigram  kept), bytes for what the vocabulary lacks
"""

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from data_prep.config import TokenizerConfig
from data_prep.documents import SAMPLE_SALT, Part, chosen, held_out, iterate
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.tokenize.encode import Encoder, find_difference
from maxlm.data.shards import MANIFEST, TokenizerEntry, file_entry, read_manifest
from maxlm.data.tokenizer import FILE_NAMES, Tokenizer
from maxlm.errors import ConfigError, DataError

VERSION = 1
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# sentencepiece adds floating-point counts thread by thread: a fixed number trains the same model on every machine.
SENTENCEPIECE_THREADS = 8
SENTENCE_CHARACTERS = 2**12
CHECKED_DOCUMENTS = 256


def fingerprint(config: TokenizerConfig, parts: Sequence[Part], fraction: float) -> str:
    """The key of the tokenizer: an existing one by its content, a trained one by what it is trained on."""
    if config.path is not None:
        file, entry = find_existing(config)
        settings = entry.model_dump() if entry else [config.bos, config.eos]
        return make_key("tokenizer", VERSION, file_entry(file).sha256, settings)
    settings = config.model_dump(exclude={"path", "bos", "eos", "allow_lossy", "fast"})
    return make_key("tokenizer", VERSION, settings, fraction, [part.key for part in parts])


def make_tokenizer(
    folder: Folder,
    key: str,
    config: TokenizerConfig,
    parts: Sequence[Part],
    fraction: float,
) -> Record:
    """Put a tokenizer's file into the folder.

    `values` has the `entry` of the shard manifest, the `documents` and `bytes` it was trained on, the `difference` of
    the first text that does not come back (null: none), and whether gigatoken gives the same ids (`fast`).
    """
    counts = {"documents": 0, "bytes": 0}
    if config.path is not None:
        source, entry = find_existing(config)
        kind = "sentencepiece" if source.suffix == ".model" else "tokenizers"
        with writing(folder.file(key, FILE_NAMES[kind])) as temporary:
            shutil.copyfile(source, temporary)
    else:
        texts = training_texts(parts, config.max_bytes, fraction, counts)
        kind = "tokenizers" if config.algorithm == "byte_bpe" else "sentencepiece"
        content = (_train_byte_bpe if kind == "tokenizers" else _train_sentencepiece)(config, texts)
        with writing(folder.file(key, FILE_NAMES[kind])) as temporary:
            temporary.write_bytes(content)
        entry = None
    path = folder.file(key, FILE_NAMES[kind])
    entry = entry or describe(path, kind, BOS if config.path is None else config.bos, config.eos or EOS)
    tokenizer = Tokenizer(path.parent, entry)
    samples = probes() + list(islice(_held_out_texts(parts, fraction), CHECKED_DOCUMENTS))
    values = counts | {
        "entry": entry.model_dump(),
        "difference": find_difference(tokenizer, samples),
        "fast": Encoder.agrees(tokenizer, samples),
    }
    return folder.commit(key, [path.name], values)


def training_texts(parts: Sequence[Part], max_bytes: int, fraction: float, counts: dict[str, int]) -> Iterator[str]:
    """A sample of about `max_bytes` of the documents that are not held out; adds what it yields to `counts`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    share = max_bytes / max(1, (1 - fraction) * sum(part.bytes for part in parts))
    for part in parts:
        for table in iterate(part, [*dict.fromkeys(("id_hash", "text", "bytes", part.split_by))]):
            wanted = ~held_out(table[part.split_by].to_numpy(), fraction)
            if share < 1:
                wanted &= chosen(table["id_hash"].to_numpy(), SAMPLE_SALT, share)
            table = table.filter(pa.array(wanted))
            yield from table["text"].to_pylist()
            total = pc.sum(table["bytes"]).as_py() or 0
            counts["documents"] += table.num_rows
            counts["bytes"] += total
            advance(total)


def _held_out_texts(parts: Sequence[Part], fraction: float) -> Iterator[str]:
    for part in parts:
        for table in iterate(part, (part.split_by, "text")):
            chosen = held_out(table[part.split_by].to_numpy(), fraction or 1.0)
            yield from table["text"].take(np.flatnonzero(chosen)).to_pylist()


def _train_byte_bpe(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[BOS, EOS, *config.special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode()


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
            # Runs of spaces become tokens: without it, indentation doubles the length of code.
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            split_digits=config.split_digits,
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


def find_existing(config: TokenizerConfig) -> tuple[Path, TokenizerEntry | None]:
    """The tokenizer's file at `config.path`, and its entry where the path is a directory of prepared shards."""
    given = Path(config.path).expanduser()
    candidates, entry = [given, *(given / name for name in FILE_NAMES.values())], None
    if (given / MANIFEST).is_file():
        entry = read_manifest(given).tokenizer
        candidates = [given / "tokenizer" / FILE_NAMES[entry.kind]]
    found = next((file for file in candidates if file.is_file() and file.suffix in (".json", ".model")), None)
    if found is None:
        raise DataError(
            f"{given}: no tokenizer; expected a tokenizer.json, a sentencepiece .model, or a directory that has one"
        )
    if (config.bos or config.eos) and (entry or found.suffix == ".model"):
        raise ConfigError(f"tokenizer: {given} says itself what bos and eos are; leave tokenizer.bos and .eos out")
    return found, entry


def describe(path: Path, kind: str, bos: str | None, eos: str) -> TokenizerEntry:
    """The entry of the shard manifest; raises `ConfigError` where `bos` or `eos` is not in the vocabulary."""
    try:
        if kind == "tokenizers":
            import tokenizers

            library = tokenizers.Tokenizer.from_file(str(path))
            vocabulary = library.get_vocab(with_added_tokens=True)
            for key, token in (("bos", bos), ("eos", eos)):
                if token is not None and token not in vocabulary:
                    special = [added.content for added in library.get_added_tokens_decoder().values() if added.special]
                    raise ConfigError(
                        f"tokenizer.{key}: '{token}' is not in {path.name}; its special tokens are {', '.join(special)}"
                    )
            size, ids = max(vocabulary.values()) + 1, (vocabulary.get(bos), vocabulary[eos])
        else:
            import sentencepiece

            library = sentencepiece.SentencePieceProcessor(model_file=str(path))
            size = library.vocab_size()
            ids = tuple(number if number >= 0 else None for number in (library.bos_id(), library.eos_id()))
    except (ConfigError, OSError):
        raise
    except Exception as error:  # Both libraries raise bare exceptions on a file they cannot read.
        raise DataError(f"{path}: not a tokenizer that can be read ({error})") from None
    if ids[1] is None:
        raise ConfigError(f"{path}: the tokenizer has no end-of-text token, which shards need after every document")
    return TokenizerEntry(
        kind=kind, vocab_size=size, bos_id=ids[0], eos_id=ids[1], files={FILE_NAMES[kind]: file_entry(path)}
    )


def probes() -> list[str]:
    """Texts that a tokenizer tends to lose: controls, blanks, every plane of Unicode, text that looks like a token."""
    planes = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    return [
        *("".join(planes[start : start + 256]) for start in range(0, len(planes), 256)),
        "\0",
        "\n",
        " ",
        "  two  blanks  ",
        "\n\n\t \r\n\r x \n",
        "a\0b\x00\n",
        "\u2581 \u2581\u2581",
        "1234567 3.14159 1e-05",
        "漢字かな交じり文、한국어. 中文沒有空格",
        "e\u0301 \u00e9 \ufb01 \u2126 \uff21",
        "👩‍👩‍👧‍👦🇪🇺 \U0010ffff\ufffd\ufeff",
        f"{BOS}x{EOS} <s></s><unk> <0x0A>",
        "x" * 3000,
    ]
