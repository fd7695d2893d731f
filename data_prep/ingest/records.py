"""What readers make of raw files: documents, or the reason why a record is not one."""

import codecs
import re
from dataclasses import dataclass
from typing import Any

from data_prep.config import IngestConfig, SourceConfig
from maxlm.errors import DataError

INVALID_UTF8, EMPTY, BAD_RECORD = "invalid UTF-8", "empty", "bad record"
REPLACED = "invalid UTF-8 replaced"
# Of a document as it is read, in bytes: it is in memory whole.
LONGEST_DOCUMENT = 2**28
# Code points that UTF-8 does not have, but for those that stand for an undecodable byte (U+DC80..U+DCFF).
SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True)
class Document:
    """`text` is valid UTF-8 and not blank; `id` is unique in its source, `origin` says where the text was read.

    `notes` are counted by what they say; `origin`, `details` and `notes` are written into the document's steps.
    """

    id: str
    text: bytes
    origin: str
    url: str | None = None
    language: str | None = None
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """Records that are no documents; they are counted by the reason."""

    reason: str
    count: int = 1


def clean(
    text: str | bytes,
    document_id: str,
    origin: str,
    place: Any,
    ingest: IngestConfig,
    url: Any = None,
    language: Any = None,
    notes: tuple[str, ...] = (),
    details: tuple[str, ...] = (),
) -> Document | Rejected:
    """A document by the policy on invalid UTF-8, unless its text is blank; `place` names it in messages."""
    try:
        data = text.encode() if isinstance(text, str) else text
        decoded = text if isinstance(text, str) else codecs.decode(data, "utf-8")
    except UnicodeError as error:
        if ingest.on_invalid_utf8 == "fail":
            raise DataError(
                f"{place}: not UTF-8 at position {error.start}; correct it, or set ingest.on_invalid_utf8=replace"
            ) from None
        if ingest.on_invalid_utf8 == "skip":
            return Rejected(INVALID_UTF8)
        decoded, notes = replace_invalid(text), (REPLACED, *notes)
        data = decoded.encode()
    if not decoded.strip():
        return Rejected(EMPTY)
    return Document(document_id, data, origin, to_text(url), to_text(language), notes, details)


def read_record(
    record: Any, number: int, path: str, name: str, config: SourceConfig, ingest: IngestConfig
) -> Document | Rejected:
    """A document of a record with named fields; one without text meets the policy on bad records.

    `number` is its line or row in the file at `path`, which is called `name` below the source's path.
    """
    place, origin = f"{path}:{number}", f"{name}:{number}"
    if problem := _problem(record, config):
        if ingest.on_bad_record == "fail":
            raise DataError(f"{place}: {problem}; correct it, or set ingest.on_bad_record=skip")
        return Rejected(BAD_RECORD)
    document_id = to_text(record[config.id_field]) if config.id_field else origin
    url = record.get(config.url_field) if config.url_field else None
    language = record.get(config.language_field) if config.language_field else config.language
    return clean(record[config.text_field or "text"], document_id, origin, place, ingest, url, language)


def _problem(record: Any, config: SourceConfig) -> str | None:
    """Why a record is not a document, if it is not."""
    if isinstance(record, ValueError | RecursionError):
        return f"not JSON ({record})"
    if not isinstance(record, dict):
        return f"expected an object, found a {type(record).__name__}"
    text_field = config.text_field or "text"
    if not isinstance(record.get(text_field), str | bytes):
        return f"no text in '{text_field}'; the record has {', '.join(record) or 'nothing'}"
    if config.id_field and not isinstance(record.get(config.id_field), str | bytes | int):
        return f"no id in '{config.id_field}'; the record has {', '.join(record)}"
    return None


def replace_invalid(text: str | bytes) -> str:
    """Put U+FFFD in the place of what is not UTF-8; a str has it as lone surrogates, which JSON can escape."""
    if isinstance(text, str):
        text = SURROGATES.sub("\ufffd", text).encode("utf-8", "surrogateescape")
    return text.decode("utf-8", "replace")


def to_text(value: Any) -> str | None:
    """A value beside the text, such as an id, as valid text."""
    return None if value is None else replace_invalid(value if isinstance(value, bytes) else str(value))
