"""What becomes of the values that were found: edits, documents that go, and the columns of those that stay.

No text is read. Column `privacy` (list of type, start, stop) says where the placeholders of masked values stand, in
bytes of the text as this stage leaves it. Ids, addresses, declared languages and steps are masked by the same rules,
there also where a type would drop the document. An id with a value becomes SOURCE/hidden- and the hash of the id, so
that ids stay unique and lead to what was read; id_hash becomes the hash of the new id, and with it the document's place
in the order and its split. Whoever can guess the former id can confirm it by that hash.

Memory of a worker: about 0.5 kB for every value of the part, and the ids and addresses of the part where one of them
is masked.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.config.privacy import TYPES, PrivacyConfig
from data_prep.documents import Part, iterate, text_schema, write_columns
from data_prep.lists import Marks, write_list
from data_prep.manifest import Folder, Record, writing
from data_prep.privacy.find import NAMES
from maxlm.data.shards import document_hash

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
FILE, COLUMN = "columns.parquet", "privacy"
BATCH = 2**14
HIDDEN = "hidden-"
TOO_MANY, IN_NAMES = "more than max_spans values", "in ids and addresses"


@dataclass
class Decided:
    """What is known after a part: its list; [documents, values, bytes of text lost] by type of those that are masked;
    masked names by row; and where placeholders stand: how many by row, and of each the number of its type, start, stop.
    """

    marks: Marks = field(default_factory=Marks)
    masked: dict[str, list[int]] = field(default_factory=lambda: {name: [0, 0, 0] for name in TYPES})
    names: dict[int, dict[str, list[Mapping]]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    places: tuple[array, array, array] = field(default_factory=lambda: (array("B"), array("I"), array("I")))


def mask(folder: Folder, key: str, part: Part, spans: Path, config: PrivacyConfig) -> Record:
    """The list of a part and its columns.

    `values` has `masked` as in `Decided`, the `columns` written, and `content`, a hash of them.
    """
    decided = Decided()
    for row, size, entries in _documents(part, spans, config):
        _decide(decided, row, size, entries, config)
    names = _names(part, decided.names, config)
    with writing(folder.file(key, FILE)) as temporary:
        write_columns(temporary, part, np.arange(part.rows), {COLUMN: _places(part, decided), **names})
    content = [decided.counts, [list(column) for column in decided.places]]
    content += [[name, column.to_pylist()] for name, column in names.items()]
    values = {
        "masked": decided.masked,
        "columns": [COLUMN, *names],
        "content": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32],
    }
    lists = {part.name: write_list(folder, key, part.name, decided.marks)} if decided.marks.rows else {}
    return folder.commit(key, [*(f"{name}.parquet" for name in lists), FILE], values | {"lists": lists})


def is_chosen(type: str, kind: str, config: PrivacyConfig) -> bool:
    return getattr(config, type) != "off" and kind not in config.leave_addresses


def _documents(part: Part, spans: Path, config: PrivacyConfig) -> Iterator[tuple[int, int, list[dict]]]:
    """Row, size of the text and chosen spans of every document that has some, by row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(spans) as file:
        having = np.unique(file.read(["row"])["row"].to_numpy())
        known: dict[int, tuple[int, str | None]] = {}
        for table in iterate(part, ("row", "bytes", "language")):
            table = table.filter(pa.array(np.isin(table["row"].to_numpy(), having)))
            known |= {record["row"]: (record["bytes"], record["language"]) for record in table.to_pylist()}
        entries = (entry for batch in file.iter_batches(BATCH) for entry in batch.to_pylist())
        chosen = (entry for entry in entries if is_chosen(entry["type"], entry["kind"], config))
        for row, group in groupby(chosen, key=lambda entry: entry["row"]):
            size, language = known[row]
            if config.languages is None or language in config.languages:
                yield row, size, list(group)


def _decide(decided: Decided, row: int, size: int, entries: Sequence[Mapping], config: PrivacyConfig) -> None:
    """Mark one document."""
    in_text = [entry for entry in entries if entry["place"] == "text"]
    in_names = [entry for entry in entries if entry["place"] != "text"]
    types = Counter(entry["type"] for entry in in_text)
    forbidden = next((name for name in TYPES if types[name] and getattr(config, name) == "drop"), None)
    if forbidden or (config.max_spans is not None and len(in_text) > config.max_spans):
        decided.marks.drop(row, size, f"{forbidden} found" if forbidden else TOO_MANY)
        return
    notes = [f"{types[name]} {name}" for name in TYPES if types[name]]
    if in_names:
        by_place = groupby(in_names, key=lambda entry: entry["place"])
        decided.names[row] = {place: list(group) for place, group in by_place}
        notes += [f"{place.partition('/')[0]} masked" for place in decided.names[row]]
    note = ", ".join(dict.fromkeys(notes))
    if not in_text:
        decided.marks.note(row, note, IN_NAMES)
        return
    edits, shift = [], 0
    for entry in in_text:
        start, stop, text = entry["start"], entry["stop"], config.fill(entry["type"], entry["number"])
        length = len(text.encode())
        edits.append((start, stop, text))
        placed = (TYPES.index(entry["type"]), start + shift, start + shift + length)
        for column, value in zip(decided.places, placed, strict=True):
            column.append(value)
        shift += length - (stop - start)
        decided.masked[entry["type"]][2] += stop - start - length
    for name, count in types.items():
        decided.masked[name][0] += 1
        decided.masked[name][1] += count
    decided.counts[row] = len(edits)
    decided.marks.edit(row, edits, note, IN_NAMES if in_names else "masked")


def _places(part: Part, decided: Decided) -> "pa.Array":
    import pyarrow as pa

    counts = np.zeros(part.rows + 1, np.int32)
    for row, count in decided.counts.items():
        counts[row + 1] = count
    kinds, starts, stops = map(np.array, decided.places)
    types = pa.array(TYPES, pa.string()).take(pa.array(kinds, pa.uint8()))
    columns = [types, pa.array(starts, pa.uint32()), pa.array(stops, pa.uint32())]
    return pa.ListArray.from_arrays(
        np.cumsum(counts, dtype=np.int32), pa.StructArray.from_arrays(columns, ["type", "start", "stop"])
    )


def _names(part: Part, masked: Mapping[int, Mapping], config: PrivacyConfig) -> "dict[str, pa.Array]":
    """The columns beside the text that hold a value in some document, with placeholders."""
    import pyarrow as pa

    if not masked:
        return {}
    # As they stand before lists add their notes to the steps, which happens again when documents are read.
    own = pa.concat_tables(iterate(replace(part, lists=()), ("id", "id_hash", *NAMES[1:])))
    columns: dict[str, list[Any]] = {}
    for row, places in masked.items():
        for place, entries in places.items():
            name, _, number = place.partition("/")
            if name not in columns:
                columns[name] = own[name].to_pylist()
            value = columns[name][row]
            if name == "id":
                columns[name][row] = hidden_id(value)
            elif name == "steps":
                stage, step = value[int(number)]
                value[int(number)] = (stage, filled(step, entries, config))
            else:
                columns[name][row] = filled(value, entries, config)
    if "id" in columns:
        hashes = own["id_hash"].to_numpy().copy()
        for row in masked:
            hashes[row] = document_hash(columns["id"][row])
        columns["id_hash"] = hashes
    return {name: pa.array(values, text_schema().field(name).type) for name, values in columns.items()}


def filled(value: str, entries: Iterable[Mapping], config: PrivacyConfig) -> str:
    """A value with placeholders in its spans, which are in order."""
    data, pieces, last = value.encode(), [], 0
    for entry in entries:
        pieces += [data[last : entry["start"]], config.fill(entry["type"], entry["number"]).encode()]
        last = entry["stop"]
    return b"".join([*pieces, data[last:]]).decode()


def hidden_id(document_id: str) -> str:
    return f"{document_id.partition('/')[0]}/{HIDDEN}{document_hash(document_id):016x}"


def former_hash(document_id: str) -> int | None:
    """`id_hash` of the id that a hidden one stands for; None for others."""
    digits = document_id.partition(f"/{HIDDEN}")[2]
    return int(digits, 16) if len(digits) == 16 and set(digits) <= set("0123456789abcdef") else None
