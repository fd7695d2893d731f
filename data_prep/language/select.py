"""Which documents stay by their language and script, and Chinese text in the other script.

Thresholds read columns alone; text is read where Chinese documents are folded, and only of shards that have some.
Memory: the small columns of a part and, with `fold_han`, the folded text of its Chinese documents as the list keeps it:
measured, 0.7 GB for 245,000 traditional poems of 52 MB together, 3 kB for each that changes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.config.languages import CHINESE, base
from data_prep.documents import Part, iterate, read
from data_prep.language import identify
from data_prep.lists import Edit, Marks, commit
from data_prep.manifest import Folder, Record
from data_prep.text.texts import Texts

VERSION = 1
CONVERSIONS = {"simplified": "t2s", "traditional": "s2t"}


def select(
    folder: Folder,
    key: str,
    part: Part,
    keep: Mapping[str, float] | None,
    scripts: Sequence[str] | None,
    code: Sequence[str],
    fold: str | None,
    _: object,
) -> Record:
    """The list of a part: documents that are dropped, and those whose script is folded."""
    marks, chinese = Marks(), set()
    least = None if keep is None else {base(name): score for name, score in keep.items()}
    table = read(part, ("row", "bytes", "language", "language_score", "script"))
    for row, size, language, score, script in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if language is not None and language.lower() in code:
            continue
        if reason := reject(language, score, script, least, scripts):
            marks.drop(row, size, reason)
        elif language is not None and base(language) in CHINESE:
            chinese.add(row)
    if fold is not None and chinese:
        _fold(part, chinese, fold, marks)
    return commit(folder, key, {part.name: marks})


def reject(
    language: str | None,
    score: float | None,
    script: str | None,
    least: Mapping[str, float] | None,
    scripts: Sequence[str] | None,
) -> str | None:
    """Why a document goes, if it does. `least` is by `base` of the languages; a declared language has no score."""
    if least is not None:
        if language is None or base(language) not in least:
            return f"language {language}"
        # The column has three decimals in float32, which is not the threshold's float64 of the same decimals.
        if score is not None and score < np.float32(least[base(language)]):
            return "language score"
    if scripts is not None and script not in scripts:
        return f"script {script}"
    return None


def _fold(part: Part, chinese: set[int], fold: str, marks: Marks) -> None:
    """Fold the text of rows. The column `script` stays what was found, and the note says it of the Han characters."""
    import opencc
    import pyarrow as pa

    converter = opencc.OpenCC(CONVERSIONS[fold])
    for table in iterate(part, ("row", "text")):
        table = table.filter(pa.array(np.isin(table["row"].to_numpy(), list(chinese))))
        scripts = identify.han(Texts.of(table["text"]))
        for row, text, script in zip(table["row"].to_pylist(), table["text"], scripts, strict=True):
            # In traditional text s2t would put other variants (measured: 0.3 % of a manual's characters, 1.5 % of
            # old poems'); t2s does nothing to simplified text (0.0 %), and folds what is mixed.
            if fold == "traditional" and script == "Hant":
                continue
            before = text.as_py()
            if edit := difference(before, converter.convert(before)):
                marks.edit(row, [edit], f"{script} folded to {fold}", f"folded to {fold}")


def difference(before: str, after: str) -> Edit | None:
    """The one replacement, in bytes of `before`, that turns it into `after`; None where they are equal."""
    if before == after:
        return None
    shorter = min(len(before), len(after))
    start = _common(before, after, shorter)
    end = _common(before[::-1], after[::-1], shorter - start)
    stop = len(before) - end
    first = len(before[:start].encode())
    return first, first + len(before[start:stop].encode()), after[start : len(after) - end]


def _common(first: str, second: str, most: int) -> int:
    """Length of the common beginning, at most `most`; halving, since comparison of slices is compiled."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
