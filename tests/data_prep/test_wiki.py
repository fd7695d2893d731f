"""Dumps of MediaWiki become one text per article, whatever is in them."""

import bz2
import gzip
import time
import tracemalloc

import pyarrow.parquet as pq
import pytest

from data_prep.config import IngestConfig, SourceConfig
from data_prep.ingest.files import find_files
from data_prep.ingest.readers import read_documents
from data_prep.ingest.records import Document, Rejected
from data_prep.ingest.shards import make_tasks
from data_prep.ingest.wikitext import wikitext_to_text
from data_prep.manifest import Folder
from maxlm.config import validate
from maxlm.errors import ConfigError, DataError

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>dewiki</dbname>
    <base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
ARTICLE = """{{Infobox Stadt
| name = Musterstadt
| bild = [[Datei:Wappen.svg|mini]]
}}
'''Musterstadt''' (; {{IPA|de}}) ist eine [[Stadt]] in [[Land (Staat)|Land]].&lt;ref&gt;{{Literatur|T}}&lt;/ref&gt;
Sie hat 5&amp;nbsp;000 Einwohner {{Stand|2020}} und &lt;!-- kein Text --&gt; einen Fluss.

== Geschichte ==
[[Datei:Markt.jpg|mini|Der [[Markt]] um 1900]]
Seit ''1200'' bekannt; siehe [http://example.org die Chronik] und [http://example.org/2].
* ein [[Punkt (Geometrie)|Punkt]]
** darunter
# gezählt
; Begriff : Erklärung
{| class="wikitable"
! a !! b
|-
| 1 || 2
|}
=== Neuzeit ===
&lt;gallery&gt;
A.jpg|Bild
&lt;/gallery&gt;
Formel &lt;math&gt;x^2&lt;/math&gt;, Kode:
&lt;syntaxhighlight lang="python"&gt;
def f(x):
    return x
&lt;/syntaxhighlight&gt;
== Einzelnachweise ==
&lt;references /&gt;
[[Kategorie:Ort]] [[Category:Place]] [[en:Sample Town]]
"""
TEXT = """Musterstadt

Musterstadt ist eine Stadt in Land.
Sie hat 5\u00a0000 Einwohner und einen Fluss.

Geschichte

Seit 1200 bekannt; siehe die Chronik und .
- ein Punkt
  - darunter
- gezählt
Begriff : Erklärung

Neuzeit

Formel x^2, Kode:

def f(x):
    return x

Einzelnachweise"""


def page(number, title, text, ns=0, extra="", model="wikitext"):
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n    <id>{number}</id>\n{extra}    <revision>\n"
        f"      <id>{number + 1000}</id>\n      <contributor><username>U</username><id>77</id></contributor>\n"
        f"      <model>{model}</model>\n      <format>text/x-wiki</format>\n"
        f'      <text bytes="{len(text)}" xml:space="preserve">{text}</text>\n    </revision>\n  </page>\n'
    )


PAGES = [
    page(1, "Musterstadt", ARTICLE),
    page(2, "Muster-Stadt", "#WEITERLEITUNG [[Musterstadt]]", extra='    <redirect title="Musterstadt" />\n'),
    page(3, "Diskussion:Musterstadt", "Was meint ihr?", ns=1),
    page(4, "Straße &amp; Weg/A b", "Ein '''Weg'''."),
    page(5, "Modul", "return {}", model="Scribunto"),
    page(6, "Leer", "{{nur eine Vorlage}}"),
    page(7, "Lang", "Satz. " * 500),
]
DUMP = HEAD + "".join(PAGES) + "</mediawiki>\n"


def read(path, **options):
    options = {"max_page_bytes": 2500} | options
    config = SourceConfig(kind="wiki", path=str(path), **options)
    found = [
        one
        for file in find_files("w", config)
        for one in read_documents(file, config, IngestConfig(sources={"w": config}))
    ]
    documents = [one for one in found if isinstance(one, Document)]
    return documents, [one.reason for one in found if isinstance(one, Rejected)]


def test_an_article_becomes_text_with_its_title_address_and_id(tmp_path):
    (tmp_path / "dewiki.xml").write_text(DUMP)
    documents, rejected = read(tmp_path)
    assert documents[0].text.decode() == TEXT
    first, second = documents
    assert (first.id, first.origin, first.language) == ("dewiki/1", "dewiki.xml:1", "de")
    assert first.url == "https://de.wikipedia.org/wiki/Musterstadt"
    assert second.text.decode() == "Straße & Weg/A b\n\nEin Weg."
    assert second.url == "https://de.wikipedia.org/wiki/Stra%C3%9Fe_%26_Weg/A_b"
    assert rejected == ["redirect", "other namespace", "not wikitext", "empty", "over max_page_bytes"]


def test_namespaces_and_lengths_are_options(tmp_path):
    (tmp_path / "dewiki.xml").write_text(DUMP)
    documents, rejected = read(tmp_path, namespaces=[1], language="deutsch")
    assert [(one.id, one.language) for one in documents] == [("dewiki/3", "deutsch")] and len(rejected) == 6
    documents, rejected = read(tmp_path, max_page_bytes=3000)
    assert [one.id for one in documents] == ["dewiki/1", "dewiki/4", "dewiki/7"]
    assert "over max_page_bytes" not in rejected
    with pytest.raises(ConfigError, match="namespaces is for the kind wiki, the kind is jsonl"):
        validate({"kind": "jsonl", "path": "x", "namespaces": [1]}, SourceConfig, "test")


def test_plain_gzip_and_bz2_of_many_streams_are_the_same(tmp_path):
    pieces = [HEAD, *PAGES, "</mediawiki>\n"]
    for name, data in {
        "a.xml": DUMP.encode(),
        "b.xml.gz": gzip.compress(DUMP.encode()),
        "c.xml.bz2": bz2.compress(DUMP.encode()),
        "d.xml.bz2": b"".join(bz2.compress(piece.encode()) for piece in pieces),
    }.items():
        (tmp_path / name).write_bytes(data)
    expected, _ = read(tmp_path / "a.xml")
    for name in ("b.xml.gz", "c.xml.bz2", "d.xml.bz2"):
        assert [one.text for one in read(tmp_path / name)[0]] == [one.text for one in expected], name


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.xml", DUMP[: len(DUMP) // 2].encode(), "not a whole MediaWiki dump"),
        ("a.xml.bz2", bz2.compress(DUMP.encode())[:-40], "a.xml.bz2: "),
        ("a.xml.gz", gzip.compress(DUMP.encode())[:-40], "a.xml.gz: "),
        ("a.xml", b"<feed></feed>", "the root element is <feed>; expected <mediawiki>"),
        ("a.xml", b"", "not a whole MediaWiki dump"),
        ("a.xml", b'<!DOCTYPE m [<!ENTITY a SYSTEM "file:///etc/passwd">]><mediawiki>&a;</mediawiki>', "document type"),
        ("a.xml", (HEAD + page(1, "a", "x&bomb;") + "</mediawiki>").encode(), "undefined entity"),
        ("a.xml", ("<mediawiki>" + "<a>" * 10_000).encode(), "nested"),
    ],
)
def test_damaged_and_hostile_dumps_are_refused_by_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    config = SourceConfig(kind="wiki", path=str(tmp_path))
    (task,) = make_tasks("w", config, IngestConfig(sources={"w": config}))
    with pytest.raises(DataError, match=message) as error:
        task.function(Folder(tmp_path / "work"), task.key, *task.arguments)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_memory_does_not_grow_with_the_dump(tmp_path):
    def peak(count):
        path = tmp_path / f"{count}.xml"
        with open(path, "w") as file:
            file.write(HEAD)
            file.writelines(page(i, f"T{i}", "ein Satz. " * 20_000, ns=1) for i in range(count))
            file.write("</mediawiki>")
        tracemalloc.start()
        assert read(path, max_page_bytes=2**20)[1] == ["other namespace"] * count
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(100) < 1.3 * peak(20)


def test_a_page_of_gigabytes_is_not_gathered(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(HEAD + page(1, "T", "a" * 2**24) + "</mediawiki>")
    tracemalloc.start()
    assert read(path, max_page_bytes=1000) == ([], ["over max_page_bytes"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize(
    "wikitext, text",
    [
        ("a {{b|{{c}}|[[d]]}} e", "a e"),
        ("{{open\n== H ==\ntext", "{{open\n\nH\n\ntext"),
        ("{{columns|a\n== H ==\nb}}c", "c"),
        ("'''''x''''' __TOC__ &lt;y&gt; &#8364;", "x <y> €"),
        ("[[:Category:Cats]] [[Special page]]s", "Category:Cats Special pages"),
        ("<nowiki>[[x]]</nowiki> <poem>a\nb</poem> c<br />d", "[[x]]\na\nb\n c\nd"),
        (":indented\n::twice\n----\nend", "indented\ntwice\n\nend"),
    ],
)
def test_markup_becomes_what_is_seen_of_it(wikitext, text):
    assert wikitext_to_text(wikitext) == text


@pytest.mark.parametrize("begin", ["", "{{never closed\n"])
def test_sections_keep_markup_that_closes_nothing_from_taking_the_square_of_a_page(begin):
    section = "== H ==\n" + "<b>" * 300 + "text\n"

    def seconds(count):
        start = time.process_time()
        assert wikitext_to_text(begin + section * count).count("text") == count
        return time.process_time() - start

    seconds(1)
    assert seconds(16) < 5 * seconds(4) + 0.05


def test_a_dump_becomes_shards(tmp_path):
    (tmp_path / "dewiki.xml").write_text(DUMP)
    config = SourceConfig(kind="wiki", path=str(tmp_path))
    (task,) = make_tasks("w", config, IngestConfig(sources={"w": config}))
    record = task.function(Folder(tmp_path / "work"), task.key, *task.arguments)
    rows = pq.read_table(Folder(tmp_path / "work").file(task.key, "00000.parquet")).to_pylist()
    assert [row["id"] for row in rows] == ["w/dewiki/1", "w/dewiki/4", "w/dewiki/7"]
    assert record.values["dropped"] == {"redirect": 1, "other namespace": 1, "not wikitext": 1, "empty": 1}
