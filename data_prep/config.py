"""The configuration of a preparation pipeline: named sections in the order in which they run.

    pipeline = load("configs/prep/quickstart.yaml", ["ingest.sources.stdlib.path=/usr/lib/python3.11"], Pipeline)

A section that is absent (null) is a stage that does not run. Sections rather than a list, so that every value can be
overridden by its dotted key.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config import Count, Name, Section

VALIDATION_SUFFIX = "-val"
RECORD_FIELDS = ("text_field", "id_field", "url_field", "language_field")
# 256 byte symbols, begin and end of text, and the unknown piece that sentencepiece insists on.
SMALLEST_VOCABULARY = 259


class SourceConfig(Section):
    kind: Literal["tree", "jsonl", "parquet"] = Field(
        description="tree: one document per file; jsonl: one per line of .jsonl, .jsonl.gz or .jsonl.zst; parquet: one "
        "per row."
    )
    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="File, directory or glob (** for any depth), or a list of them; directories are read recursively."
    )
    include: list[str] | None = Field(
        None,
        description="Patterns of files to read; without a slash they match a file's name, with one its path below "
        "`path`. Null for all files of a tree, *.jsonl, *.jsonl.gz and *.jsonl.zst, or *.parquet.",
    )
    exclude: list[str] = Field(
        [], description="Patterns of files and directories to leave out; matched as `include` matches."
    )
    text_field: str | None = Field(None, description="Key or column of the text, in jsonl and parquet; null for text.")
    id_field: str | None = Field(
        None, description="Key or column of an id that is unique in the source; null to number lines and rows by file."
    )
    url_field: str | None = Field(None, description="Key or column of the document's address; null for none.")
    language_field: str | None = Field(
        None, description="Key or column of the document's language; null for the value of `language`."
    )
    language: str | None = Field(None, description="Language of every document, as a code or a name.")
    max_bytes: Count | None = Field(
        None,
        description="Largest amount of text kept, in bytes; documents are chosen by a hash of their id. Null for all.",
    )

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        for field in RECORD_FIELDS:
            if self.kind == "tree" and getattr(self, field) is not None:
                raise ValueError(f"{field} is for the kinds jsonl and parquet, the kind is tree")
        if self.language is not None and self.language_field is not None:
            raise ValueError("language and language_field exclude each other")
        return self


class IngestConfig(Section):
    sources: dict[Name, SourceConfig] = Field(
        min_length=1, description="Sources by name, in order of precedence: of equal documents the first one's is kept."
    )
    on_invalid_utf8: Literal["replace", "skip", "fail"] = Field(
        "replace",
        description="Text that is not UTF-8: put U+FFFD in its place, leave out the document, or stop with exit 3.",
    )
    on_bad_record: Literal["skip", "fail"] = Field(
        "fail",
        description="A line that is not a JSON object, or a record without text: leave it out and count it, or stop "
        "with exit code 3.",
    )
    shard_bytes: Count = Field(
        2**28, description="Text per intermediate shard, in bytes; about a quarter of a worker's memory."
    )


class DedupConfig(Section):
    exact: Literal[True] = Field(True, description="Keep one of the documents whose text is the same, byte for byte.")
    expect_matches: bool = Field(False, description="Stop with exit code 3 when no duplicate is found.")


class ValidationConfig(Section):
    fraction: float = Field(
        gt=0,
        lt=1,
        description="Share of the documents that is held out, chosen by a hash of the document's id.",
    )


class TokenizerConfig(Section):
    algorithm: Literal["byte_bpe", "sentencepiece_bpe", "sentencepiece_unigram"] | None = Field(
        None, description="What to train: byte-level BPE (tokenizers), or sentencepiece with byte fallback."
    )
    vocab_size: Annotated[Count, Field(ge=SMALLEST_VOCABULARY, lt=2**31)] | None = Field(
        None, description="Size of the vocabulary that is trained, special tokens included."
    )
    special_tokens: list[Annotated[str, Field(pattern=r"^\S+$")]] = Field(
        [],
        description="Tokens besides begin and end of text that no text becomes, put into a trained vocabulary; "
        "[<fim_prefix>, <fim_suffix>, <fim_middle>] for fill-in-the-middle.",
    )
    split_digits: bool = Field(True, description="Make every digit a token of its own, in sentencepiece.")
    character_coverage: float = Field(
        0.9995,
        gt=0,
        le=1,
        description="Share of the characters that get a piece of their own, in sentencepiece; the others are bytes.",
    )
    max_bytes: Count = Field(
        2**28, description="Text to train on, in bytes: a sample of the documents by hash, without the held-out ones."
    )
    path: str | None = Field(
        None,
        description="Instead of training: an existing tokenizer.json or .model file, or a directory of shards.",
    )
    bos: str | None = Field(
        None,
        description="Token in front of every document, of a tokenizer.json in `path`; null for none.",
    )
    eos: str | None = Field(None, description="Token after every document, of a tokenizer.json in `path`.")
    allow_lossy: bool = Field(False, description="Accept a tokenizer that does not give every text back.")
    fast: bool = Field(
        True,
        description="Encode byte-level BPE with gigatoken where it knows the tokenizer, checked against the "
        "tokenizer's own library; false for that library alone.",
    )

    @model_validator(mode="after")
    def _check(self) -> "TokenizerConfig":
        training = [name for name in ("algorithm", "vocab_size") if getattr(self, name) is not None]
        if self.path is not None and training:
            raise ValueError(f"path names an existing tokenizer, so {' and '.join(training)} must be left out")
        if self.path is None and len(training) < 2:
            raise ValueError("expected algorithm and vocab_size to train a tokenizer, or path to use an existing one")
        if self.path is None and (self.bos or self.eos):
            raise ValueError("bos and eos are for a tokenizer.json in path; a trained tokenizer has its own")
        if self.path is not None and self.special_tokens:
            raise ValueError("special_tokens are for a tokenizer that is trained; the one in path has its own")
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise ValueError(f"special_tokens names a token twice, found {', '.join(self.special_tokens)}")
        if self.vocab_size is not None and (least := SMALLEST_VOCABULARY + len(self.special_tokens)) > self.vocab_size:
            raise ValueError(f"vocab_size must be at least {least} with these special_tokens, found {self.vocab_size}")
        return self


class ShardsConfig(Section):
    shard_tokens: Count = Field(
        2**29, description="Tokens per output shard, on average; one file is written at a time."
    )


class Pipeline(Section):
    name: Name = Field(description="Name of the pipeline; its intermediate results lie in output/.work/name.")
    output: str = Field("prepared", description="Directory that gets one directory of shards per source and split.")
    work_dir: str | None = Field(None, description="Directory of the intermediate results; null for output/.work/name.")
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = Field(
        0, description="Seed of the order of the documents."
    )
    workers: Count | None = Field(None, description="Worker processes; null for one per processor.")
    ingest: IngestConfig = Field(description="Read raw files into intermediate shards of text.")
    dedup: DedupConfig | None = Field(None, description="Remove duplicates across all sources.")
    validation: ValidationConfig | None = Field(None, description="Hold documents out of training.")
    tokenizer: TokenizerConfig = Field(description="Train or take a tokenizer.")
    shards: ShardsConfig = Field(
        ShardsConfig(), description="Tokenize, shuffle and write the shards that training reads."
    )

    @property
    def work(self) -> Path:
        return Path(self.work_dir) if self.work_dir is not None else Path(self.output) / ".work" / self.name

    @property
    def validation_fraction(self) -> float:
        return self.validation.fraction if self.validation else 0.0

    @model_validator(mode="after")
    def _check(self) -> "Pipeline":
        for name in self.ingest.sources:
            if self.validation and name + VALIDATION_SUFFIX in self.ingest.sources:
                raise ValueError(
                    f"the source '{name + VALIDATION_SUFFIX}' and the held-out documents of '{name}' would share one "
                    "directory; rename the source"
                )
        return self
