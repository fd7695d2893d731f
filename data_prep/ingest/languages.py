"""Programming, markup and data languages by the names of files, and by the first line of those without an ending."""

import re
from pathlib import PurePosixPath

from data_prep.config.languages import LANGUAGES

BY_NAME = {name: language for language, names in LANGUAGES.items() for name in names.split()}
# Endings that two languages share: the first where the content matches, the second elsewhere.
SHARED = {
    ".h": (rb"^\s*(class|namespace|template|using)\b|\bstd::|^\s*(public|private|protected):", "c++", "c"),
    ".m": (rb"^\s*(@interface|@implementation|@import|#import|#include)\b", "objective-c", "matlab"),
    ".pl": (rb"^\s*:-|^[a-z]\w*\(.*\)\s*:-", "prolog", "perl"),
    ".v": (rb"^\s*(Require|Theorem|Lemma|Definition|Inductive|Fixpoint|Proof)\b", "coq", "verilog"),
    ".ts": (rb"^\s*<(\?xml|!DOCTYPE TS)\b", "xml", "typescript"),
}
INTERPRETERS = {
    "python": "python", "pypy": "python", "sh": "shell", "bash": "shell", "dash": "shell", "zsh": "shell",
    "ksh": "shell", "ash": "shell", "fish": "fish", "perl": "perl", "ruby": "ruby", "node": "javascript",
    "nodejs": "javascript", "deno": "typescript", "ts-node": "typescript", "php": "php", "lua": "lua", "luajit": "lua",
    "rscript": "r", "tclsh": "tcl", "wish": "tcl", "expect": "tcl", "awk": "awk", "gawk": "awk", "make": "makefile",
    "osascript": "applescript", "groovy": "groovy", "scala": "scala", "julia": "julia", "swift": "swift",
    "pwsh": "powershell", "escript": "erlang", "guile": "scheme", "racket": "racket", "runhaskell": "haskell",
    "stack": "haskell", "elixir": "elixir", "crystal": "crystal", "nim": "nim", "ocaml": "ocaml", "sbcl": "common lisp",
}  # fmt: skip
_SHEBANG = re.compile(rb"#!\s*(?:\S*/)?env\s+(?:-\S+\s+)*(?:\w+=\S+\s+)*(\S+)|#!\s*(\S+)")


def language_of(name: str, content: bytes) -> str | None:
    """The language of a file by its name, and by its content where the name does not decide; None where unknown."""
    last = PurePosixPath(name).name.lower()
    suffix = PurePosixPath(last).suffix
    if suffix in SHARED:
        pattern, matching, other = SHARED[suffix]
        return matching if re.search(pattern, content, re.MULTILINE) else other
    if language := BY_NAME.get(last) or BY_NAME.get(suffix):
        return language
    if not suffix and (found := _SHEBANG.match(content)):
        program = (found[1] or found[2]).decode("utf-8", "replace").rpartition("/")[2].lower()
        return INTERPRETERS.get(program) or INTERPRETERS.get(program.rstrip("0123456789."))
    return None
