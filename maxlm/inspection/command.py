"""`maxlm inspect`: what a run reads, from a step to its documents and from a document to its steps."""

import json
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from maxlm.errors import ConfigError
from maxlm.inspection.documents import Describer, Located, of_slots, of_step, pipelines, step_header
from maxlm.inspection.opened import Opened, open_run
from maxlm.inspection.readings import of_document
from maxlm.inspection.tables import document_tables, documents_table, pipeline_texts, run_heading, step_heading
from maxlm.report import mixture
from maxlm.report.terminal import console

DOCUMENTS, READINGS = 50, 20  # listed in a terminal unless a limit is given
CHARACTERS = 160  # of a document


def inspect_command(
    path: Path,
    overrides: list[str],
    *,
    step: int | None,
    example: int | None,
    tokens: str | None,
    document: str | None,
    source: str | None,
    show_mixture: bool,
    limit: int | None,
    full: bool,
    as_json: bool,
) -> None:
    """Print one answer, as tables or as one JSON object, which is complete unless a limit is given."""
    asked = {"--step": step, "--tokens": tokens, "--document": document, "--mixture": show_mixture or None}
    chosen = [name for name, value in asked.items() if value is not None]
    if len(chosen) != 1:
        raise ConfigError(f"expected one of {', '.join(asked)}, found {' and '.join(chosen) or 'none'}")
    for name, value, needed in (("--example", example, "--step"), ("--source", source, "--document")):
        if value is not None and chosen != [needed]:
            raise ConfigError(f"{name} goes with {needed}, found {chosen[0]}")
    span = None if tokens is None else parse_span(tokens)
    opened = open_run(path, overrides, data=not show_mixture)
    if show_mixture:
        _mixture(opened, as_json)
    elif document is not None:
        _document(opened, document, source, limit, as_json)
    elif span:
        _documents(opened, None, of_slots(opened, *span), limit, full, as_json)
    else:
        located = of_step(opened, step - 1, example)
        _documents(opened, step_header(opened, step - 1), located, limit, full, as_json)


def parse_span(text: str) -> tuple[int, int]:
    """A:B as two whole numbers, which may be written as 1_000 or 1.5e9; raises `ConfigError`."""
    first, _, stop = text.partition(":")
    try:
        numbers = Decimal(first), Decimal(stop)
        if all(number == int(number) for number in numbers):
            return int(numbers[0]), int(numbers[1])
    except (InvalidOperation, ValueError, OverflowError):
        pass
    raise ConfigError(f"--tokens {text}: expected A:B, two numbers of slots, of which B is not among them")


def _documents(
    opened: Opened,
    header: dict[str, Any] | None,
    located: Iterator[Located],
    limit: int | None,
    full: bool,
    as_json: bool,
) -> None:
    describer = Describer(opened, None if full or as_json else CHARACTERS)
    limit = limit or (None if as_json else DOCUMENTS)
    found = list(describer.describe(islice(located, limit)))
    prepared = pipelines(opened, dict.fromkeys(one["source"] for one in found))
    more = next(located, None) is not None
    if as_json:
        answer = opened.describe() | (header or {}) | {"documents": found, "more": more, "pipelines": prepared}
        print(json.dumps(answer))
        return
    screen = console()
    screen.print(step_heading(opened, header) if header else run_heading(opened))
    screen.print(documents_table(found, full, steps=header is None))
    if more:
        screen.print(
            Text(f"more than {limit:,} documents; --limit N shows N, --json all, --example I those of one row")
        )
    screen.print(pipeline_texts(prepared))


def _document(opened: Opened, document: str, source: str | None, limit: int | None, as_json: bool) -> None:
    answers = of_document(opened, document, source, limit or (None if as_json else READINGS))
    prepared = pipelines(opened, [answer["source"] for answer in answers])
    if as_json:
        print(json.dumps(opened.describe() | {"documents": answers, "pipelines": prepared}))
        return
    screen = console()
    for answer in answers:
        screen.print(document_tables(opened, answer))
    screen.print(pipeline_texts(prepared))


def _mixture(opened: Opened, as_json: bool) -> None:
    if as_json:
        print(json.dumps(opened.describe() | mixture.to_json(opened.overview)))
    else:
        console().print(mixture.mixture_tables(opened.overview, opened.config.data, opened.position.step))
