"""The other side of compare_filters.py: datatrove's own filters, run by the Python of an environment that has it.

Words and sentences come from the parent: one JSON request per line on standard output, one answer per line on standard
input; with `own` they are datatrove's. Results go to a file, one JSON line per document: for each run the reason why
the document is dropped, or null, and the SHA-256 of the text that is left; a document without text counts as dropped.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline import filters
from datatrove.utils import text as datatrove_text
from datatrove.utils import word_tokenizers
from loguru import logger


class Asked(word_tokenizers.WordTokenizer):
    """Words and sentences of the parent; those of one document are kept, as every filter asks again."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[tuple[str, str], list[str]] = {}

    def ask(self, kind: str, text: str) -> list[str]:
        if (kind, text) not in self.known:
            print(json.dumps([kind, text]), flush=True)
            self.known[kind, text] = json.loads(sys.stdin.readline())
        return self.known[kind, text]

    def word_tokenize(self, text: str) -> list[str]:
        return self.ask("words", text)

    def sent_tokenize(self, text: str) -> list[str]:
        return self.ask("sentences", text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        spans, start = [], 0
        for sentence in self.ask("sentences", text):
            spans.append((start, start + len(sentence)))
            start += len(sentence)
        return spans


def build(language: str, name: str, arguments: dict[str, Any]) -> Any:
    if "stop_chars" in arguments:
        arguments = arguments | {"stop_chars": tuple(arguments["stop_chars"])}
    return getattr(filters, name)(language=language, **arguments)


def judge(steps: list[Any], text: str) -> list[str | None]:
    document = Document(text=text, id="0")
    for step in steps:
        result = step.filter(document)
        kept, reason = result if isinstance(result, tuple) else (result, "")
        if not kept:
            return [reason, None]
    if not document.text:
        return ["empty", None]
    return [None, hashlib.sha256(document.text.encode()).hexdigest()]


def main(job_path: str) -> None:
    logger.remove()
    job = json.loads(Path(job_path).read_text())
    asked = Asked()
    if not job["own"]:
        word_tokenizers.load_word_tokenizer = lambda _: asked
    runs = [[build(job["language"], *step) for step in steps] for steps in job["runs"]]
    with open(job["documents"]) as lines, open(job["results"], "w") as results:
        for line in lines:
            asked.known.clear()
            # Its cache would keep the words of the document before.
            datatrove_text.split_into_parts.cache_clear()
            text = json.loads(line)
            print(json.dumps([judge(steps, text) for steps in runs]), file=results)


if __name__ == "__main__":
    main(sys.argv[1])
