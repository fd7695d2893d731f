"""What counts as a copy, and which copy stays."""

from typing import Literal

from pydantic import Field

from maxlm.config import Section


class DedupConfig(Section):
    exact: Literal[True] = Field(True, description="Keep one of the documents whose text is the same, byte for byte.")
    expect_matches: bool = Field(False, description="Stop with exit code 3 when no duplicate is found.")
