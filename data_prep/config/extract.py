"""Text of HTML pages: which extractor, its options, and what a page may cost."""

from typing import Annotated, Literal

from pydantic import Field

from maxlm.config import Count, Section


class ResiliparseConfig(Section):
    main_content: bool = Field(
        True, description="Keep the main content alone: without navigation, headers, footers and advertisements."
    )
    preserve_formatting: bool = Field(
        True, description="Keep paragraphs, line breaks and preformatted text; false for one line per page."
    )
    list_bullets: bool = Field(True, description="Write bullets and numbers before the items of lists.")
    alt_texts: bool = Field(False, description="Write the alternative text of images, as [Image: text].")
    links: bool = Field(False, description="Write the address of a link behind its text.")
    form_fields: bool = Field(False, description="Write form fields and their values.")
    noscript: bool = Field(False, description="Write what is shown where scripts do not run.")
    comments: bool = Field(True, description="Count readers' comments as main content.")
    skip_elements: list[str] = Field([], description="CSS selectors of elements that are left out, such as aside.")


class TrafilaturaConfig(Section):
    favour: Literal["precision", "recall"] | None = Field(
        None, description="In doubt leave text out (precision) or keep it (recall); null for a balance."
    )
    fast: bool = Field(
        False, description="Leave out the second extractors that it falls back to, for 60 % of the time."
    )
    comments: bool = Field(True, description="Extract readers' comments too.")
    tables: bool = Field(True, description="Extract the text of tables.")
    links: bool = Field(False, description="Write the address of a link behind its text.")


class ExtractConfig(Section):
    extractor: Literal["resiliparse", "trafilatura"] = Field(
        "resiliparse",
        description="resiliparse: about 30 MB of HTML per second and processor; trafilatura: stricter about what is "
        "main content, and about 30 times slower.",
    )
    resiliparse: ResiliparseConfig = Field(ResiliparseConfig(), description="Options of resiliparse.")
    trafilatura: TrafilaturaConfig = Field(TrafilaturaConfig(), description="Options of trafilatura.")
    seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        10.0,
        description="Longest time that one page may take, in seconds of wall clock; it is tried once more, alone, "
        "before it is dropped.",
    )
    max_page_bytes: Count = Field(
        2**23, description="Largest page that is extracted, in bytes of HTML without transfer and content encoding."
    )
    memory: Annotated[Count, Field(ge=2**26)] = Field(
        2**31,
        description="Memory that the extracting process beside each worker may allocate, in bytes; a page that needs "
        "more is dropped. Enforced on Linux.",
    )
