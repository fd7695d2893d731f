"""Selection of a crawl by rules and by an index: what is left out is counted, and only what is listed is read."""

import gzip
import json
import os

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_server import ObjectServer
from rich.console import Console
from web_archives import html, ingest, members, warc_record

from data_prep.config import Pipeline, SelectConfig
from data_prep.ingest.files import RawFile
from data_prep.ingest.select import host_of, load_rules, rules_key
from data_prep.pipeline import run
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError


def refuse(url, **lists):
    return load_rules(SelectConfig(**lists)).refuse(url)


@pytest.mark.parametrize(
    "url, host",
    [
        ("http://www.Example.ORG/path?q=http://other.org/", "www.example.org"),
        ("https://user:pass@example.org:8080/x", "example.org"),
        ("https://example.org.", "example.org"),
        ("https://example.org?x", "example.org"),
        ("http://[2001:db8::1]:80/x", "[2001:db8::1]"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
        ("http://example.org\\@other.org/", "other.org"),
        ("dns:example.org", ""),
        ("<urn:x>", ""),
        ("", ""),
    ],
)
def test_hosts_of_addresses(url, host):
    assert host_of(url) == host


@pytest.mark.parametrize(
    "host, domain, named, below",
    [
        ("example.org", True, True, False),
        ("www.example.org", True, False, True),
        ("a.b.example.org", True, False, True),
        ("notexample.org", False, False, False),
        ("example.org.evil.com", False, False, False),
        ("org", False, False, False),
    ],
)
def test_domains_hosts_and_wildcards(host, domain, named, below):
    url = f"https://{host}/x"
    for name, entry, matches in (
        ("domains", "Example.org", domain),
        ("hosts", "example.org", named),
        ("hosts", "*.example.org", below),
    ):
        assert (refuse(url, **{f"allow_{name}": [entry, "other.net"]}) is None) == matches
        assert refuse(url, **{f"deny_{name}": [entry]}) == (f"in deny_{name}" if matches else None)


label = st.text("ab", min_size=1, max_size=2)


@settings(derandomize=True, deadline=None)
@given(st.lists(label, min_size=1, max_size=4), st.lists(st.lists(label, min_size=1, max_size=3), min_size=1))
def test_domains_are_suffixes_of_whole_labels(host, domains):
    url = "http://" + ".".join(host)
    expected = any(host[-len(domain) :] == domain for domain in domains)
    entries = [".".join(domain) for domain in domains]
    assert (refuse(url, allow_domains=entries) is None) == expected
    below = any(host[-len(domain) :] == domain and len(host) > len(domain) for domain in domains)
    assert (refuse(url, deny_hosts=["*." + entry for entry in entries]) is not None) == below


def test_patterns_and_lists_of_every_kind_must_agree():
    lists = {"allow_urls": ["/wiki/", "(?i)ARTICLE"], "deny_urls": [r"\.pdf$", r"(.)\1{9}"], "allow_domains": ["a.org"]}
    assert refuse("https://a.org/wiki/x", **lists) is None and refuse("https://b.a.org/Article", **lists) is None
    assert refuse("https://a.org/x", **lists) == "not in allow_urls"
    assert refuse("https://a.org/wiki/x.pdf", **lists) == "in deny_urls"
    assert refuse("https://a.org/wiki/aaaaaaaaaa", **lists) == "in deny_urls"
    assert refuse("https://b.org/wiki/x", **lists) == "not in allow_domains"
    assert refuse(None, **lists) == "not in allow_urls" and refuse(None, deny_domains=["a.org"]) is None


def test_lists_may_lie_in_files_whose_content_counts(tmp_path):
    path = tmp_path / "domains.txt"
    path.write_text("# blocked\n\n spam.com \nads.net\n")
    lists = {"deny_domains": [f"file:{path}", "more.org"]}
    assert refuse("http://x.ads.net/", **lists) and refuse("http://more.org", **lists)
    assert not refuse("http://ads.com/", **lists)
    before = rules_key(SelectConfig(**lists))
    assert before == rules_key(SelectConfig(deny_domains=["spam.com", "ads.net", "more.org"]))
    path.write_text("ads.com\n")
    assert refuse("http://ads.com/", **lists) and not refuse("http://ads.net/", **lists)
    assert rules_key(SelectConfig(**lists)) != before


@pytest.mark.parametrize(
    "name, entry, message",
    [
        ("deny_urls", "(", r"list.txt:2: '\(' is not a regular expression"),
        ("deny_domains", "http://x.org/", "list.txt:2: 'http://x.org/' is not a domain"),
        ("allow_domains", "*.x.org", r"list.txt:2: '\*.x.org' is not a domain"),
        ("deny_hosts", "a.*.org", r"list.txt:2: 'a.\*.org' is not a host"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, name, entry, message):
    (tmp_path / "list.txt").write_text(f"# a comment\n{entry}\n")
    with pytest.raises(ConfigError, match=message):
        load_rules(SelectConfig(**{name: [f"file:{tmp_path / 'list.txt'}"]}))
    with pytest.raises(ConfigError, match=f"select.{name}: .*nowhere cannot be read"):
        load_rules(SelectConfig(**{name: ["file:/nowhere"]}))


def test_a_bad_pattern_in_the_configuration_is_named():
    with pytest.raises(ConfigError, match=r"allow_urls: '\[' is not a regular expression"):
        validate({"allow_urls": ["["]}, SelectConfig, "x")


def test_rules_apply_to_whole_archives(tmp_path):
    urls = ["http://a.org/x", "http://www.a.org/y", "http://b.org/x", "http://a.org/x?print"]
    responses = [warc_record(html(url), i, url=url) for i, url in enumerate(urls)]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(members(responses)))
    select = {"allow_domains": ["a.org"], "deny_urls": ["print"]}
    rows, dropped = ingest(tmp_path / "work", tmp_path, kind="warc", select=select)
    assert sorted(row["url"] for row in rows) == urls[:2]
    assert dropped == {"not in allow_domains": 1, "in deny_urls": 1}
    texts = [
        warc_record(url.encode(), i, "conversion", None, url, WARC_Identified_Content_Language=languages)
        for i, (url, languages) in enumerate(zip(urls, ["eng", "zho,eng", "eng", ""], strict=True))
    ]
    (tmp_path / "a.warc.wet.gz").write_bytes(b"".join(members(texts)))
    select = {"allow_domains": ["a.org"], "languages": ["eng"]}
    rows, dropped = ingest(tmp_path / "work", tmp_path, kind="wet", select=select)
    assert [row["url"] for row in rows] == urls[:1]
    assert dropped == {"not in allow_domains": 1, "not in languages": 2}


def wanted(lines):
    """The ranges of bytes that lines of an index name."""
    entries = [json.loads(line.split(" ", 2)[2]) for line in lines]
    return [(int(entry["offset"]), int(entry["offset"]) + int(entry["length"])) for entry in entries]


class Crawl:
    """Three archives of 30 pages, and the lines of an index of them as Common Crawl publishes it."""

    def __init__(self, root):
        self.root, self.lines = root, []
        self.names = [f"crawl-data/CC-MAIN-2024-01/segments/{i}/warc/CC-{i}.warc.gz" for i in range(3)]
        for file, name in enumerate(self.names):
            offset, parts = 0, []
            for number in range(30):
                url = f"http://{'ab'[number % 2]}.org/{file}/{number}"
                parts += members([warc_record(html(f"text of {url}"), file * 100 + number, url=url)])
                self.lines.append(self.line(url, name, offset, len(parts[-1])))
                offset += len(parts[-1])
            path = root / name
            path.parent.mkdir(parents=True)
            path.write_bytes(b"".join(parts))

    @staticmethod
    def line(url, filename, offset, length, **values):
        entry = {
            "url": url, "mime": "text/html", "mime-detected": "text/html", "status": "200", "digest": "X",
            "length": str(length), "offset": str(offset), "filename": filename, "languages": "eng,fra",
        }  # fmt: skip
        return f"org,x)/ 20240101000000 {json.dumps(entry | values)}\n"

    def write(self, lines, name="cdx-00000.gz"):
        """As many gzip members as there are hundreds of lines."""
        parts = [gzip.compress("".join(lines[i : i + 20]).encode()) for i in range(0, len(lines), 20)]
        (self.root / name).write_bytes(b"".join(parts))
        return str(self.root / name)


@pytest.fixture
def crawl(tmp_path):
    return Crawl(tmp_path / "cc")


def prepare(crawl, policy=None, path=None, expect=None, **select):
    """The rows, the dropped of the funnel, the keys of tasks and what was printed, of a run up to ingest."""
    source = {"kind": "warc", "path": str(path or crawl.root), "select": select}
    values = {
        "name": "test",
        "output": str(crawl.root.parent / "out"),
        "workers": 1,
        "ingest": {"sources": {"web": source}, "shard_bytes": 2500, **(policy or {})},
        "tokenizer": {"algorithm": "byte_bpe", "vocab_size": 300},
    }
    config = validate(values, Pipeline, "test")
    for old in config.work.glob("*/*/record.json"):
        old.unlink()
    with open(os.devnull, "w") as sink:
        console = Console(record=True, width=200, file=sink)
        run(config, console, until="ingest")
    import pyarrow.parquet as pq

    rows, keys = [], set()
    for record in config.work.glob("ingest/*/record.json"):
        keys.add(record.parent.name)
        for name in json.loads(record.read_text())["files"]:
            rows += pq.read_table(record.parent / name).to_pylist()
    funnel = {row["stage"]: row for row in json.loads((config.work / "funnel.json").read_text())}
    dropped = {reason: amount["documents"] for reason, amount in funnel["ingest"]["dropped"].items()}
    return sorted(rows, key=lambda row: row["url"]), dropped, keys, console.export_text()


def test_an_index_gives_the_documents_that_whole_archives_give(crawl):
    whole, _, _, _ = prepare(crawl, deny_urls=["nothing"])
    listed, dropped, _, printed = prepare(crawl, index=crawl.write(crawl.lines))
    assert listed and [row["id"] for row in listed] == [row["id"] for row in whole] and not dropped
    assert [row["text"] for row in listed] == [f"text of {row['url']}" for row in listed]
    assert "web/crawl-data/CC-MAIN-2024-01/segments/0/warc/CC-0.warc.gz:0" in {row["id"] for row in listed}
    assert "index: 0 of 1 index files up to date, 1 made" in printed


def test_rules_apply_to_the_lines_of_an_index(crawl):
    lines = crawl.lines[:30]
    url, name = "http://a.org/extra", crawl.names[0]
    lines += [
        Crawl.line(url, name, 0, 10, status="404"),
        Crawl.line(url, name, 0, 10, **{"mime-detected": "application/pdf"}),
        Crawl.line(url, name, 0, 10, languages="fra,eng"),
        Crawl.line(url, name, 0, 10, truncated="length"),
        Crawl.line(url, "crawl-data/elsewhere.warc.gz", 0, 10),
        lines[0],
    ]
    rows, dropped, _, printed = prepare(
        crawl, index=crawl.write(lines), allow_domains=["a.org"], deny_urls=["/0/4$"], languages=["eng"]
    )
    assert [row["url"] for row in rows] == sorted(f"http://a.org/0/{n}" for n in range(0, 30, 2) if n != 4)
    assert dropped == {
        "HTTP status 4xx": 1, "not HTML": 1, "not in languages": 1, "truncated": 1, "in deny_urls": 1,
        "not in allow_domains": 15, "archive of an index line not found": 1, "repeated index line": 1,
    }  # fmt: skip
    assert "warning: source 'web': 1 lines of its index name archives that are not there" in printed


def test_only_what_is_listed_is_read(crawl, monkeypatch):
    lines, read, original = crawl.lines[3:9:2], [], RawFile.read_range
    path = crawl.root / "some.cdxj"
    path.write_text("".join(lines))
    opened = RawFile.open
    monkeypatch.setattr(
        RawFile, "open", lambda file: opened(file) if file.name == "some.cdxj" else pytest.fail(f"{file.name} opened")
    )
    monkeypatch.setattr(
        RawFile, "read_range", lambda file, *range: read.append((file.name, *range)) or original(file, *range)
    )
    rows, _, _, _ = prepare(crawl, index=str(path))
    assert read == [(crawl.names[0], *range) for range in wanted(lines)] and len(rows) == 3


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_crawl_in_a_store_is_read_in_ranges(crawl, monkeypatch, kind):
    """Archives are not looked for, as a crawl has 90,000 of them; several ranges are on their way at a time."""
    pytest.importorskip({"http": "aiohttp", "s3": "s3fs"}[kind])
    path = crawl.write(crawl.lines)
    local, _, _, _ = prepare(crawl, index=path)
    with ObjectServer(crawl.root.parent) as server:
        options = {"endpoint_url": server.url, "key": "key", "secret": "secret"}
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        server.latency = 0.01
        place = {"http": f"{server.url}/cc/", "s3": "s3://bucket/cc"}[kind]
        remote, dropped, _, _ = prepare(crawl, path=place, index=path)
        asked = sorted(request.range for request in server.requests)
    assert [(row["id"], row["text"]) for row in remote] == [(row["id"], row["text"]) for row in local] and not dropped
    assert asked == sorted((start, stop - 1) for start, stop in wanted(crawl.lines)) and server.most_at_once > 1


def test_archives_are_found_by_their_name_alone(crawl):
    flat = crawl.root / "flat"
    flat.mkdir()
    (flat / "CC-1.warc.gz").write_bytes((crawl.root / crawl.names[1]).read_bytes())
    rows, dropped, _, _ = prepare(crawl, path=flat, index=crawl.write(crawl.lines))
    assert len(rows) == 30 and dropped == {"archive of an index line not found": 60}
    assert rows[0]["id"].startswith("web/CC-1.warc.gz:")
    with pytest.raises(DataError, match="none of the 30 lines of its index is wanted and names an archive in .*flat"):
        prepare(crawl, path=flat, index=crawl.write(crawl.lines[:30]))


def test_a_changed_line_redoes_the_tasks_of_its_archive_alone(crawl):
    _, _, before, _ = prepare(crawl, index=crawl.write(crawl.lines))
    _, _, after, _ = prepare(crawl, index=crawl.write(crawl.lines[:-1]))
    assert len(before) > 1 and len(before - after) == 1
    # Another record of the same length is another line.
    at = {start: stop - start for start, stop in wanted(crawl.lines[:30])}
    starts = sorted(at, key=lambda start: (at[start], start))
    first, second = next((a, b) for a, b in zip(starts, starts[1:], strict=False) if at[a] == at[b])
    one, other = (
        prepare(crawl, index=crawl.write([Crawl.line("http://a.org/", crawl.names[0], start, at[start])]))
        for start in (first, second)
    )
    assert one[2] != other[2] and one[0][0]["text"] != other[0][0]["text"]
    # The order of lines and their distribution over index files change nothing.
    crawl.write(crawl.lines[::-1][:40], "cdx-00001.gz")
    crawl.write(crawl.lines[:50], "cdx-00000.gz")
    _, _, again, _ = prepare(crawl, index=str(crawl.root))
    assert again == before


@pytest.mark.parametrize(
    "line, problem",
    [
        ("nonsense", "expected a key"),
        ("a b {", "Expecting"),
        ("a b [1]", "no filename"),
        ('a b {"filename": "x", "offset": "1"}', "no length"),
        ('a b {"filename": "x", "offset": "-1", "length": "5"}', "offset is -1"),
        ('a b {"filename": 5, "offset": "1", "length": "5"}', "no filename"),
        ("", "expected a key"),
    ],
)
def test_a_bad_index_line_is_named_or_counted(crawl, line, problem):
    index = crawl.write([crawl.lines[0], line + "\n", crawl.lines[1]])
    with pytest.raises(DataError, match=f"cdx-00000.gz:2: not a line of a CDXJ index .{problem}.*on_bad_record=skip"):
        prepare(crawl, index=index)
    rows, dropped, _, _ = prepare(crawl, {"on_bad_record": "skip"}, index=index)
    assert len(rows) == 2 and dropped == {"bad index line": 1}


@pytest.mark.parametrize("offset, length", [(5, 300), (10**9, 300), (0, 40), (0, 0)])
def test_an_index_that_does_not_fit_its_archive_is_named(crawl, offset, length):
    index = crawl.write([Crawl.line("http://a.org/", crawl.names[0], offset, length), crawl.lines[1]])
    with pytest.raises(DataError, match=rf"CC-0.warc.gz: offset {offset}: "):
        prepare(crawl, index=index)
    rows, dropped, _, _ = prepare(crawl, {"on_bad_record": "skip"}, index=index)
    assert len(rows) == 1 and dropped == {"bad record": 1}


def test_a_truncated_index_is_named(crawl):
    path = crawl.write(crawl.lines)
    data = (crawl.root / "cdx-00000.gz").read_bytes()
    (crawl.root / "cdx-00000.gz").write_bytes(data[:-30])
    with pytest.raises(DataError, match="cdx-00000.gz"):
        prepare(crawl, index=path)


def test_what_needs_an_index_says_so():
    source = {"kind": "warc", "path": "x"}
    for select, kind, message in (
        ({"languages": ["eng"]}, "warc", "select.languages needs select.index"),
        ({"index": "x"}, "wet", "select.index is for the kind warc"),
    ):
        with pytest.raises(ConfigError, match=message):
            from data_prep.config import SourceConfig

            validate(source | {"kind": kind, "select": select}, SourceConfig, "x")
