"""Where raw text comes from, and how it is read."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, model_validator

from data_prep.config.select import SelectConfig
from data_prep.config.urls import is_url, redact
from maxlm.config import Count, Name, Section

# The keys that some kinds have and others do not.
RECORDS = ("jsonl", "parquet")
ARCHIVES = ("warc", "wet")
KINDS_OF_KEY: dict[str, tuple[str, ...]] = {
    "text_field": RECORDS,
    "id_field": (*RECORDS, *ARCHIVES),
    "url_field": RECORDS,
    "language_field": (*RECORDS, *ARCHIVES),
    "select": ARCHIVES,
    "namespaces": ("wiki",),
    "max_page_bytes": ("wiki",),
    "repositories": ("code",),
    "licenses": ("code",),
    "vendored": ("code",),
    "generated": ("code",),
    "max_file_bytes": ("code",),
}


class SourceConfig(Section):
    kind: Literal["tree", "jsonl", "parquet", "wiki", "code", "warc", "wet", "html", "shards", "synthetic"] = Field(
        description="tree: one document per file; jsonl: one per line of .jsonl, plain or compressed; parquet: one per "
        "row; wiki: one per page of a MediaWiki XML dump (pages-articles.xml, plain or compressed); code: one per file "
        "of repositories, with its programming language and licence; warc: one per HTML page that a web archive holds "
        "a response of; wet: one per text extracted from a web archive; html: one per HTML file (`extract` says how "
        "pages become text); shards: those of a directory of prepared shards, decoded; synthetic: those that "
        "`maxlm-prep synthesize` wrote."
    )
    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="File, directory or glob (** for any depth), or a list of them, on this machine or as URLs (s3://, "
        "gs://, hf://datasets/OWNER/NAME/..., https:// for single files); directories are read recursively."
    )
    include: list[str] | None = Field(
        None,
        description="Patterns of files to read; without a slash they match a file's name, with one its path below "
        "`path`. Null for all files of a tree or of repositories, *.parquet, *.xml, *.xml.bz2, *.xml.gz and *.xml.zst "
        "of a wiki, *.warc and *.wet (.gz, .zst), *.html, *.htm and *.xhtml, tokens-*.bin of shards, documents-*.jsonl "
        "of what is synthetic, or *.jsonl, *.jsonl.gz, *.jsonl.zst, *.jsonl.bz2, *.json.gz and *.json.zst.",
    )
    exclude: list[str] = Field(
        [], description="Patterns of files and directories to leave out; matched as `include` matches."
    )
    text_field: str | None = Field(None, description="Key or column of the text, in jsonl and parquet; null for text.")
    id_field: str | None = Field(
        None,
        description="Key or column of an id that is unique in the source, or header of an archive's records, such as "
        "WARC-Record-ID; null for the file with the line, the row or the record's offset.",
    )
    url_field: str | None = Field(None, description="Key or column of the document's address; null for none.")
    language_field: str | None = Field(
        None,
        description="Key or column of the document's language, or header of an archive's records, such as "
        "WARC-Identified-Content-Language in WET files; null for the value of `language`.",
    )
    language: str | None = Field(None, description="Language of every document, as a code or a name.")
    max_bytes: Count | None = Field(
        None,
        description="Largest amount of text kept, in bytes; documents are chosen by a hash of their id. Null for all.",
    )

    select: SelectConfig | None = Field(None, description="Which records of web archives are read; null for all pages.")
    namespaces: Annotated[list[int], Field(min_length=1)] = Field(
        [0], description="Numbers of the namespaces of a wiki whose pages are read; 0 is the articles."
    )
    max_page_bytes: Count = Field(
        2**20, description="Longest wikitext of a page of a wiki that is read, in bytes; MediaWiki allows 2 MiB."
    )

    repositories: Literal["children", "single"] = Field(
        "children",
        description="Whether each directory in `path` is a repository of code, or `path` is one; no licence file above "
        "a repository counts.",
    )
    licenses: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="SPDX names of the licences of code that is read, such as [MIT, Apache-2.0]; null for all, with or "
        "without a licence.",
    )
    vendored: Literal["drop", "keep"] = Field(
        "drop", description="Code in vendor/, node_modules/, third_party/ and the like: leave it out, or mark it."
    )
    generated: Literal["drop", "keep"] = Field(
        "drop",
        description="Code that says in its first lines that it is generated, minified code and lock files: leave it "
        "out, or mark it.",
    )
    max_file_bytes: Count = Field(2**20, description="Largest file of code that is read, in bytes.")

    @field_serializer("path", when_used="json")
    def _show_path(self, path: str | list[str]) -> str | list[str]:
        """What is written down of a run has no passwords and no signatures of URLs."""
        return redact(path) if isinstance(path, str) else [redact(one) for one in path]

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def reading(self) -> dict[str, Any]:
        """What the documents of a file depend on."""
        others = {key for key, kinds in KINDS_OF_KEY.items() if self.kind not in kinds}
        return self.model_dump(exclude=others | {"path", "include", "exclude", "max_bytes", "select"})

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        for key, kinds in KINDS_OF_KEY.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for the kind {' or '.join(kinds)}, the kind is {self.kind}")
        if self.language is not None and self.language_field is not None:
            raise ValueError("language and language_field exclude each other")
        if self.select and self.select.index is not None and self.kind != "warc":
            raise ValueError(f"select.index is for the kind warc, the kind is {self.kind}")
        if self.select and self.select.index is not None and len(self.paths) > 1 and any(map(is_url, self.paths)):
            raise ValueError("with select.index, path is one URL, which the filenames of the index start from")
        if self.select and self.select.languages and self.kind == "warc" and self.select.index is None:
            raise ValueError("select.languages needs select.index, as WARC files do not say the language of a page")
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
        2**28,
        description="Text per intermediate shard, in bytes. A worker needs about 0.4 GB and one to three times this, "
        "the more the shorter the documents are; with less memory, use fewer workers or smaller shards.",
    )
