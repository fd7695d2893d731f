"""Where personal data and secrets are: one scan of all text, whatever is done with them later.

What is found is written without its value: type, place, and a number that equal values of a document share. Where a
document has a value once by the rules, it has it wherever it stands: a number that only the words before it gave away
is found in other lines as well, and in the document's id and address.

Memory of a worker: one piece of a shard (16 MB of text) three times, and 0.3 kB for every value of the part.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from data_prep.documents import Part, iterate
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, writing
from data_prep.privacy import addresses, numbers, secrets
from data_prep.privacy.rules import Scanner, Span, compile_bytes, resolved
from data_prep.text.texts import Texts

VERSION = 1
FILE = "spans.parquet"
SCHEMA = {
    "row": "uint32",
    "place": "string",
    "type": "string",
    "kind": "string",
    "start": "uint32",
    "stop": "uint32",
    "number": "uint32",
}
# Where values may stand beside the text; a document's steps say the file that it was read from.
NAMES = ("id", "url", "language", "steps")
# Values that one automaton looks for.
LITERALS = 1000


@cache
def scanner(phone_regions: tuple[str, ...]) -> Scanner:
    return Scanner([*secrets.RULES, *addresses.RULES, *numbers.RULES, *numbers.phone_rules(phone_regions)])


def find(folder: Folder, key: str, part: Part, phone_regions: Sequence[str], _: object) -> Record:
    """Write the spans of a part, in columns as SCHEMA has them: row of the document, place ("text", "url", "steps/0"),
    type, kind of address, start and stop in bytes of what stands there, number of the value."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    scan, found = scanner(tuple(phone_regions)), []
    for table in iterate(part, ("row", "text", *NAMES)):
        column = Texts.of(table["text"])
        data, first = column.data[column.bounds[0] : column.bounds[-1]].tobytes(), int(column.bounds[0])
        edges = (column.bounds - first).tolist()
        texts = [data[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
        names = [in_places(record) for record in table.select(NAMES).to_pylist()]
        in_texts = in_each(scan, texts)
        in_names = iter(in_each(scan, [value for record in names for value in record.values()]))
        for row, text, spans, record in zip(table["row"].to_pylist(), texts, in_texts, names, strict=True):
            others = {place: next(in_names) for place in record}
            if spans or any(others.values()):
                found += _document(row, {"text": text} | record, {"text": spans} | others)
        advance(len(data))
    columns = zip(*found, strict=True) if found else [()] * len(SCHEMA)
    arrays = [pa.array(column, pa.type_for_alias(kind)) for column, kind in zip(columns, SCHEMA.values(), strict=True)]
    with writing(folder.file(key, FILE)) as temporary:
        pq.write_table(pa.table(arrays, names=list(SCHEMA)), temporary, compression="zstd")
    return folder.commit(key, [FILE], {"spans": len(found)})


def in_places(record: Mapping) -> dict[str, bytes]:
    """The values beside a document's text, by place."""
    plain = {name: record[name] for name in NAMES if name != "steps"}
    steps = {f"steps/{number}": value for number, (_, value) in enumerate(record["steps"] or ())}
    return {place: value.encode() for place, value in (plain | steps).items() if value}


def in_each(scan: Scanner, texts: Sequence[bytes]) -> list[list[Span]]:
    """The spans of every text, which do not overlap."""
    found: list[list[Span]] = [[] for _ in texts]
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)]).tolist()
    for span in scan.spans(b"\0".join(texts)):
        number = bisect_right(starts, span.start) - 1
        found[number].append(span.moved(-starts[number]))
    return [resolved(spans) for spans in found]


def _document(row: int, values: Mapping[str, bytes], spans: Mapping[str, Sequence[Span]]) -> Iterator[tuple]:
    """The rows of a document in the file of spans; `values` and `spans` are by place."""
    known: dict[tuple[str, bytes], int] = {}
    counts: Counter[str] = Counter()
    for place, found in everywhere(values, spans).items():
        for span in found:
            value = values[place][span.start : span.stop]
            value = value.lower() if span.type == "email" else value
            if (span.type, value) not in known:
                counts[span.type] += 1
                known[span.type, value] = counts[span.type]
            yield row, place, span.type, span.kind, span.start, span.stop, known[span.type, value]


def everywhere(values: Mapping[str, bytes], spans: Mapping[str, Sequence[Span]]) -> dict[str, list[Span]]:
    """The spans of a document, by place, with those of every other place where it has the same values."""
    known = {
        values[place][span.start : span.stop]: span
        for place, found in spans.items()
        for span in found
        # What is somebody's address in one place is it in all.
        if span.kind in ("", "global")
    }
    # In text, e-mail addresses are found by their form, wherever they are.
    by_words = {value: span for value, span in known.items() if span.type != "email"}
    result = {}
    for place, data in values.items():
        again = list(occurrences(data, by_words if place == "text" else known))
        same = {(span.start, span.stop) for span in again}
        kept = [span for span in spans[place] if (span.start, span.stop) not in same]
        result[place] = resolved([*kept, *again])
    return result


def occurrences(data: bytes, values: Mapping[bytes, Span]) -> Iterator[Span]:
    """Where values stand, but not inside a longer word or number."""
    import re2

    ordered = sorted(values, key=lambda value: (-len(value), value))
    for first in range(0, len(ordered), LITERALS):
        for match in compile_bytes(map(re2.escape, ordered[first : first + LITERALS])).finditer(data):
            start, stop = match.span()
            if not (_joined(data, start) or _joined(data, stop)):
                yield replace(values[data[start:stop]], start=start, stop=stop)


def _joined(data: bytes, place: int) -> bool:
    """Whether two digits, or two letters, meet at a place."""
    sides = data[max(0, place - 1) : place + 1]
    return len(sides) == 2 and (sides.isdigit() or sides.isalpha())


def find_all(texts: Sequence[str], phone_regions: Sequence[str] = ("CN", "US")) -> list[list[tuple[str, int, int]]]:
    """Type, first byte and the byte behind the last of all values in texts, those of addresses that are left aside."""
    found = in_each(scanner(tuple(phone_regions)), [text.encode() for text in texts])
    return [[(span.type, span.start, span.stop) for span in spans if span.kind in ("", "global")] for spans in found]
