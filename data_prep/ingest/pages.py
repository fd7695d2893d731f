"""Pages: what readers of HTML hand to the extraction. HTML is never stored.

The kind `html` reads folders of HTML files, one document per file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.config import ExtractConfig, IngestConfig, SourceConfig
from data_prep.ingest.files import RawFile
from data_prep.ingest.records import Rejected

TOO_LARGE, NO_BYTES, NOT_HTML, TRUNCATED = "over max_page_bytes", "empty", "not HTML", "truncated"
CONTENT_TYPES = ("text/html", "application/xhtml+xml")
PAGE_STATUS = 200
# How a page begins that does not say what it is (a subset of the MIME Sniffing Standard, section 7.1).
HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!--|(?:!doctype\s+html|html|head|body|title|meta|div|p|h1)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Page:
    """`html` as it was sent, without encodings of transfer and content; `charset` is the transport's, if it names one.

    The others as in `Document`.
    """

    id: str
    html: bytes
    origin: str
    charset: str | None = None
    url: str | None = None
    language: str | None = None
    details: tuple[str, ...] = ()


def read_folder(
    file: RawFile, config: SourceConfig, ingest: IngestConfig, extract: ExtractConfig
) -> Iterator[Page | Rejected]:
    """The page of an HTML file, read only as far as a page may be long."""
    with file.open() as stream:
        html = stream.read(extract.max_page_bytes + 1)
    if problem := unfit(html, extract):
        yield Rejected(problem)
    else:
        yield Page(file.name, html, file.name, language=config.language)


def unfit(html: bytes, extract: ExtractConfig) -> str | None:
    """Why a body is not extracted, if it is not: PDF, images and archives are served as HTML now and then."""
    from resiliparse.parse.encoding import detect_mime

    if not html:
        return NO_BYTES
    if len(html) > extract.max_page_bytes:
        return TOO_LARGE
    kind, _, format = detect_mime(html[:512]).partition("/")
    # Not by "BM", which bitmaps begin with: sentences do too.
    binary = (kind in ("image", "audio", "video", "font") and format != "bmp") or format in ("pdf", "zip", "gzip")
    return NOT_HTML if binary else None
