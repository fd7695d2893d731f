"""Tensors of a folder of safetensors files, read one at a time.

A file is 8 bytes, the length of the header (uint64, little-endian); the header, a JSON object of
{name: {dtype, shape, data_offsets: [begin, end]}} with offsets from its end; and the tensors, row by row, without gaps.
(https://github.com/huggingface/safetensors#format) Of several files model.safetensors.index.json says which tensor is
in which.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from maxlm.errors import DataError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100 * 10**6  # bytes; the format's own limit
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies."""

    name: str
    file: Path
    dtype: str  # as the header calls it
    shape: tuple[int, ...]
    begin: int  # in the file
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    def read(self) -> np.ndarray:
        """All of it; raises `DataError` for a file that is shorter than its header says."""
        values = np.empty(self.shape, DTYPES[self.dtype])
        buffer, done = memoryview(values.reshape(-1).view(np.uint8)), 0
        with open(self.file, "rb", buffering=0) as file:
            while done < self.nbytes:
                count = os.preadv(file.fileno(), [buffer[done:]], self.begin + done)
                if not count:
                    raise DataError(f"{self.file}: ends within {self.name}; get the file again")
                done += count
        return values

    def map(self) -> np.ndarray:
        """A view of the file: what is not looked at is not read."""
        dtype = DTYPES[self.dtype]
        if not self.nbytes:
            return np.empty(self.shape, dtype)
        flat = np.memmap(self.file, np.uint8, "r", self.begin, (self.nbytes,))
        return np.ndarray(self.shape, dtype, flat)


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its name, from the headers of its files alone.

    Raises `DataError` that names the file: none that can be read, one that is missing, truncated or not of the format,
    a tensor that two files have, one that is not where the index says.
    """
    placed = _index(directory)
    files = sorted(set(placed.values())) if placed else [SINGLE]
    if missing := [name for name in files if not (directory / name).is_file()]:
        raise DataError(f"{directory / INDEX}: names files that are not there: {listed(missing)}; get them")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for tensor in read_header(directory / file):
            if other := tensors.get(tensor.name):
                raise DataError(f"{directory}: both {other.file.name} and {file} have the tensor {tensor.name}")
            tensors[tensor.name] = tensor
    wrong = [name for name, file in placed.items() if name not in tensors or tensors[name].file.name != file]
    if wrong:
        raise DataError(f"{directory / INDEX}: these tensors are not in the files that it names: {listed(wrong)}")
    return tensors


def _index(directory: Path) -> Mapping[str, str]:
    """The file of every tensor, as the index says; empty for a single file."""
    path = directory / INDEX
    if (directory / SINGLE).is_file():
        return {}
    if not path.is_file():
        pickled = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(directory.glob(pattern))]
        if pickled:
            raise DataError(
                f"{directory}: has its tensors in {listed(pickled)} alone, which are pickled programs and are not run; "
                "save the model with transformers' save_pretrained, which writes safetensors"
            )
        raise DataError(f"{directory}: has neither {SINGLE} nor {INDEX}; expected a folder as transformers saves it")
    try:
        placed = json.loads(path.read_bytes())["weight_map"]
        safe = all(isinstance(file, str) and Path(file).name == file for file in placed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not an index of safetensors files ({_short(error)}); get it again") from None
    if not placed or not safe:
        raise DataError(f"{path}: not an index of safetensors files (expected names of files of its folder)")
    return placed


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ValueError(f"of {size} bytes, a header of {length} bytes")
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        tensors = [_tensor(name, path, entry, 8 + length) for name, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({_short(error)}); get it again") from None
    end = 8 + length
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin != end:
            raise DataError(f"{path}: {tensor.name} begins at byte {tensor.begin}, found {end}; get the file again")
        end = tensor.end
    if end != size:
        raise DataError(f"{path}: has {size} bytes, its header says {end}; it is truncated or not whole, get it again")
    return tensors


def _tensor(name: str, path: Path, entry: Any, start: int) -> Tensor:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)) or end < begin:
        raise ValueError(f"{name}: shape {shape} at {begin} to {end}")
    if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name}: {end - begin} bytes for {dtype} {list(shape)}")
    return Tensor(name, path, dtype, shape, start + begin, start + end)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return found


def listed(names: Sequence[str]) -> str:
    """All names; those that differ in the number of a layer or an expert alone are put together: layers.{0-2,5}.w."""
    rows = [tuple(name.split(".")) for name in names]
    for place in reversed(range(max(map(len, rows), default=0))):
        alike: dict[tuple[str, ...], list[int]] = {}
        for row in rows:
            numbered = len(row) > place and row[place].isdecimal()
            key = (*row[:place], "", *row[place + 1 :]) if numbered else row
            alike.setdefault(key, []).extend([int(row[place])] if numbered else [])
        rows = [
            (*key[:place], _ranges(numbers), *key[place + 1 :]) if numbers else key for key, numbers in alike.items()
        ]
    return ", ".join(".".join(row) for row in rows)


def _ranges(numbers: list[int]) -> str:
    """3; or {0-2,5}, of more than one."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) + "}"


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
