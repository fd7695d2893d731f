"""The tokenizer of a Hugging Face folder: which files it is, what it says of ids, and how ours is written there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxlm.convert.folder import CONFIG, read_json
from maxlm.data.shards import TokenizerEntry, file_entry
from maxlm.data.tokenizer import FILE_NAMES, Tokenizer
from maxlm.errors import DataError
from maxlm.saved import Saved

GENERATION, SETTINGS = "generation_config.json", "tokenizer_config.json"
# What travels with a model byte for byte. Not its README: what it says of the model (its scores, its files) need not be
# true of what becomes of it here, and an export writes its own.
NAMES = (
    *FILE_NAMES.values(),
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION,
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
)
TEMPLATES = "additional_chat_templates"  # a folder of further templates, as transformers saves them


def copy_files(source: Path, target: Path) -> list[str]:
    """Copy what travels; returns the names."""
    target.mkdir(exist_ok=True)
    names = [name for name in NAMES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    if (source / TEMPLATES).is_dir():
        (target / TEMPLATES).mkdir()
        for path in sorted((source / TEMPLATES).glob("*.jinja")):
            shutil.copyfile(path, target / TEMPLATES / path.name)
        names.append(TEMPLATES)
    return names


def describe(directory: Path) -> tuple[TokenizerEntry | None, list[int]]:
    """The tokenizer of a folder, and the ids that end a text: that of the end of a document, then of a turn.

    The entry is None where no file is of a kind that maxlm reads. The files that the entry names are the tokenizer's
    alone, as with prepared shards: the same tokenizer has the same hash, whatever lies beside it.
    """
    config = read_json(directory / CONFIG, "expected a folder with a Hugging Face model")
    generation = _optional(directory / GENERATION)
    settings = _optional(directory / SETTINGS)
    kind = next((kind for kind, name in FILE_NAMES.items() if (directory / name).is_file()), None)
    stops = list(dict.fromkeys(_ids(config.get("eos_token_id")) + _ids(generation.get("eos_token_id"))))
    if kind is None:
        return None, stops
    file = directory / FILE_NAMES[kind]
    entry = TokenizerEntry(kind=kind, vocab_size=1, bos_id=None, eos_id=0, files={file.name: file_entry(file)})
    try:
        tokenizer = Tokenizer(directory, entry)
        size, added = _read(tokenizer)
    except DataError:
        raise
    except Exception as error:  # both libraries raise bare exceptions on a file they cannot read
        raise DataError(f"{file}: not a tokenizer that can be read ({error})") from None
    if not stops:
        named = tokenizer.token_id(_text(settings.get("eos_token")) or "")
        if named is None:
            raise DataError(f"{directory}: says of no end of a text; expected eos_token_id in {CONFIG} or {GENERATION}")
        stops = [named]
    first = next(iter(_ids(config.get("bos_token_id")) + _ids(generation.get("bos_token_id"))), None)
    if first is None:
        first = tokenizer.token_id(_text(settings.get("bos_token")) or "")
    # The settings may say it in words; otherwise the file itself puts it in front of a text, or does not.
    adds = settings.get("add_bos_token")
    adds = (kind == "sentencepiece" or added is not None) if adds is None else adds
    bos = (first if added is None else added) if adds else None
    return entry.model_copy(update={"vocab_size": size, "bos_id": bos, "eos_id": stops[0]}), stops


def _read(tokenizer: Tokenizer) -> tuple[int, int | None]:
    """One more than the largest id, and the id that the tokenizer's own post-processor puts in front of a text."""
    if tokenizer.entry.kind == "sentencepiece":
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path)).vocab_size(), None
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    plain, whole = (library.encode("a", add_special_tokens=special).ids for special in (False, True))
    added = whole[0] if len(whole) > len(plain) and whole[:1] != plain[:1] else None
    return max(library.get_vocab(with_added_tokens=True).values()) + 1, added


def _optional(path: Path) -> Mapping[str, Any]:
    return read_json(path, "") if path.is_file() else {}


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if type(number) is int]


def _text(token: Any) -> str | None:
    """A token of tokenizer_config.json, which is a text or an object with one."""
    return token.get("content") if isinstance(token, dict) else token


def token_ids(found: Saved) -> dict[str, Any]:
    """What config.json says of tokens: as an imported model's said, else the run's tokenizer's own."""
    if "token_ids" in found.run:
        return found.run["token_ids"]
    tokenizer = TokenizerEntry.model_validate(found.run["tokenizer"])
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}


def write_files(found: Saved, target: Path, config: Mapping[str, Any]) -> None:
    """The tokenizer of a checkpoint in an export's folder, with what transformers needs to load it."""
    if found.config is None:
        copy_files(found.tokenizer_dir, target)
        return
    entry = TokenizerEntry.model_validate(found.run["tokenizer"])
    tokenizer = Tokenizer(found.tokenizer_dir, entry)
    write = {"tokenizers": _write_tokenizers, "sentencepiece": _write_sentencepiece}[entry.kind]
    settings = write(tokenizer, target)
    length = {"model_max_length": config["max_position_embeddings"]} if "max_position_embeddings" in config else {}
    _write_json(target / SETTINGS, settings | length | {"clean_up_tokenization_spaces": False})
    ids = {"bos_token_id": entry.bos_id, "eos_token_id": entry.eos_id}
    _write_json(target / GENERATION, {name: number for name, number in ids.items() if number is not None})


def _write_tokenizers(tokenizer: Tokenizer, target: Path) -> dict[str, Any]:
    """tokenizer.json, which puts BOS in front of a text where the documents that the model read begin so.

    It is the same file where it does so already, or has no BOS: shards that were prepared with it stay the model's.
    """
    import tokenizers
    from tokenizers.processors import Sequence, TemplateProcessing

    file = target / FILE_NAMES["tokenizers"]
    shutil.copyfile(tokenizer.path, file)
    library = tokenizers.Tokenizer.from_file(str(file))
    eos, bos = library.id_to_token(tokenizer.eos_id), None
    if tokenizer.bos_id is not None:
        bos = library.id_to_token(tokenizer.bos_id)
        if library.encode("a").ids[:1] != [tokenizer.bos_id]:
            special = [(bos, tokenizer.bos_id)]
            begin = TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=special)
            library.post_processor = Sequence([library.post_processor, begin]) if library.post_processor else begin
            library.save(str(file))
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}


def _write_sentencepiece(tokenizer: Tokenizer, target: Path) -> dict[str, Any]:
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    shutil.copyfile(tokenizer.path, target / FILE_NAMES["sentencepiece"])
    pieces = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": library.unk_id()}
    named = {key: None if number is None else library.id_to_piece(number) for key, number in pieces.items()}
    adds = {"add_bos_token": tokenizer.bos_id is not None, "add_eos_token": False, "legacy": False}
    # Whether a text gets a space in front of it is the model's own normaliser's rule.
    adds |= {"add_prefix_space": library.encode("x", out_type=str)[0].startswith("\u2581")}
    return {"tokenizer_class": "LlamaTokenizer"} | named | adds


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
