"""The tokenizer: trained, or taken; and the token shards."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config import Count, Section

# 256 byte symbols, begin and end of text, and the unknown piece that sentencepiece insists on.
SMALLEST_VOCABULARY = 259


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
