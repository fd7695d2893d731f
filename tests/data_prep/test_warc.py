"""Pages of web archives: which records are read, how bodies are decoded, and what damage costs."""

import gzip
import io
import tracemalloc

import pyarrow as pa
import pytest
from web_archives import html, ingest, members, warc_record

from data_prep.config import ExtractConfig, IngestConfig, SourceConfig
from data_prep.ingest.archives import Damage, read_records
from data_prep.ingest.files import find_files
from data_prep.ingest.pages import Page
from data_prep.ingest.records import Rejected
from data_prep.ingest.warc import read_pages
from maxlm.errors import DataError

SKIP = {"on_bad_record": "skip"}


def pages(count=4):
    # Long and incompressible enough that damage falls into the middle of a member.
    return [
        warc_record(html(f"page {i} " + " ".join(str((i + 7) ** k) for k in range(1, 200))), i) for i in range(count)
    ]


def texts(rows):
    return [row["text"] for row in rows]


def starts(parts):
    return [sum(map(len, parts[:i])) for i in range(len(parts) + 1)]


def read(path, policy=None):
    """The pages of a file, without extraction."""
    config = SourceConfig(kind="warc", path=str(path))
    settings = IngestConfig(sources={"web": config}, **(policy or {}))
    (file,) = find_files("web", config)
    return list(read_pages(file, config, settings, ExtractConfig()))


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst", "one.warc.gz"])
def test_every_compression_gives_the_same_pages(tmp_path, name):
    records = pages(3)
    parts = {
        "a.warc": records,
        "a.warc.gz": members(records),
        "a.warc.zst": [pa.compress(record, "zstd", asbytes=True) for record in records],
        "one.warc.gz": members([b"".join(records)]),
    }[name]
    write(tmp_path / name, b"".join(parts))
    rows, dropped = ingest(tmp_path / "work", tmp_path, kind="warc")
    places = ["0", "0#1", "0#2"] if len(parts) == 1 else [str(start) for start in starts(parts)[:-1]]
    assert [row["id"] for row in rows] == sorted(f"web/{name}:{place}" for place in places) and not dropped
    assert {text[:6] for text in texts(rows)} == {"page 0", "page 1", "page 2"}
    assert {row["url"] for row in rows} == {f"http://www.example.org/{i}" for i in range(3)}
    steps = dict(next(row for row in rows if row["text"].startswith("page 0"))["steps"])
    assert steps["ingest"] == f"{name}:0; crawled 2024-05-01T00:00:00Z"


def test_a_header_can_be_the_id_and_must_be_there(tmp_path):
    write(tmp_path / "a.warc", b"".join(pages(2)))
    rows, _ = ingest(tmp_path / "work", tmp_path, kind="warc", id_field="WARC-Record-ID")
    assert [row["id"] for row in rows] == ["web/00000000", "web/00000001"]
    write(tmp_path / "a.warc", pages(1)[0] + warc_record(html("x"), WARC_Record_ID=""))
    with pytest.raises(DataError, match="a.warc: offset [1-9].*no header WARC-Record-ID"):
        ingest(tmp_path / "work", tmp_path, kind="warc", id_field="WARC-Record-ID")


def test_what_is_no_page_is_counted_by_reason(tmp_path):
    def http(status="200 OK", kind="text/html"):
        return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n".encode()

    records = [
        (warc_record(html("page")), None),
        (warc_record(html("page"), http=http(kind="Application/XHTML+XML; charset=utf-8")), None),
        (warc_record(html("page"), http=b"HTTP/1.1 200 OK\r\n"), None),  # no Content-Type, but HTML
        (warc_record(b"software: x\r\n", kind="warcinfo", http=None), "WARC warcinfo"),
        (warc_record(b"", kind="request"), "WARC request"),
        (warc_record(b"languages: x", kind="metadata", http=None), "WARC metadata"),
        (warc_record(b"", kind="revisit"), "WARC revisit"),
        (warc_record(b"", kind="something"), "WARC unknown"),
        (warc_record(b"example.org", http=None, Content_Type="text/dns"), "not HTTP"),
        (warc_record(b"no headers at all", http=b""), "not HTTP"),
        (warc_record(html("x"), http=http("404 Not Found")), "HTTP status 4xx"),
        (warc_record(html("x"), http=http("301 Moved")), "HTTP status 3xx"),
        (warc_record(html("x"), http=http("206 Partial")), "HTTP status 2xx"),
        (warc_record(html("x"), http=http(kind="image/png")), "not HTML"),
        (warc_record(b"{}", http=b"HTTP/1.1 200 OK\r\n"), "not HTML"),
        (warc_record(b"%PDF-1.7 ..."), "not HTML"),
        (warc_record(html("x"), WARC_Truncated="length"), "truncated"),
        (warc_record(b""), "empty"),
        (warc_record(html("x" * 5000)), "over max_page_bytes"),
        (warc_record(html("x" * 90000)), "over max_page_bytes"),
        (warc_record(html("")), "no text extracted"),
    ]
    write(tmp_path / "a.warc.gz", b"".join(members([record for record, _ in records])))
    rows, dropped = ingest(tmp_path / "work", tmp_path, kind="warc", extract={"max_page_bytes": 4000})
    reasons = [reason for _, reason in records if reason]
    assert texts(rows) == ["page"] * 3
    assert dropped == {reason: reasons.count(reason) for reason in reasons}


CHINESE, FRENCH = "你好，世界。这是一个网页的正文，用来检查字符编码。" * 4, "Où est le café ? Là-bas, près de l'église."
META = '<html><head><meta charset="{}"></head><body><p>{}</p></body></html>'


@pytest.mark.parametrize(
    "header, body, expected",
    [
        ("utf-8", html(CHINESE), CHINESE),
        ("iso-8859-1", html(CHINESE), CHINESE),  # a server's default, contradicted by valid UTF-8
        ("gbk", f"<p>{CHINESE}</p>".encode("gbk"), CHINESE),
        ('"GB2312"', f"<p>{CHINESE}</p>".encode("gbk"), CHINESE),
        (None, META.format("gbk", CHINESE).encode("gbk"), CHINESE),
        (None, f"<p>{CHINESE}</p>".encode("gbk"), CHINESE),
        (None, META.format("big5", "你好世界").encode("big5"), "你好世界"),
        ("latin-1", f"<p>{FRENCH}</p>".encode("latin-1"), FRENCH),
        (None, META.format("iso-8859-1", FRENCH).encode("latin-1"), FRENCH),
        (None, f"<html><p>{CHINESE}</p>".encode("utf-16"), CHINESE),
        ("utf-16be", f"<p>{FRENCH}</p>".encode("utf-16-be"), FRENCH),
        ("iso-2022-jp", "<p>こんにちは世界</p>".encode("iso2022_jp"), "こんにちは世界"),
        (None, b"\xef\xbb\xbf" + html(FRENCH), FRENCH),
        ("no-such-charset", f"<p>{FRENCH}</p>".encode("cp1252"), FRENCH),
        ("utf-8", b"<p>caf\xe9</p>", "café"),
        ("utf-8", b"<p>one\0two</p>", "one"),
    ],
)
def test_charsets_by_header_meta_mark_and_detection(tmp_path, header, body, expected):
    kind = b"text/html" + (f"; charset={header}".encode() if header else b"")
    write(tmp_path / "a.warc", warc_record(body, http=b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\n"))
    rows, _ = ingest(tmp_path / "work", tmp_path, kind="warc", extract={"resiliparse": {"main_content": False}})
    assert texts(rows)[0].startswith(expected)


def encoded(encoding, body, name="Content-Encoding"):
    return warc_record(body, http=f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{name}: {encoding}\r\n".encode())


def chunked(body):
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize(
    "record, expected",
    [
        (encoded("gzip", gzip.compress(html("text"))), "text"),
        (encoded("gzip, gzip", gzip.compress(gzip.compress(html("text")))), "text"),
        (encoded("chunked", chunked(html("text")), "Transfer-Encoding"), "text"),
        (encoded("gzip", html("text")), "text"),  # decoded by the crawler, with the headers as they were
        (encoded("br", html("text")), "text"),
        (encoded("chunked", html("text"), "Transfer-Encoding"), "text"),
        (encoded("gzip\r\nTransfer-Encoding: chunked", chunked(gzip.compress(html("text")))), "text"),
        (encoded("gzip\r\nTransfer-Encoding: chunked", gzip.compress(html("text"))), "text"),
        (encoded("no-such-encoding", html("text")), "text"),
        (encoded("gzip", gzip.compress(gzip.compress(html("text")))), None),
    ],
)
def test_bodies_are_decoded_as_far_as_they_are_encoded(tmp_path, record, expected):
    """A body that cannot be decoded costs none of the records behind it."""
    write(tmp_path / "a.warc.gz", b"".join(members([record, warc_record(html("next"), 1)])))
    rows, dropped = ingest(tmp_path / "work", tmp_path, kind="warc")
    assert texts(rows) == ([expected, "next"] if expected else ["next"])
    assert dropped == ({} if expected else {"not HTML": 1})


def test_a_small_body_that_becomes_a_giant_page_is_not_unpacked(tmp_path):
    bomb = gzip.compress(gzip.compress(b"<p>" + bytes(2**28)))
    path = write(tmp_path / "a.warc", encoded("gzip, gzip", bomb))
    tracemalloc.start()
    try:
        assert read(path) == [Rejected("over max_page_bytes")]
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def gz(function):
    """Damage to an archive of four gzip members, where they begin being told."""
    return lambda records: function(b"".join(members(records)), starts(members(records)))


DAMAGED = {
    "cut in the last body": (gz(lambda data, at: data[:-60]), [0, 1, 2], 1),
    "cut in the last headers": (gz(lambda data, at: data[: at[3] + 60]), [0, 1, 2], 1),
    "cut in the last gzip header": (gz(lambda data, at: data[: at[3] + 5]), [0, 1, 2], 1),
    "body of the second": (gz(lambda data, at: flipped(data, at[2] - 300)), [0, 2, 3], 1),
    "headers of the second": (gz(lambda data, at: flipped(data, at[1] + 30)), [0, 2, 3], 1),
    "start of the second": (gz(lambda data, at: flipped(data, at[1])), [0, 2, 3], 1),
    "checksum of the second": (gz(lambda data, at: flipped(data, at[2] - 6)), [0, 2, 3], 1),
    "second and third": (gz(lambda data, at: flipped(flipped(data, at[2] - 300), at[3] - 300)), [0, 3], 2),
    "the first": (gz(lambda data, at: flipped(data, 40)), [1, 2, 3], 1),
    "too long a Content-Length": (
        lambda records: b"".join(members([warc_record(html("x"), length=9999), *records])),
        [0, 1, 2, 3],
        1,
    ),
    "too short a Content-Length": (
        lambda records: b"".join(members([warc_record(html("x"), length=60), *records])),
        [0, 1, 2, 3],
        1,
    ),
    "no Content-Length": (
        lambda records: b"".join(members([warc_record(html("x")).replace(b"Content-Length", b"X"), *records])),
        [0, 1, 2, 3],
        1,
    ),
    "plain, cut": (lambda records: b"".join(records)[:-100], [0, 1, 2], 1),
    "plain, cut in headers": (lambda records: b"".join(records[:3]) + records[3][:40], [0, 1, 2], 1),
    "plain, too long": (lambda records: b"".join([warc_record(html("x"), length=700), *records]), [0, 1, 2, 3], 1),
    "plain, too short": (lambda records: b"".join([warc_record(html("x"), length=60), *records]), [0, 1, 2, 3], 1),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_costs_the_records_that_it_lies_in(tmp_path, case):
    damage, left, bad = DAMAGED[case]
    path = write(tmp_path / "a.warc", damage(pages(4)))
    with pytest.raises(DataError, match=r"a\.warc: offset \d+: .*on_bad_record=skip"):
        read(path)
    found = read(path, SKIP)
    assert [page.url[-1] for page in found if isinstance(page, Page)] == [str(number) for number in left]
    assert [one for one in found if not isinstance(one, Page)] == [Rejected("bad record")] * bad
    assert all(page.html.endswith(b"</html>") for page in found if isinstance(page, Page))


@pytest.mark.parametrize(
    "data",
    [b"hello world\n" * 100, gzip.compress(b"hello"), gzip.compress(members(pages(1))[0]), b"\0" * 300, b"W"],
    ids=["text", "packed text", "packed twice", "zeros", "one byte"],
)
def test_what_is_no_archive_is_named(tmp_path, data):
    path = write(tmp_path / "a.warc.gz", data)
    with pytest.raises(DataError, match="a.warc.gz: offset 0: not a record of a web archive"):
        read(path)
    assert read(path, SKIP)[0] == Rejected("bad record")


def test_an_empty_archive_has_no_pages(tmp_path):
    path = write(tmp_path / "a.warc.gz", b"")
    assert ingest(tmp_path / "work", path, kind="warc") == ([], {})


class Failing(io.BytesIO):
    def read(self, size=-1):
        if self.tell() > 2000:
            raise OSError(5, "Input/output error")
        return super().read(min(size, 1000))


@pytest.mark.parametrize("pack", [b"".join, lambda records: b"".join(members(records))])
def test_a_disk_that_fails_is_not_taken_for_damage(pack):
    with pytest.raises(OSError, match="Input/output error"):
        list(read_records(Failing(pack(pages(9))), lambda record, place: place))


def test_records_are_read_one_at_a_time(tmp_path):
    """The memory of reading does not grow with the archive: the stream is never far ahead of what was taken."""
    stream = io.BytesIO(b"".join(members(pages(2000))))
    places = read_records(stream, lambda record, place: (int(place), stream.tell()))
    assert max(ahead - offset for offset, ahead in places) < 2**19 < len(stream.getvalue())


def test_damage_ends_at_the_next_record_however_far_it_is():
    """The scan goes through blocks of 1 MB; record starts on their boundaries are found."""
    good = members(pages(1))[0]
    for shift in range(-12, 3):
        noise = b"\x1f\x8b\x08" + b"n" * (2**20 + shift - 3)
        found = list(read_records(io.BytesIO(noise + good), lambda record, place: place))
        assert isinstance(found[0], Damage) and found[1:] == [str(len(noise))], shift


def test_wet_texts(tmp_path):
    def text(number, body, language="eng"):
        return warc_record(body, number, "conversion", None, WARC_Identified_Content_Language=language)

    records = [
        warc_record(b"software: x\r\n", kind="warcinfo", http=None),
        text(1, "Hello\nworld — 你好".encode(), "eng,zho"),
        text(2, b""),
        text(3, b"caf\xe9"),
    ]
    write(tmp_path / "a.warc.wet.gz", b"".join(members(records)))
    rows, dropped = ingest(tmp_path / "work", tmp_path, kind="wet", language_field="WARC-Identified-Content-Language")
    assert texts(rows) == ["Hello\nworld — 你好", "caf\ufffd"] and rows[0]["language"] == "eng,zho"
    assert rows[0]["url"] == "http://www.example.org/1" and dropped == {"WARC warcinfo": 1, "empty": 1}
    assert "crawled 2024" in dict(rows[1]["steps"])["ingest"]
    with pytest.raises(DataError, match="a.warc.wet.gz: offset [0-9]+: not UTF-8 at position 3"):
        ingest(tmp_path / "work", tmp_path, {"on_invalid_utf8": "fail"}, kind="wet")


def test_a_folder_of_html(tmp_path):
    for name, body in {"a.html": html("one"), "b/c.htm": html("two"), "d.xhtml": html("three"), "e.txt": b"x"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, body)
    write(tmp_path / "giant.html", b"<p>" + b"x" * 5000)
    write(tmp_path / "none.html", b"")
    rows, dropped = ingest(tmp_path / "work", tmp_path, kind="html", language="en", extract={"max_page_bytes": 4000})
    assert [(row["id"], row["text"], row["language"]) for row in rows] == [
        ("web/a.html", "one", "en"), ("web/b/c.htm", "two", "en"), ("web/d.xhtml", "three", "en"),
    ]  # fmt: skip
    assert dropped == {"empty": 1, "over max_page_bytes": 1}


def test_keys_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="text_field is for the kind jsonl or parquet, the kind is warc"):
        SourceConfig(kind="warc", path="x", text_field="y")
    with pytest.raises(ValueError, match="select is for the kind warc or wet, the kind is jsonl"):
        SourceConfig(kind="jsonl", path="x", select={"deny_hosts": ["y"]})
