"""Language and script of documents, and folding of Chinese script."""

from typing import Annotated, Literal

from pydantic import Field

from data_prep.config.languages import CODE
from maxlm.config import Count, Fraction, Section


class LanguageConfig(Section):
    characters: Count = Field(2000, description="Characters from a document's start by which its language is found.")
    keep_declared: bool = Field(
        True,
        description="Take the language that a source declares (language, language_field) as it is, without a score; "
        "false to find the language of such documents as well, code aside.",
    )
    code: list[str] = Field(
        CODE,
        description="Declared languages, in lower case, that are code: such documents are neither identified nor "
        "subject to `keep` and `scripts`.",
    )
    keep: dict[str, Fraction] | None = Field(
        None,
        description="Languages that stay, each with the least score of a document whose language was found, for "
        "example {en: 0.65, zh: 0.692}; all others are dropped. Null keeps all.",
    )
    scripts: list[Annotated[str, Field(pattern=r"^[A-Z][a-z]{3}$")]] | None = Field(
        None,
        description="Scripts that stay, as ISO 15924 codes such as Latn, Hans, Hant (Hani where a text has neither's "
        "own characters), Jpan, Cyrl. Null keeps all.",
    )
    fold_han: Literal["simplified", "traditional"] | None = Field(
        None, description="Script into which the text of Chinese documents is converted by OpenCC; null for neither."
    )
    expect_matches: bool = Field(
        False, description="Stop with exit code 3 when keep and scripts drop nothing, or fold_han changes nothing."
    )
