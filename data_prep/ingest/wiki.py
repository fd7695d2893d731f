"""Kind `wiki`: one document per page of a MediaWiki XML dump, plain or compressed, of one or many bz2 streams.

The dump is parsed as it comes: memory holds one block of it and the pages that end there, however long it is. The
parser sees no entities but XML's own five: a document type, where others could be declared (to read files, or to grow
into gigabytes), is refused. A page longer than `max_page_bytes` is left out, and not gathered either.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from xml.parsers import expat

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import READ_BYTES, RawFile, open_decompressed
from data_prep.ingest.records import BAD_RECORD, Document, Rejected, clean
from data_prep.ingest.wikitext import MEDIA, wikitext_to_text
from maxlm.errors import DataError

REDIRECT, NAMESPACE, TOO_LARGE, NOT_WIKITEXT = "redirect", "other namespace", "over max_page_bytes", "not wikitext"
FILE_NAMESPACE, CATEGORY_NAMESPACE = "6", "14"
LONGEST_FIELD = 2**16  # of everything but wikitext, in characters
FIELDS = {
    ("mediawiki", "siteinfo", "dbname"),
    ("mediawiki", "siteinfo", "base"),
    ("mediawiki", "siteinfo", "namespaces", "namespace"),
    ("mediawiki", "page", "title"),
    ("mediawiki", "page", "ns"),
    ("mediawiki", "page", "id"),
    ("mediawiki", "page", "revision", "model"),
    ("mediawiki", "page", "revision", "text"),
}
PAGE, REDIRECTION = ("mediawiki", "page"), ("mediawiki", "page", "redirect")


@dataclass
class Site:
    """What a dump says of its wiki: its name, where its pages are, its language, and the names of `MEDIA`."""

    dbname: str | None = None
    base: str | None = None
    language: str | None = None
    media: set[str] = field(default_factory=lambda: set(MEDIA))

    def url(self, title: str) -> str | None:
        """A page's address: `base` is that of the main page, beside which all others are."""
        if not self.base:
            return None
        return f"{self.base.rpartition('/')[0]}/{quote(title.replace(' ', '_'), safe='/:,;@!()*~')}"


@dataclass
class WikiPage:
    """A page of a dump; the `text` of one that is too large is empty."""

    values: dict[str, str] = field(default_factory=dict)
    redirect: bool = False
    too_large: bool = False

    def reason(self, namespaces: list[int]) -> str | None:
        """Why it is no document, if it is none."""
        if self.values.get("ns", "0") not in map(str, namespaces):
            return NAMESPACE
        if self.redirect:
            return REDIRECT
        if self.values.get("model", "wikitext") != "wikitext":
            return NOT_WIKITEXT
        return TOO_LARGE if self.too_large else None


def read(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    site = Site()
    for page in read_pages(file, site, config.max_page_bytes):
        if reason := page.reason(config.namespaces):
            yield Rejected(reason)
            continue
        place = f"{file.path}: page '{page.values.get('title', '')}'"
        if not page.values.get("id", "").isdigit() or not page.values.get("title"):
            if ingest.on_bad_record == "fail":
                raise DataError(f"{place}: a page without an id or a title; set ingest.on_bad_record=skip")
            yield Rejected(BAD_RECORD)
            continue
        yield _document(page.values, place, site, file, config, ingest)


def _document(
    page: dict[str, str], place: str, site: Site, file: RawFile, config: SourceConfig, ingest: IngestConfig
) -> Document | Rejected:
    title, text = page["title"], wikitext_to_text(page.get("text", ""), site.media)
    # A page of templates alone has nothing but its title.
    text = f"{title}\n\n{text}" if text else ""
    document_id = f"{site.dbname or file.name}/{page['id']}"
    language = config.language or site.language
    return clean(text, document_id, f"{file.name}:{page['id']}", place, ingest, site.url(title), language)


def read_pages(file: RawFile, site: Site, max_bytes: int) -> Iterator[WikiPage]:
    """The pages of a dump, while `site` gets what stands before them."""
    parser = _Dump(file.path, site, max_bytes)
    try:
        with open_decompressed(file) as stream:
            while block := stream.read(READ_BYTES):
                yield from parser.feed(block)
            yield from parser.feed(b"", end=True)
    except expat.ExpatError as error:
        raise DataError(
            f"{file.path}: not a whole MediaWiki dump ({error}); expected pages-articles.xml, fetch it again"
        ) from None


class _Dump:
    """Turns blocks of XML into pages."""

    def __init__(self, path: str, site: Site, max_bytes: int):
        self._file, self._site, self._max_bytes = path, site, max_bytes
        self._path: tuple[str, ...] = ()
        self._page = WikiPage()
        self._pages: list[WikiPage] = []
        self._text: list[str] | None = None
        self._length = 0
        self._key: str | None = None
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def feed(self, block: bytes, end: bool = False) -> list[WikiPage]:
        self._parser.Parse(block, end)
        pages, self._pages = self._pages, []
        return pages

    def _refuse(self, *_: Any) -> None:
        raise DataError(f"{self._file}: has a document type, which may declare entities; MediaWiki's dumps have none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path:
            if name != "mediawiki":
                raise DataError(f"{self._file}: the root element is <{name}>; expected <mediawiki>")
            self._site.language = attributes.get("xml:lang")
        self._path = (*self._path, name)
        if len(self._path) > 16:
            raise DataError(f"{self._file}: elements are nested {len(self._path)} deep; no MediaWiki dump is")
        if self._path == PAGE:
            self._page = WikiPage()
        elif self._path == REDIRECTION:
            self._page.redirect = True
        elif self._path in FIELDS:
            self._text, self._length, self._key = [], 0, attributes.get("key")

    def _characters(self, text: str) -> None:
        if self._text is None:
            return
        self._length += len(text.encode()) if self._path[-1] == "text" else len(text)
        if self._path[-1] == "text" and self._length > self._max_bytes:
            self._page.too_large, self._text = True, None
        elif self._path[-1] != "text" and self._length > LONGEST_FIELD:
            raise DataError(f"{self._file}: a <{self._path[-1]}> of over {LONGEST_FIELD:,} characters")
        else:
            self._text.append(text)

    def _end(self, name: str) -> None:
        if self._text is not None:
            value, self._text = "".join(self._text), None
            if self._path[1] == "page":
                self._page.values[name] = value
            elif name == "namespace":
                if self._key in (FILE_NAMESPACE, CATEGORY_NAMESPACE):
                    self._site.media.add(value.lower())
            else:
                setattr(self._site, name, value)
        if self._path == PAGE:
            self._pages.append(self._page)
        self._path = self._path[:-1]
