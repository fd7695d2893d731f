"""The tokenizer: trained, taken, or taken and extended; and the token shards."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config import Count, Name, Section

# 256 byte symbols, begin and end of text, and the unknown piece that sentencepiece insists on. WordPiece needs the
# bytes twice: at the start of a word and inside.
SMALLEST_VOCABULARY, SMALLEST_WORDPIECE = 259, 515
# What a trained tokenizer is asked for, and one that exists has decided.
TRAINING = (
    "algorithm",
    "vocab_size",
    "special_tokens",
    "digits",
    "leading_space",
    "space_runs",
    "code",
    "character_coverage",
)


class ExtendConfig(Section):
    """New pieces for a byte-level BPE tokenizer, learnt from some of the text; every old id stays what it is."""

    pieces: Count = Field(description="Pieces that are added behind the old vocabulary.")
    sources: list[Name] = Field(min_length=1, description="Sources whose text the pieces are learnt from.")
    languages: list[str] | None = Field(
        None, min_length=1, description="Only documents of these languages, as the column `language` names them."
    )
    keep_ascii: bool = Field(
        True,
        description="Text in ASCII, such as English and code, keeps exactly the tokens that it had: new pieces have no "
        "ASCII. False for pieces of such text as well.",
    )
    max_bytes: Count = Field(
        2**26,
        description="Text to learn from, in bytes: a sample by hash, without held-out documents. Learning takes about "
        "50 bytes of memory for each byte of Chinese.",
    )


class TokenizerConfig(Section):
    algorithm: Literal["byte_bpe", "wordpiece", "sentencepiece_bpe", "sentencepiece_unigram"] | None = Field(
        None,
        description="What to train: byte-level BPE or WordPiece (tokenizers), or sentencepiece with byte fallback.",
    )
    vocab_size: Annotated[Count, Field(ge=SMALLEST_VOCABULARY, lt=2**31)] | None = Field(
        None, description="Size of the vocabulary that is trained, special tokens included."
    )
    special_tokens: list[Annotated[str, Field(pattern=r"^\S+$")]] = Field(
        [],
        description="Tokens besides begin and end of text that no text becomes, put into a trained vocabulary; "
        "[<fim_prefix>, <fim_suffix>, <fim_middle>] for fill-in-the-middle.",
    )
    digits: Literal["single", "groups_of_three", "groups_of_three_left", "free"] | None = Field(
        None,
        description="How a number becomes tokens: single digits, groups of at most three from its end (1 234 567) or "
        "from its beginning (123 456 7), or as training finds; null for groups_of_three_left, in sentencepiece, which "
        "knows no groups, for single.",
    )
    leading_space: bool = Field(
        True,
        description="Words and signs begin with the space before them, as in GPT; false makes spaces tokens of their "
        "own, which sentencepiece cannot.",
    )
    space_runs: bool = Field(
        True, description="Runs of white space become tokens, so that indentation is short; false for one by one."
    )
    code: bool = Field(
        False,
        description="Join the end of a line with the indentation of the next one; not in sentencepiece, which ends "
        "words at lines.",
    )
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
    extend: ExtendConfig | None = Field(
        None, description="Add pieces to the byte-level BPE tokenizer in `path`, whose ids all stay."
    )
    compare: dict[Name, str] = Field(
        {}, description="Existing tokenizers by name, as `path` names them, that are measured beside this one."
    )
    allow_lossy: bool = Field(False, description="Accept a tokenizer that does not give every text back.")
    fast: bool = Field(
        True,
        description="Encode byte-level BPE with gigatoken where it knows the tokenizer, checked against the "
        "tokenizer's own library; false for that library alone.",
    )

    @model_validator(mode="after")
    def _check(self) -> "TokenizerConfig":
        fields = type(self).model_fields
        chosen = [name for name in TRAINING if getattr(self, name) != fields[name].default]
        if self.path is not None and chosen:
            raise ValueError(
                f"{' and '.join(chosen)} {'is' if len(chosen) == 1 else 'are'} for a tokenizer that is trained; the "
                "one in path has its own, so leave that out"
            )
        if self.path is None and (self.algorithm is None or self.vocab_size is None):
            raise ValueError("expected algorithm and vocab_size to train a tokenizer, or path to use an existing one")
        if self.path is None and (self.bos or self.eos):
            raise ValueError("bos and eos are for a tokenizer.json in path; a trained tokenizer has its own")
        if self.path is None and self.extend is not None:
            raise ValueError("extend is for the tokenizer in path; one that is trained gets all its pieces at once")
        if self.path is None:
            self._check_training()
        return self

    def _check_training(self) -> None:
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise ValueError(f"special_tokens names a token twice, found {', '.join(self.special_tokens)}")
        smallest = SMALLEST_WORDPIECE if self.algorithm == "wordpiece" else SMALLEST_VOCABULARY
        if (least := smallest + len(self.special_tokens)) > self.vocab_size:
            raise ValueError(f"vocab_size must be at least {least} with these special_tokens, found {self.vocab_size}")
        if self.code and not self.space_runs:
            raise ValueError("code joins line ends with indentation, which space_runs=false takes apart; leave one out")
        if self.algorithm.startswith("sentencepiece"):
            impossible = {
                "digits": str(self.digits).startswith("groups"),
                "leading_space": not self.leading_space,
                "code": self.code,
            }
            known = {"digits": "single or free", "leading_space": "true", "code": "false"}
            for name, found in impossible.items():
                if found:
                    raise ValueError(
                        f"{name} cannot be {str(getattr(self, name)).lower()} with {self.algorithm}, which cuts text "
                        f"at spaces and digits alone; set it to {known[name]}, or train byte_bpe or wordpiece"
                    )
        elif self.character_coverage != type(self).model_fields["character_coverage"].default:
            raise ValueError(f"character_coverage is for sentencepiece; {self.algorithm} has every byte as a piece")
