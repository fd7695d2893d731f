"""`maxlm export`: a run, a checkpoint or an imported model becomes a folder that transformers loads."""

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from maxlm import saved
from maxlm.checkpoint import CHUNK_BYTES
from maxlm.convert import card, tokenizer_files
from maxlm.convert.arrays import Slices, damaged, each, open_checkpoint, return_freed_memory
from maxlm.convert.building import building
from maxlm.convert.families import links, write_config
from maxlm.convert.folder import CONFIG, converted, parameters
from maxlm.convert.importing import Converted, megabytes
from maxlm.convert.links import Link, ParameterPath
from maxlm.convert.tensors import DTYPE_NAMES, INDEX, SINGLE
from maxlm.errors import ConfigError, DataError
from maxlm.model import counts
from maxlm.report.progress import track
from maxlm.saved import PARAMS, Saved

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


class Entry(NamedTuple):
    """A tensor of theirs to be written."""

    link: Link
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.link.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file of tensors, in the order in which they lie in it."""

    name: str
    entries: Sequence[Entry]

    def header(self) -> tuple[bytes, dict[str, int]]:
        """What the file begins with, and where each tensor begins."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers reads no file without it
        begin, begins = 0, {}
        for link, dtype in self.entries:
            end = begin + math.prod(link.shape) * dtype.itemsize
            entry = {"dtype": DTYPE_NAMES[dtype], "shape": list(link.shape), "data_offsets": [begin, end]}
            header[link.theirs], begins[link.theirs] = entry, begin
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        start = 8 + len(text)
        return len(text).to_bytes(8, "little") + text, {name: start + begin for name, begin in begins.items()}


def export(
    path: Path,
    out: Path,
    dtype: str | None = None,
    family: str | None = None,
    max_shard_size: str = "5GB",
    weights: str = PARAMS,
) -> Converted:
    """Make the folder `out` of a run's newest checkpoint, a checkpoint or an imported model, tensor by tensor.

    `dtype` converts the parameters, to the nearest, ties to even; None leaves them as they are stored. With `weights`
    "ema" the average of the parameters that the run kept goes out, which is stored in float32. Raises
    `ConfigError` for a model that the family, or none, can express, and an `out` that exists; `DataError` for a damaged
    checkpoint; `SaveError` where `out` cannot be written.
    """
    began = time.monotonic()
    return_freed_memory()
    found, most = saved.find(path), shard_bytes(max_shard_size)
    found.check_weights(weights)
    family, config = write_config(_with_length(found), family or found.run.get("family"))
    wanted = links(family, found.model)
    slices = _open(found, wanted, weights)
    dtypes = converted(found.model, slices.dtypes, dtype and jnp.dtype(dtype))
    shards = split_shards([Entry(link, _common(link, dtypes)) for link in wanted], most)
    nbytes = sum(entry.nbytes for shard in shards for entry in shard.entries)
    with building(out, nbytes) as partial:
        _write_shards(partial, shards, slices, found)
        if len(shards) > 1:
            _write_json(partial / INDEX, _index(shards, nbytes))
        main = max(shards[0].entries, key=lambda entry: entry.nbytes).dtype
        config |= tokenizer_files.token_ids(found) | {"dtype": main.name}
        _write_json(partial / CONFIG, config)
        tokenizer_files.write_files(found, partial, config)
        (partial / "README.md").write_text(card.model_card(found, family, main.name, weights))
    return Converted(family, counts.parameter_count(found.model), nbytes, time.monotonic() - began, [])


def shard_bytes(text: str) -> int:
    """Bytes of a size as transformers writes it: 5GB, 500MB, 2GiB."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MB|GB|MiB|GiB)", text)
    if number is None or not float(number[1]):
        raise ConfigError(f"--max-shard-size {text}: expected a size like 5GB, 500MB or 2GiB")
    return int(float(number[1]) * UNITS[number[2]])


def split_shards(entries: Sequence[Entry], most: int) -> list[Shard]:
    """Files of at most so many bytes of tensors, or of one tensor, named as transformers names them."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    count = len(groups)
    names = [SINGLE] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    # Wide types first, so that every tensor begins at a multiple of its type's size.
    ordered = [sorted(group, key=lambda entry: -entry.dtype.itemsize) for group in groups]
    return [Shard(name, group) for name, group in zip(names, ordered, strict=True)]


def _with_length(found: Saved):
    """The model, which was made for the longest sequences of its run where it does not say otherwise."""
    if found.model.context_length or found.config is None:
        return found.model
    longest = max(seq_len for _, seq_len in found.config.shapes)
    return found.model.model_copy(update={"context_length": longest})


def _common(link: Link, dtypes: Mapping[ParameterPath, np.dtype]) -> np.dtype:
    return np.dtype(jnp.result_type(*(dtypes[path] for path, _ in link.ours)))


def _open(found: Saved, wanted: Sequence[Link], item: str) -> Slices:
    """The checkpoint's parameters, after a look at their shapes.

    Checkpoints of earlier versions, and those that other programs write, have all layers in one chunk. It is kept
    while its layers are read, or each of them would read it all.
    """
    slices = open_checkpoint(found.directory, item=item)
    expected = {path: leaf.shape for path, leaf in parameters(found.model).items()}
    if unlike := sorted({".".join(path) for path, _ in expected.items() ^ slices.shapes.items()}):
        raise DataError(f"{found.directory}: its parameters are not those of its model: {', '.join(unlike[:5])}")
    kept = max(_shared_bytes(link, slices) for link in wanted)
    return open_checkpoint(found.directory, kept, item) if kept else slices


def _shared_bytes(link: Link, slices: Slices) -> int:
    """Bytes of the chunks of a link's parameters that hold other links' numbers too."""
    shared = 0
    for path, index in link.ours:
        chunk = slices.chunks[path]
        if any(size > 1 for size in chunk[: len(index)]):
            row = math.prod(chunk[: len(index)]) * math.prod(slices.shapes[path][len(index) :])
            shared += row * slices.dtypes[path].itemsize
    return shared


def _write_shards(directory: Path, shards: Sequence[Shard], slices: Slices, found: Saved) -> None:
    with ExitStack() as stack:
        places: dict[str, tuple[int, int]] = {}
        files = []
        for shard in shards:
            files.append(stack.enter_context(open(directory / shard.name, "wb", buffering=0)))
            header, begins = shard.header()
            files[-1].write(header)
            places |= {name: (files[-1].fileno(), begin) for name, begin in begins.items()}

        def convert(entry: Entry) -> None:
            try:
                parts = [slices.read(path, index, entry.dtype) for path, index in entry.link.ours]
            except ValueError as error:  # whatever a damaged file makes TensorStore raise
                raise damaged(found.directory, error) from None
            _write_tensor(*places[entry.link.theirs], entry.link.join(parts))

        entries = [entry for shard in shards for entry in shard.entries]
        if any(_shared_bytes(entry.link, slices) for entry in entries):
            entries.sort(key=lambda entry: entry.link.ours[0])
        done = each(convert, entries, lambda entry: entry.nbytes + _shared_bytes(entry.link, slices))
        total = sum(entry.nbytes for entry in entries)
        for _ in track(megabytes(done), f"exporting {found.directory}", max(1, total // 10**6), unit="MB"):
            pass
        for file in files:
            os.fsync(file.fileno())


def _write_tensor(handle: int, begin: int, values: np.ndarray) -> None:
    """Row after row at its place in a file; of transposed values a part at a time is put in order."""
    rows = max(1, CHUNK_BYTES * len(values) // max(1, values.nbytes)) if values.ndim else 1
    for first in range(0, len(values), rows):
        part = values[first : first + rows]
        if not part.flags.c_contiguous:
            part = ts.array(part).read(order="C").result()
        data = memoryview(part.reshape(-1).view(np.uint8))
        while data:
            count = os.pwrite(handle, data, begin)
            data, begin = data[count:], begin + count


def _index(shards: Sequence[Shard], nbytes: int) -> dict[str, Any]:
    placed = {entry.link.theirs: shard.name for shard in shards for entry in shard.entries}
    return {"metadata": {"total_size": nbytes}, "weight_map": placed}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
