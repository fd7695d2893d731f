"""What goes of the documents that have something of a benchmark, decided from their hits alone.

After GPT-3 (arXiv 2005.14165, appendix C): what matches goes with 200 characters on each side; of the pieces that are
left those shorter than 200 characters go too; a document that falls into more than 10 pieces goes altogether.
Memory: the hits of one piece of a part, at most some ten times the bytes of its text that match, and the part's ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.decontaminate.index import ITEMS, Index
from data_prep.decontaminate.scan import NUMBERS
from data_prep.documents import Part, iterate
from data_prep.lists import Edit, Marks, write_list
from data_prep.manifest import Folder, Record, writing

VERSION = 1
FOUND = "found.parquet"
# Documents of an item that the report names.
PLACES = 5
# In the place of a cut between two pieces.
BREAK = "\n\n"


@dataclass(frozen=True)
class Policy:
    """`drop` or cut; lengths in characters."""

    drop: bool
    least_piece: int
    most_pieces: int


def decide(
    folder: Folder, key: str, part: Part, hits: Path, index: Index, common: Path | None, policy: Policy
) -> Record:
    """The list of a part, and in `FOUND` the items that it has. `common` numbers the sequences to be ignored."""
    ignored = np.load(common) if common is not None else np.zeros(0, np.int64)
    *_, bounds, items = index.arrays()
    benchmarks, sizes = _items(index)
    marks, found = Marks(), Found()
    for row, columns in _documents(hits, ignored):
        sequences = columns["sequence"]
        owners = np.concatenate([items[bounds[one] : bounds[one + 1]] for one in sequences])
        times = bounds[sequences + 1] - bounds[sequences]
        found.add(row, owners, np.repeat(sequences, times), np.repeat(columns["position"], times), sizes)
        names = list(dict.fromkeys(benchmarks[one] for one in sorted(set(owners.tolist()))))
        size = int(columns["size"][0])
        edits = None if policy.drop else cuts(columns, policy.least_piece, policy.most_pieces)
        if edits is None:
            marks.drop(row, size, f"benchmark {names[0]}")
        else:
            marks.edit(row, edits, f"{len(edits)} cut for {', '.join(names)}", f"benchmark {names[0]}")
    with writing(folder.file(key, FOUND)) as temporary:
        found.write(temporary, part)
    counted = {part.name: write_list(folder, key, part.name, marks)} if marks.rows else {}
    return folder.commit(key, [*(f"{name}.parquet" for name in counted), FOUND], {"lists": counted})


def _items(index: Index) -> tuple[list[str], np.ndarray]:
    """Benchmark and number of sequences of every item."""
    import pyarrow.parquet as pq

    table = pq.read_table(index.path / ITEMS, columns=["benchmark", "sequences"])
    return table["benchmark"].to_pylist(), table["sequences"].to_numpy()


def _documents(hits: Path, ignored: np.ndarray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The hits of each document by column, without those of ignored sequences."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(hits) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            columns = {name: table[name].to_numpy() for name in NUMBERS}
            if len(ignored):
                keep = ~np.isin(columns["sequence"], ignored)
                columns = {name: column[keep] for name, column in columns.items()}
            edges = [0, *(np.flatnonzero(np.diff(columns["row"])) + 1).tolist(), len(columns["row"])]
            for start, stop in zip(edges, edges[1:], strict=False):
                if start < stop:
                    one = {name: column[start:stop] for name, column in columns.items()}
                    yield int(one["row"][0]), one


def cuts(hits: dict[str, np.ndarray], least_piece: int, most_pieces: int) -> list[Edit] | None:
    """The edits of a document by the regions of its hits; None where it is to be dropped: nothing is left, or more
    than `most_pieces` pieces of any length."""
    order = np.argsort(hits["left"], kind="stable")
    left, right = hits["left"][order], np.maximum.accumulate(hits["right"][order])
    left_position, right_position = hits["left_position"][order], np.maximum.accumulate(hits["right_position"][order])
    # A region begins where it lies behind all before it; those that touch are one.
    first = np.append(True, left[1:] > right[:-1])
    last = np.append(first[1:], True)
    begins = [0, *right[last].tolist()]
    ends = [*left[first].tolist(), int(hits["size"][0])]
    lengths = np.append(left_position[first], hits["characters"][0]) - np.append(0, right_position[last])
    if np.count_nonzero(lengths) > most_pieces:
        return None
    kept = [
        (begin, end)
        for begin, end, length in zip(begins, ends, lengths.tolist(), strict=True)
        if length >= max(1, least_piece)
    ]
    if not kept:
        return None
    edits = [(end, begin, BREAK) for (_, end), (begin, _) in zip(kept, kept[1:], strict=False)]
    if kept[0][0] > 0:
        edits.insert(0, (0, kept[0][0], ""))
    if kept[-1][1] < ends[-1]:
        edits.append((kept[-1][1], ends[-1], ""))
    return edits


class Found:
    """The items that a part has: in how many documents each, and the first of them."""

    def __init__(self) -> None:
        self.documents: dict[int, int] = {}
        self.places: dict[int, list[tuple[int, int, float]]] = {}

    def add(
        self, row: int, owners: np.ndarray, sequences: np.ndarray, positions: np.ndarray, sizes: Sequence[int]
    ) -> None:
        """Take in the hits of a document: the item, sequence and position of each."""
        pairs = np.unique(np.stack([owners.astype(np.int64), sequences]), axis=1)
        for item, count in zip(*np.unique(pairs[0], return_counts=True), strict=True):
            number = int(item)
            self.documents[number] = self.documents.get(number, 0) + 1
            if len(places := self.places.setdefault(number, [])) < PLACES:
                places.append((row, int(positions[owners == item].min()), int(count) / int(sizes[number])))

    def write(self, path: Path, part: Part) -> None:
        """item, documents, and places: list of id, source, position in characters, share of the item's sequences."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = np.array(sorted({row for places in self.places.values() for row, *_ in places}), np.int64)
        known = {}
        for table in iterate(part, ("row", "id", "source")) if len(wanted) else ():
            table = table.filter(pa.array(np.isin(table["row"].to_numpy(), wanted)))
            known |= {row["row"]: {"id": row["id"], "source": row["source"]} for row in table.to_pylist()}
        place = pa.struct(
            [("id", pa.string()), ("source", pa.string()), ("position", pa.int64()), ("share", pa.float64())]
        )
        schema = pa.schema([("item", pa.int64()), ("documents", pa.int64()), ("places", pa.list_(place))])
        rows = [
            {
                "item": item,
                "documents": self.documents[item],
                "places": [
                    known[row] | {"position": position, "share": share} for row, position, share in self.places[item]
                ],
            }
            for item in sorted(self.documents)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")
