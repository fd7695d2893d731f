"""Items of benchmarks in files of several formats: their ids, and the texts in them.

An item is a line of .jsonl, a row of .csv, .tsv and .parquet, a paragraph of .txt (a line where no line is blank), and
of .json and .yaml an element of the outermost lists of mappings, or of a mapping of mappings; another mapping is one
item. Of lm-eval's YAML, which describes tasks, the few-shot samples are the items. Files are data: YAML's tags are
ignored, nothing is run.
Memory: one file, as Python's values.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maxlm.errors import DataError

ID_FIELDS = ("id", "task_id", "question_id")
# Keys at the top of lm-eval's YAML, of which no item is read.
TASK_KEYS = {
    *("task", "group", "include", "dataset_path", "doc_to_text", "doc_to_target", "fewshot_config", "metric_list"),
    "aggregate_metric_list",
}
# Deeper YAML overflows the stack of its parser in C.
DEPTH = 100
CELL_CHARACTERS = 2**27


@dataclass(frozen=True)
class Item:
    """One question of a benchmark: `texts` are its fields' strings, in order, ids and numbers left out."""

    id: str
    texts: tuple[str, ...]


def suffix_of(path: Path) -> str | None:
    """The format of a file by its name, .gz aside; None for others. `_template_yaml` is a name that lm-eval uses."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None) or (
        ".yaml" if name.endswith("_yaml") else None
    )


def read_items(path: Path, name: str, fields: Sequence[str] | None, id_field: str | None) -> list[Item]:
    """The items of a file; raises `DataError` of one line where it cannot be read or has none of the fields."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
        records = list(READERS[suffix_of(path)](data, fields is not None))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, EOFError, ValueError, RecursionError, *_foreign_errors()) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as {suffix_of(path)} ({reason[:200]})") from None
    if fields is not None and records and not any(_has(record, fields) for record in records):
        keys = list(records[0]) if isinstance(records[0], Mapping) else [f"a {type(records[0]).__name__}"]
        raise DataError(f"{path}: no item has {' or '.join(fields)}; the first has {', '.join(map(str, keys[:20]))}")
    return [_item(record, name, number, fields, id_field) for number, record in enumerate(records)]


def _foreign_errors() -> tuple[type[Exception], ...]:
    import zlib

    import pyarrow as pa
    import yaml

    return pa.ArrowException, yaml.YAMLError, csv.Error, zlib.error


def _has(record: Any, fields: Sequence[str]) -> bool:
    return isinstance(record, Mapping) and any(field in record for field in fields)


def _item(record: Any, name: str, number: int, fields: Sequence[str] | None, id_field: str | None) -> Item:
    known, found = record if isinstance(record, Mapping) else {}, None
    for field in (id_field,) if id_field else ID_FIELDS:
        if isinstance(known.get(field), str | int):
            found = field
            break
    if fields is not None:
        parts = [known[field] for field in fields if field in known]
    elif known:
        parts = [value for field, value in known.items() if field != found]
    else:
        parts = [record]
    identity = number if found is None else known[found]
    return Item(f"{name}:{identity}".encode("utf-8", "replace").decode(), tuple(_strings(parts)))


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested lists and mappings, in order; a container that is there twice (YAML's aliases) once."""
    stack, seen = [value], set()
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            # JSON can escape lone surrogates, which no text has.
            yield value.encode("utf-8", "replace").decode()
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            stack.extend(reversed(list(value.values()) if isinstance(value, Mapping) else value))


def _elements(value: Any, depth: int = 0) -> Iterator[Any]:
    """The items in a JSON or YAML value."""
    if isinstance(value, list):
        yield from value
        return
    inner = list(value.values()) if isinstance(value, Mapping) else []
    if not all(isinstance(one, Mapping) for one in inner):
        inner = [one for one in inner if _has_table(one)]
    if inner and depth < DEPTH:
        for one in inner:
            yield from _elements(one, depth + 1)
    elif value is not None:
        yield value


def _has_table(value: Any, depth: int = 0) -> bool:
    """Whether there is a list of mappings in a value, not below another list."""
    if isinstance(value, list):
        return any(isinstance(element, Mapping) for element in value)
    return isinstance(value, Mapping) and depth < DEPTH and any(_has_table(one, depth + 1) for one in value.values())


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig")


def _jsonl(data: bytes, _: bool) -> Iterator[Any]:
    for number, line in enumerate(_text(data).split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"line {number} is not JSON ({error})") from None


def _json(data: bytes, fields: bool) -> Iterator[Any]:
    """Some .json files have a value per line."""
    try:
        value = json.loads(_text(data))
    except ValueError as error:
        try:
            yield from list(_jsonl(data, fields))
        except DataError:
            raise error from None
        return
    yield from _elements(value)


def _csv(data: bytes, fields: bool) -> Iterator[Any]:
    return _rows(csv.reader(io.StringIO(_text(data), newline="")), fields)


def _tsv(data: bytes, fields: bool) -> Iterator[Any]:
    """Quotes are text: most .tsv files are not quoted, and one quote would join all lines that follow it."""
    return _rows(csv.reader(io.StringIO(_text(data), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE), fields)


def _rows(rows: Iterator[list[str]], fields: bool) -> Iterator[Any]:
    csv.field_size_limit(CELL_CHARACTERS)
    header = next(rows, None) if fields else None
    for row in rows:
        if any(cell.strip() for cell in row):
            yield row if header is None else dict(zip(header, row, strict=False))


def _parquet(data: bytes, _: bool) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches():
        yield from batch.to_pylist()


def _yaml(data: bytes, _: bool) -> Iterator[Any]:
    import yaml

    class Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        """Values of unknown tags as if they had none."""

    Plain.add_constructor(None, _untagged)
    text, depth = _text(data), 0
    for event in yaml.parse(text, Loader=Plain):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise DataError(f"nested deeper than {DEPTH}")
    for value in yaml.load_all(text, Plain):
        if isinstance(value, Mapping) and TASK_KEYS & set(value):
            config = value.get("fewshot_config")
            value = config.get("samples") if isinstance(config, Mapping) else None
            value = value if isinstance(value, list) else None
        yield from _elements(value)


def _untagged(loader: Any, node: Any) -> Any:
    import yaml

    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


def _txt(data: bytes, _: bool) -> Iterator[Any]:
    text = _text(data).replace("\r\n", "\n")
    paragraphs = [part.strip() for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()]
    return iter(paragraphs if len(paragraphs) > 1 else [line.strip() for line in text.split("\n") if line.strip()])


READERS: Mapping[str | None, Callable[[bytes, bool], Iterator[Any]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".txt": _txt,
}
SUFFIXES = tuple(suffix for suffix in READERS if suffix)
