"""Exact duplicates: documents whose text is the same, byte for byte."""

from collections.abc import Mapping, Sequence

from data_prep.documents import Part
from data_prep.engine import queries
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder, Record
from maxlm.errors import DataError

VERSION = 2
ORDER = ("source", "id", "path", "row")


def find_duplicates(folder: Folder, key: str, parts: Sequence[Part], sources: Sequence[str], exact: bool) -> Record:
    """Mark what is to be dropped: with `exact`, of equal texts all but the first by the order of `sources`, then by id.

    In any case an id that two remaining documents share is a `DataError`: a document must be found by its id.
    """
    table = queries.scan([part.path for part in parts], ("row", "id", "id_hash", "hash", "source", "bytes"))
    names = {str(part.path): part.name for part in parts}
    marks: dict[str, Marks] = {}
    dropped = set()
    if exact:
        found = queries.collect(
            queries.repeated(table, "hash", ORDER, sources).select("path", "row", "bytes", "copies", "kept")
        )
        for path, row, size, copies, kept in zip(*(column.to_pylist() for column in found.columns), strict=True):
            entries = marks.setdefault(names[path], Marks())
            if kept:
                entries.note(row, f"{copies} copies")
            else:
                entries.drop(row, size, "duplicate")
                dropped.add((path, row))
    same_id = queries.collect(queries.repeated(table, "id_hash", ORDER).select("path", "row", "id", "source"))
    _check_ids([row for row in same_id.to_pylist() if (row["path"], row["row"]) not in dropped])
    return commit(folder, key, marks)


def _check_ids(rows: Sequence[Mapping]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise DataError(
                f"source '{row['source']}': more than one document has the id '{row['id']}'; expected an id_field that "
                "is unique in its source, or none to number the records"
            )
        seen.add(row["id"])
