"""HTML -> text: what runs in the extracting process, one page at a time."""

import re
from collections.abc import Callable
from functools import partial

from data_prep.config import ExtractConfig

# text = extract(html, charset): `charset` is what the transport says, or None.
Extract = Callable[[bytes, str | None], str]
BYTE_ORDER_MARKS = re.compile(rb"\xef\xbb\xbf|\xff\xfe|\xfe\xff")
# Bytes that tell that a valid UTF-8 text may be another encoding all the same: those of ISO-2022 and of UTF-16.
ESCAPE, NUL = b"\x1b", b"\0"


def make_extractor(config: ExtractConfig) -> Extract:
    """Raises ImportError or ValueError where it cannot work, with the reason."""
    extract = {"resiliparse": _resiliparse, "trafilatura": _trafilatura}[config.extractor](config)
    return lambda html, charset: extract(decode(html, charset))


def version(extractor: str) -> str:
    """The installed version of an extractor's library, whose rules decide what text is."""
    from importlib.metadata import version

    return version(extractor)


def decode(html: bytes, charset: str | None) -> str:
    """A page as text. What is valid UTF-8 is that, as hardly a text in another encoding is (RFC 3629, section 1).

    Else a byte order mark, the transport, the page itself and detection name the encoding, in this order, as the HTML
    standard has it. What is invalid in the encoding becomes U+FFFD.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    if ESCAPE not in html and NUL not in html:
        try:
            return html.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    encoding = None
    if mark := BYTE_ORDER_MARKS.match(html):
        encoding = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(mark[0], "utf-8")
    elif charset is not None:
        encoding = map_encoding_to_html5(charset, fallback_utf8=False)
    if encoding is None:
        encoding = detect_encoding(html, from_html_meta=True)
    return bytes_to_str(html, encoding or "utf-8", errors="replace")


def _resiliparse(config: ExtractConfig) -> Callable[[str], str]:
    from resiliparse.extract.html2text import extract_plain_text

    extract = partial(extract_plain_text, **config.resiliparse.model_dump())
    extract("<p>")
    return extract


def _trafilatura(config: ExtractConfig) -> Callable[[str], str]:
    try:
        from trafilatura import extract
    except ImportError as error:
        raise ImportError(f"trafilatura cannot be loaded ({error}): pip install 'maxlm[trafilatura]'") from None
    options = config.trafilatura
    arguments = {
        "fast": options.fast,
        "favor_precision": options.favour == "precision",
        "favor_recall": options.favour == "recall",
        "include_comments": options.comments,
        "include_tables": options.tables,
        "include_links": options.links,
    }
    return lambda html: extract(html, **arguments) or ""
