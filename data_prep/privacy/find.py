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
from typing import TYPE_CHECKING

import numpy as np

from data_prep.documents import Part, iterate
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, writing
from data_prep.privacy import addresses, numbers, secrets
from data_prep.privacy.rules import Scanner, Span, compile_bytes, resolved
from data_prep.text.texts import Texts

if TYPE_CHECKING:
    import pyarrow as pa

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
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    scan, found = scanner(tuple(phone_regions)), []
    for table in iterate(part, ("row", "text", *NAMES)):
        spans = _in_table(scan, table)
        records = table.take(list(spans)).to_pylist() if spans else []
        for record, by_place in zip(records, spans.values(), strict=True):
            values = {"text": record["text"].encode(), **in_places(record)}
            found += _document(record["row"], values, {place: by_place.get(place, []) for place in values})
        advance(pc.sum(pc.binary_length(table["text"])).as_py())
    columns = zip(*found, strict=True) if found else [()] * len(SCHEMA)
    arrays = [pa.array(column, pa.type_for_alias(kind)) for column, kind in zip(columns, SCHEMA.values(), strict=True)]
    with writing(folder.file(key, FILE)) as temporary:
        pq.write_table(pa.table(arrays, names=list(SCHEMA)), temporary, compression="zstd")
    return folder.commit(key, [FILE], {"spans": len(found)})


def _in_table(scan: Scanner, table: "pa.Table") -> dict[int, dict[str, list[Span]]]:
    """What is found in documents, by their number and by place; documents without anything cost nothing here."""
    import pyarrow.compute as pc

    found: dict[int, dict[str, list[Span]]] = {}
    for name in ("text", *NAMES[:-1]):
        for number, spans in in_texts(scan, Texts.of(pc.fill_null(table[name], ""))).items():
            found.setdefault(number, {})[name] = spans
    steps = table["steps"].combine_chunks()
    firsts = steps.offsets.to_numpy() - steps.offsets[0].as_py()
    for item, spans in in_texts(scan, Texts.of(steps.items)).items():
        number = int(np.searchsorted(firsts, item, "right")) - 1
        found.setdefault(number, {})[f"steps/{item - firsts[number]}"] = spans
    return dict(sorted(found.items()))


def in_texts(scan: Scanner, texts: Texts) -> dict[int, list[Span]]:
    """The spans of the texts that have some, by their number; spans of one text do not overlap."""
    bounds = texts.bounds - texts.bounds[0]
    joined = np.insert(texts.data[texts.bounds[0] : texts.bounds[-1]], bounds[1:], 0)
    starts = (bounds + np.arange(len(bounds))).tolist()
    found: dict[int, list[Span]] = {}
    for span in scan.spans(joined.tobytes()):
        number = bisect_right(starts, span.start) - 1
        found.setdefault(number, []).append(span.moved(-starts[number]))
    return {number: resolved(spans) for number, spans in found.items()}


def in_places(record: Mapping) -> dict[str, bytes]:
    """The values beside a document's text, by place."""
    plain = {name: record[name] for name in NAMES if name != "steps"}
    steps = {f"steps/{number}": value for number, (_, value) in enumerate(record["steps"] or ())}
    return {place: value.encode() for place, value in (plain | steps).items() if value}


class Numbering:
    """Numbers the values of a document by type, from 1 on; equal values have one number."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, bytes], int] = {}
        self.counts: Counter[str] = Counter()

    def of(self, data: bytes, span: Span) -> int:
        value = data[span.start : span.stop]
        key = span.type, value.lower() if span.type == "email" else value
        if key not in self.known:
            self.counts[span.type] += 1
            self.known[key] = self.counts[span.type]
        return self.known[key]


def _document(row: int, values: Mapping[str, bytes], spans: Mapping[str, Sequence[Span]]) -> Iterator[tuple]:
    """The rows of a document in the file of spans; `values` and `spans` are by place."""
    numbering = Numbering()
    for place, found in everywhere(values, spans).items():
        for span in found:
            yield row, place, span.type, span.kind, span.start, span.stop, numbering.of(values[place], span)


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
    names = b"\0".join(data for place, data in values.items() if place != "text")
    named = {value: span for value, span in known.items() if value in names}
    result = {}
    for place, data in values.items():
        again = list(occurrences(data, by_words if place == "text" else named))
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
    found = in_texts(scanner(tuple(phone_regions)), Texts.from_strings(list(texts)))
    return [
        [(span.type, span.start, span.stop) for span in found.get(number, ()) if span.kind in ("", "global")]
        for number in range(len(texts))
    ]
