"""Which records of web archives are read: by address, by host, by an index."""

import re
from typing import Annotated

from pydantic import Field, field_serializer, model_validator

from data_prep.config.urls import redact
from maxlm.config import Section

LIST = (
    " An entry file:PATH stands for the lines of a file; there, empty lines and lines that begin with # are left out."
)
Entries = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
FILE = "file:"


class SelectConfig(Section):
    """A record passes if it matches one entry of every `allow_` list that is given, and none of any `deny_` list."""

    allow_urls: Entries | None = Field(
        None, description="Regular expressions; a page's address must match one, anywhere in it. Null for all." + LIST
    )
    deny_urls: Entries | None = Field(
        None, description="Regular expressions; no page whose address matches one is read." + LIST
    )
    allow_domains: Entries | None = Field(
        None, description="Domains such as example.org, which stand for themselves and all below. Null for all." + LIST
    )
    deny_domains: Entries | None = Field(None, description="Domains that are not read, with all below them." + LIST)
    allow_hosts: Entries | None = Field(
        None,
        description="Hosts such as www.example.org; *.example.org stands for all below example.org, without it. Null "
        "for all." + LIST,
    )
    deny_hosts: Entries | None = Field(None, description="Hosts that are not read, as in allow_hosts." + LIST)
    languages: Entries | None = Field(
        None,
        description="Main languages of pages, as three-letter codes (eng, zho), in the index or in the headers of WET "
        "files; others and pages without one are not read. Null for all.",
    )
    index: str | Entries | None = Field(
        None,
        description="CDXJ files, as Common Crawl publishes them (cdx-00000.gz), directories or globs of them: only the "
        "records that they list are read, by byte range. `path` is then the directory or URL that their filenames "
        "start from (https://data.commoncrawl.org), or a directory where files of the same name lie. Null to read "
        "whole files.",
    )

    @field_serializer("index", when_used="json")
    def _show_index(self, index: str | list[str] | None) -> str | list[str] | None:
        """What is written down of a run has no passwords and no signatures of URLs."""
        return [redact(one) for one in index] if isinstance(index, list) else index and redact(index)

    @property
    def index_paths(self) -> list[str]:
        return [self.index] if isinstance(self.index, str) else self.index or []

    @model_validator(mode="after")
    def _check(self) -> "SelectConfig":
        for name in ("allow_urls", "deny_urls"):
            for pattern in getattr(self, name) or ():
                try:
                    if not pattern.startswith(FILE):
                        re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{name}: '{pattern}' is not a regular expression ({error})") from None
        return self
