"""Kinds `warc` and `wet`: HTML pages of a web archive's responses, and texts that someone extracted from them.

A record that is no page is counted by what it is instead. A record is known by its file and offset, which is unique
and the same whether the file is read whole or by an index; `id_field` may name a header, as WARC-Record-ID, that is
unique in the source. Memory: one record of at most `max_page_bytes`, compressed and not.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from data_prep.config import ExtractConfig, IngestConfig, SourceConfig
from data_prep.ingest.archives import Damage, read_records
from data_prep.ingest.files import RawFile
from data_prep.ingest.index import ListedFile
from data_prep.ingest.pages import CONTENT_TYPES, HTML, NOT_HTML, PAGE_STATUS, TOO_LARGE, TRUNCATED, Page, unfit
from data_prep.ingest.records import BAD_RECORD, Document, Rejected, clean
from data_prep.ingest.select import Rules, load_rules
from maxlm.errors import DataError

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

# Larger than fastwarc lets headers of HTTP be.
HEADER_BYTES = 2**16
NOT_HTTP = "not HTTP"
Taken = Page | Document | Rejected


def read_pages(
    file: RawFile, config: SourceConfig, ingest: IngestConfig, extract: ExtractConfig
) -> Iterator[Page | Rejected]:
    rules = load_rules(config.select)

    def take(record: "WarcRecord", place: str) -> Page | Rejected:
        return _page(record, f"{file.name}:{place}", config, rules, extract)

    return _records(file, ingest, take)


def read_texts(file: RawFile, config: SourceConfig, ingest: IngestConfig) -> Iterator[Document | Rejected]:
    rules = load_rules(config.select)

    def take(record: "WarcRecord", place: str) -> Document | Rejected:
        return _text(record, f"{file.name}:{place}", f"{file.path}: offset {place}", config, rules, ingest)

    return _records(file, ingest, take)


def _records(file: RawFile, ingest: IngestConfig, take: Callable[["WarcRecord", str], Taken]) -> Iterator[Taken]:
    """What `take` makes of every record of a file, or of those that an index lists; damage meets its policy."""
    for one in _listed(file, take) if isinstance(file, ListedFile) else _all(file, take):
        if not isinstance(one, Damage):
            yield one
        elif ingest.on_bad_record == "fail":
            raise DataError(
                f"{file.path}: offset {one.offset}: {one.problem}; fetch it again, or set ingest.on_bad_record=skip"
            )
        else:
            yield Rejected(BAD_RECORD)


def _all(file: RawFile, take: Callable[["WarcRecord", str], Taken]) -> Iterator[Taken | Damage]:
    with file.open() as stream:
        yield from read_records(stream, take)


def _listed(file: ListedFile, take: Callable[["WarcRecord", str], Taken]) -> Iterator[Taken | Damage]:
    """One record per range: places are offsets in the file, and nothing behind the first record was asked for."""
    for offset, data in file.read_ranges():
        found = next(read_records(io.BytesIO(data), lambda record, _: take(record, str(offset))), None)  # noqa: B023
        if found is None or isinstance(found, Damage):
            found = Damage(offset, found.problem if found else "the file ends before this record of its index")
        yield found


def _page(record: "WarcRecord", origin: str, config: SourceConfig, rules: Rules, extract: ExtractConfig) -> Taken:
    url = record.headers.get("WARC-Target-URI")
    if refused := _unwanted(record, "response", url, rules):
        return refused
    if not record.is_http:
        return Rejected(NOT_HTTP)
    if "WARC-Truncated" in record.headers:
        return Rejected(TRUNCATED)
    if record.content_length > extract.max_page_bytes + HEADER_BYTES:
        return Rejected(TOO_LARGE)
    response = record.reader.read()
    if (http := _parse_http(response, "none")) is None or http.http_headers.status_code is None:
        return Rejected(NOT_HTTP)
    if (status := http.http_headers.status_code) != PAGE_STATUS:
        return Rejected(f"HTTP status {status // 100}xx")
    kind = http.http_content_type
    if kind and kind.strip().lower() not in CONTENT_TYPES:
        return Rejected(NOT_HTML)
    html = _decoded(response, extract.max_page_bytes + 1)
    if problem := unfit(html, extract):
        return Rejected(problem)
    if not kind and not HTML.match(html[:512]):
        return Rejected(NOT_HTML)
    charset = http.http_charset.strip("\"' ") if http.http_charset else None
    identity, language, details = _described(record, origin, config)
    return Page(identity, html, origin, charset, url, language, details)


def _text(
    record: "WarcRecord", origin: str, place: str, config: SourceConfig, rules: Rules, ingest: IngestConfig
) -> Taken:
    url = record.headers.get("WARC-Target-URI")
    if refused := _unwanted(record, "conversion", url, rules):
        return refused
    if reason := rules.refuse_language(record.headers.get("WARC-Identified-Content-Language")):
        return Rejected(reason)
    identity, language, details = _described(record, origin, config)
    return clean(record.reader.read(), identity, origin, place, ingest, url, language, details=details)


def _unwanted(record: "WarcRecord", kind: str, url: str | None, rules: Rules) -> Rejected | None:
    if (found := str(record.record_type)) != kind:
        return Rejected(f"WARC {found}")
    reason = rules.refuse(url)
    return Rejected(reason) if reason else None


def _described(record: "WarcRecord", origin: str, config: SourceConfig) -> tuple[str, str | None, tuple[str, ...]]:
    """Id, language and details of a document; raises OSError, as what cannot be read does, where it has no id."""
    headers = record.headers
    identity = headers.get(config.id_field) if config.id_field else origin
    if not identity:
        raise OSError(f"no header {config.id_field}, which id_field names")
    language = headers.get(config.language_field) if config.language_field else config.language
    date = headers.get("WARC-Date")
    return identity.strip("<>").removeprefix("urn:uuid:"), language, (f"crawled {date}",) if date else ()


def _decoded(response: bytes, limit: int) -> bytes:
    """The body without the encodings that its headers name, at most `limit` bytes of it.

    Archives hold bodies that were decoded before, with headers as they were: what cannot be decoded is taken as it is.
    """
    for encodings in ("all", "transfer", "content", "none"):
        if (http := _parse_http(response, encodings)) is not None:
            with contextlib.suppress(OSError):
                return http.reader.read(limit)
    return b""


def _parse_http(response: bytes, encodings: str) -> "WarcRecord | None":
    """A response with its headers parsed; None where it has none."""
    from fastwarc.warc import WarcRecord

    record = WarcRecord()
    record.is_http = True
    record.set_bytes_content(response)
    try:
        record.parse_http(encodings, HEADER_BYTES, quirks_mode=True)
    except OSError:
        return None
    return record
