"""What of the benchmarks the corpus has: counted over all parts, and told per item.

Memory: four bytes per sequence of the index, and of every item that was found its first documents.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_prep.console import right, size
from data_prep.decontaminate.cut import PLACES
from data_prep.decontaminate.index import ITEMS, Index
from data_prep.manifest import Folder, Record, writing

VERSION = 1
COUNTS, COMMON, REPORT = "counts.npy", "common.npy", "report.json"


def count(folder: Folder, key: str, hits: Sequence[Path], index: Index, most: int | None) -> Record:
    """Documents by sequence, uint32 [sequences], and the numbers of the sequences that more than `most` have."""
    import pyarrow.parquet as pq

    total = len(index.arrays()[2])
    counts = np.zeros(total, np.uint32)
    for path in hits:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["row", "sequence"], use_threads=False)
                pairs = np.unique(table["row"].to_numpy() * total + table["sequence"].to_numpy())
                numbers, documents = np.unique(pairs % total, return_counts=True)
                counts[numbers] += documents.astype(np.uint32)
    common = np.flatnonzero(counts > most) if most is not None else np.zeros(0, np.int64)
    for name, array in ((COUNTS, counts), (COMMON, common)):
        with writing(folder.file(key, name)) as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
    return folder.commit(key, [COUNTS, COMMON], {"common": len(common)})


def merge(
    folder: Folder, key: str, found: Sequence[Path], counts: Path, common: Path, index: Index, heading: Mapping
) -> Record:
    """Write the report; `values["benchmarks"]` has items, too short ones and hits by benchmark."""
    import pyarrow.parquet as pq

    documents: dict[int, int] = {}
    places: dict[int, list] = {}
    for path in found:
        for row in pq.read_table(path).to_pylist():
            documents[row["item"]] = documents.get(row["item"], 0) + row["documents"]
            known = places.setdefault(row["item"], [])
            known += row["places"][: PLACES - len(known)]
    items = pq.read_table(index.path / ITEMS)
    covered = _covered(index, np.load(counts), np.load(common), items.num_rows)
    benchmarks: dict[str, dict[str, int]] = {}
    entries = []
    for number, item in enumerate(items.to_pylist()):
        status = "too short" if not item["sequences"] else "found" if number in documents else "not found"
        sums = benchmarks.setdefault(item["benchmark"], {"items": 0, "too short": 0, "found": 0})
        sums["items"] += 1
        if status in sums:
            sums[status] += 1
        entry = {"benchmark": item["benchmark"], "id": item["id"], "words": item["words"], "status": status}
        if number in documents:
            share = round(int(covered[number]) / item["sequences"], 4)
            named = [place | {"share": round(place["share"], 4)} for place in places[number]]
            entry |= {"documents": documents[number], "share": share, "places": named}
        entries.append(entry)
    with writing(folder.file(key, REPORT)) as temporary, open(temporary, "w") as file:
        file.writelines(_lines({**heading, "benchmarks": benchmarks}, entries))
    return folder.commit(key, [REPORT], {"benchmarks": benchmarks})


def _covered(index: Index, counts: np.ndarray, common: np.ndarray, items: int) -> np.ndarray:
    """How many of each item's sequences the corpus has, int64 [items]; ignored ones do not count."""
    *_, bounds, owners = index.arrays()
    seen = counts > 0
    seen[common] = False
    return np.bincount(owners[np.repeat(seen, np.diff(bounds))], minlength=items)


def _lines(heading: Mapping, entries: Sequence[Mapping]) -> Iterator[str]:
    """JSON with a line for each item."""
    yield "{\n"
    for name, value in heading.items():
        yield f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n"
    yield '"items": [\n'
    for number, entry in enumerate(entries):
        yield json.dumps(entry, ensure_ascii=False) + (",\n" if number + 1 < len(entries) else "\n")
    yield "]\n}\n"


def print_table(console: Console, benchmarks: Mapping[str, Mapping], dropped: Mapping, changed: Mapping) -> None:
    """Per benchmark its items and what was done for it; a document counts for the first benchmark that it has."""
    names = ("items", "too short", "found", "documents cut", "documents dropped", "text removed")
    table = Table("benchmark", *map(right, names))
    for name, sums in benchmarks.items():
        cut, lost = (amounts.get(f"benchmark {name}", (0, 0)) for amounts in (changed, dropped))
        counts = (sums["items"], sums["too short"], sums["found"], cut[0], lost[0])
        table.add_row(name, *(f"{value:,}" for value in counts), size(cut[1] + lost[1]))
    console.print(table)
