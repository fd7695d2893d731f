"""Which documents stay by their scores. No text is read."""

from collections.abc import Sequence

import numpy as np

from data_prep.config import ScoreLimit
from data_prep.config.languages import base
from data_prep.documents import Part, iterate
from data_prep.lists import Marks, commit
from data_prep.manifest import Folder, Record

VERSION = 1


def select(folder: Folder, key: str, part: Part, limits: Sequence[ScoreLimit]) -> Record:
    """The list of a part: each document goes by the first limit that it breaks. Memory: its scores."""
    mine = [limit for limit in limits if limit.sources is None or part.source in limit.sources]
    marks = Marks()
    names = dict.fromkeys(limit.score for limit in mine)
    for table in iterate(part, ("row", "bytes", "language", *names)) if mine else ():
        reasons = np.full(table.num_rows, None, object)
        languages = np.array([base(name or "") for name in table["language"].to_pylist()], str)
        for limit in mine:
            concerned = np.equal(reasons, None)
            if limit.languages is not None:
                concerned &= np.isin(languages, [base(name) for name in limit.languages])
            found = _reasons(limit, table[limit.score])
            reasons[concerned] = found[concerned]
        rows, sizes = table["row"].to_numpy(), table["bytes"].to_numpy()
        for index in np.flatnonzero(np.not_equal(reasons, None)):
            marks.drop(rows[index], sizes[index], reasons[index])
    return commit(folder, key, {part.name: marks})


def _reasons(limit: ScoreLimit, column: "pa.ChunkedArray") -> np.ndarray:  # noqa: F821
    """Why each document goes, None where it stays: str or None [documents]."""
    import pyarrow.compute as pc

    empty = pc.is_null(column).to_numpy()
    reasons = np.full(len(column), None, object)
    if limit.labels is not None:
        labels = column.to_pylist()
        reasons[:] = [None if label in limit.labels else f"{limit.score} {label}" for label in labels]
    else:
        values = column.to_numpy()
        # In the column's type: the float32 of a limit is the score that the same decimals give.
        least, most = (None if value is None else values.dtype.type(value) for value in (limit.min, limit.max))
        if least is not None:
            reasons[values < least] = f"{limit.score} below {limit.min:g}"
        if most is not None:
            reasons[values > most] = f"{limit.score} above {limit.max:g}"
    reasons[empty] = f"{limit.score} missing" if limit.missing == "drop" else None
    return reasons
