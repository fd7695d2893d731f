"""Tokenizer stage: train one, take one that exists, or extend it; find out whether it gives every text back."""

from collections.abc import Collection, Sequence
from pathlib import Path

from data_prep.config import TokenizerConfig
from data_prep.console import size
from data_prep.documents import Part
from data_prep.manifest import Folder, Record, make_key, writing
from data_prep.tokenize.extend import check as check_extensible
from data_prep.tokenize.extend import extend
from data_prep.tokenize.lossless import BOS, EOS, find_difference, probes
from data_prep.tokenize.train import train, training_texts
from maxlm.data.shards import EXTENSION, MANIFEST, TokenizerEntry, file_entry, read_manifest
from maxlm.data.tokenizer import FILE_NAMES, Tokenizer, read_extension
from maxlm.errors import ConfigError, DataError

VERSION = 2
EXTENDED = (FILE_NAMES["tokenizers"], EXTENSION)
NO_TOKEN = -1


def fingerprint(config: TokenizerConfig, parts: Sequence[Part], fraction: float) -> str:
    """The key of the tokenizer: an existing one by its content, a trained one by what it is trained on."""
    if config.path is None:
        settings = config.model_dump(exclude={"path", "bos", "eos", "extend", "compare", "allow_lossy", "fast"})
        return make_key("tokenizer", VERSION, settings, fraction, [part.key for part in parts])
    file, entry = find_existing(config)
    settings = [entry.model_dump() if entry else [config.bos, config.eos], _extension(file)]
    if config.extend is not None:
        settings += [config.extend.model_dump(), fraction, [part.key for part in sources(config, parts)]]
    return make_key("tokenizer", VERSION, file_entry(file).sha256, settings)


def sources(config: TokenizerConfig, parts: Sequence[Part]) -> list[Part]:
    """The parts that a tokenizer learns from."""
    if config.path is None:
        return list(parts)
    return [part for part in parts if config.extend and part.source in config.extend.sources]


def check_tokenizer(config: TokenizerConfig, known: Collection[str]) -> None:
    """Raise what would stop the stage when all before it has run; `known` are the sources of the pipeline."""
    for path in config.compare.values():
        find_file(path)
    if config.path is not None:
        file, _ = find_existing(config)
    if config.extend is not None:
        check_extensible(file)
        if unknown := sorted(set(config.extend.sources) - set(known)):
            raise ConfigError(
                f"tokenizer.extend.sources: no source is called {', '.join(unknown)}; there are {', '.join(known)}"
            )


def describe_origin(config: TokenizerConfig, entry: TokenizerEntry, record: Record) -> str:
    """What the tokenizer is and where it comes from, in a line."""
    values, origin = record.values, f"taken from {config.path}"
    if config.path is None:
        origin = f"trained on {size(values['bytes'])}"
    elif config.extend is not None:
        origin = (
            f"the {values['old_vocab_size']:,} of {config.path}, every id kept, and {config.extend.pieces:,} "
            f"learnt from {size(values['bytes'])}"
        )
    return f"{entry.kind}, {entry.vocab_size:,} tokens, {origin}"


def _extension(file: Path) -> str | None:
    path = file.with_name(EXTENSION)
    return file_entry(path).sha256 if path.is_file() else None


def make_tokenizer(
    folder: Folder,
    key: str,
    config: TokenizerConfig,
    parts: Sequence[Part],
    fraction: float,
) -> Record:
    """Put a tokenizer's files into the folder; `parts` are those that it learns from.

    `values` has the `entry` of the shard manifest, the `documents` and `bytes` it was trained on, the `difference` of
    the first probe that does not come back (null: none), and of an extended one the `old_vocab_size` (else null).
    """
    counts, values = {"documents": 0, "bytes": 0}, {"old_vocab_size": None}
    entry = old = None
    if config.path is None:
        kind, content = train(config, training_texts(parts, config.max_bytes, fraction, counts))
        files = {FILE_NAMES[kind]: content}
    else:
        source, entry = find_existing(config)
        kind = kind_of(source)
        entry = entry or describe(source, kind, config.bos, config.eos or EOS)
        files = {FILE_NAMES[kind]: source.read_bytes()}
        if config.extend is not None:
            old = Tokenizer(source, entry)
            files = dict(zip(EXTENDED, extend(old, config, parts, fraction, counts, folder.path / key), strict=True))
        elif read_extension(source.parent) is not None:
            files[EXTENSION] = source.with_name(EXTENSION).read_bytes()
    for name, content in files.items():
        with writing(folder.file(key, name)) as temporary:
            temporary.write_bytes(content)
    path = folder.file(key, FILE_NAMES[kind])
    entry = entry or describe(path, kind, BOS, EOS)
    if (extension := read_extension(path.parent)) is not None:
        if old is not None:
            entry = entry.model_copy(update={"vocab_size": extension.vocab_size})
            values["old_vocab_size"] = extension.old_vocab_size
        elif extension.vocab_size != entry.vocab_size:
            raise DataError(
                f"{source.with_name(EXTENSION)}: is of a tokenizer with {extension.vocab_size} ids, that beside it has "
                f"{entry.vocab_size}; delete it, or restore the tokenizer that it belongs to"
            )
    entry = entry.model_copy(update={"files": {name: file_entry(folder.file(key, name)) for name in files}})
    tokenizer = Tokenizer(path.parent, entry)
    if old is not None:
        _check_special(old, tokenizer)
    values |= counts | {"entry": entry.model_dump(), "difference": find_difference(tokenizer, probes())}
    return folder.commit(key, files, values)


def _check_special(old: Tokenizer, new: Tokenizer) -> None:
    """Added tokens are in the vocabulary of an extended tokenizer: one that takes whole words from it may find them."""
    for text in new.special_tokens():
        number = new.token_id(text)
        if number in new.encode(text) and number not in old.encode(text):
            raise ConfigError(
                f"{old.path}: cannot be extended, as the text '{text}' would become the special token of that name: "
                "the tokenizer takes whole words from its vocabulary (ignore_merges)"
            )


def find_existing(config: TokenizerConfig) -> tuple[Path, TokenizerEntry | None]:
    """The tokenizer's file at `config.path`, and its entry where the path is a directory of prepared shards."""
    found, entry = find_file(config.path)
    if (config.bos or config.eos) and (entry or found.suffix == ".model"):
        raise ConfigError(
            f"tokenizer: {config.path} says itself what bos and eos are; leave tokenizer.bos and .eos out"
        )
    return found, entry


def find_file(path: str) -> tuple[Path, TokenizerEntry | None]:
    """The file of a tokenizer: a path, or in a directory, of prepared shards among others, which have an entry."""
    given = Path(path).expanduser()
    candidates, entry = [given, *(given / name for name in FILE_NAMES.values())], None
    if (given / MANIFEST).is_file():
        entry = read_manifest(given).tokenizer
        candidates = [given / "tokenizer" / FILE_NAMES[entry.kind]]
    found = next((file for file in candidates if file.is_file() and file.suffix in (".json", ".model")), None)
    if found is None:
        raise DataError(
            f"{given}: no tokenizer; expected a tokenizer.json, a sentencepiece .model, or a directory that has one"
        )
    return found.absolute(), entry


def kind_of(file: Path) -> str:
    return "sentencepiece" if file.suffix == ".model" else "tokenizers"


def describe(path: Path, kind: str, bos: str | None, eos: str | None) -> TokenizerEntry:
    """The entry of the shard manifest, without its files; raises `ConfigError` where `bos` or `eos` is not there.

    An `eos` of None is for a tokenizer that writes no shards: it has the id NO_TOKEN.
    """
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
            size, ids = max(vocabulary.values()) + 1, (vocabulary.get(bos), vocabulary.get(eos, NO_TOKEN))
        else:
            import sentencepiece

            library = sentencepiece.SentencePieceProcessor(model_file=str(path))
            size = library.vocab_size()
            ids = tuple(number if number >= 0 else None for number in (library.bos_id(), library.eos_id()))
    except (ConfigError, OSError):
        raise
    except Exception as error:  # Both libraries raise bare exceptions on a file they cannot read.
        raise DataError(f"{path}: not a tokenizer that can be read ({error})") from None
    if ids[1] is None and eos is not None:
        raise ConfigError(f"{path}: the tokenizer has no end-of-text token, which shards need after every document")
    return TokenizerEntry(
        kind=kind, vocab_size=size, bos_id=ids[0], eos_id=NO_TOKEN if ids[1] is None else ids[1], files={}
    )
