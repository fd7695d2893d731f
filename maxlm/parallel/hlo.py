"""Reading the text of a compiled program (XLA's HLO): computations, instructions, shapes and device groups.

Only what `traffic.py` asks for. The text is the one that `compiled.as_text()` prints, where every computation starts
in the first column and every instruction a line:

    %name = f32[8,128]{1,0:T(8,128)} opcode(%operand, ...), attribute=value, ...
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")
_LAYOUT = re.compile(r"\{[^{}]*\}|/\*.*?\*/")
_MESH = re.compile(r"mesh\[(.*?)\](?:,\s*device_ids=\(((?:[^()]|\([^()]*\))*)\))?\s*\{(.*?)\}")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    arguments: str  # what stands between the brackets
    attributes: str

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        if "%" in self.arguments:
            return tuple(re.findall(r"%([\w.\-]+)", self.arguments))
        return tuple(part.split()[-1] for part in _split(self.arguments)) if self.arguments.strip() else ()

    @property
    def op_name(self) -> str:
        """Where in the traced Python it comes from; empty where the compiler does not say."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    def called(self, attribute: str) -> tuple[str, ...]:
        """Names of the computations that an attribute gives, one or a list in braces."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return tuple(re.findall(r"[\w.\-]+", found[1])) if found else ()

    def number(self, attribute: str) -> int | None:
        found = re.search(rf"\b{attribute}=(\d+)", self.attributes)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]
    root: Instruction


@dataclass(frozen=True)
class Program:
    computations: dict[str, Computation]
    entry: Computation
    num_partitions: int
    replica_count: int


def parse(text: str) -> Program:
    """A program from its text; raises ValueError where the text has no entry computation."""
    computations, entry = {}, None
    lines = iter(text.splitlines())
    header = next(lines, "")
    for line in lines:
        found = _HEADER.match(line)
        if found and "=" not in line.split("(")[0]:
            computation = _computation(found[2], lines)
            computations[computation.name] = computation
            entry = computation if found[1] else entry
    if entry is None:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    counts = {key: re.search(rf"\b{key}=(\d+)", header) for key in ("num_partitions", "replica_count")}
    return Program(computations, entry, **{key: int(found[1]) if found else 1 for key, found in counts.items()})


def _computation(name: str, lines: Iterator[str]) -> Computation:
    instructions, root = {}, None
    for is_root, instruction in map(_line, _joined(lines)):
        instructions[instruction.name] = instruction
        root = instruction if is_root or root is None else root
    return Computation(name, instructions, root)


def _joined(lines: Iterator[str]) -> list[str]:
    """The lines of a computation, one an instruction: attributes of kernels may hold text with line breaks."""
    found: list[str] = []
    for line in lines:
        if line.startswith("}") and not line.startswith("}}"):
            break
        if _NAME.match(line):
            found.append(line)
        elif found:
            found[-1] += line
    return found


def _line(text: str) -> tuple[bool, Instruction]:
    found = _NAME.match(text)
    return bool(found[1]), _instruction(found[2], text[found.end() :])


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    if opcode is None:
        raise ValueError(f"cannot read the instruction %{name} = {text[:200]}")
    close = _closing(text, opcode.end() - 1)
    return Instruction(name, text[:end], opcode[1], text[opcode.end() : close], text[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"unbalanced brackets in {text[:200]}")


def _split(text: str) -> list[str]:
    """Parts between the commas that stand outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def elements(shape: str) -> list[str]:
    """The parts of a tuple's shape, or the one shape itself."""
    return [part.strip() for part in _split(shape[1:-1])] if shape.startswith("(") else [shape]


def plain(shape: str) -> str:
    """A shape without layout: bf16[4,256,8]."""
    return _LAYOUT.sub("", shape)


def num_bytes(shape: str) -> float:
    """Bytes of an array or of all parts of a tuple, without padding; raises ValueError for an unknown type."""
    return math.fsum(_width(dtype) * math.prod(_dimensions(sizes)) for dtype, sizes in _ARRAY.findall(shape))


def dimensions(shape: str) -> tuple[int, ...]:
    """Sizes of a shape that is one array."""
    found = _ARRAY.search(shape)
    return tuple(_dimensions(found[2])) if found else ()


def _dimensions(sizes: str) -> list[int]:
    return [int(size) for size in sizes.replace("<=", "").split(",") if size]


def _width(dtype: str) -> float:
    if dtype in ("pred", "token"):
        return float(dtype == "pred")
    bits = _BITS.match(dtype)
    if bits is None:
        raise ValueError(f"unknown type of array '{dtype}'")
    return int(bits[1]) / 8  # f8e4m3fn has 8 bits, bf16 16, c64 64, s4 4


def replica_groups(text: str) -> list[tuple[int, ...]]:
    """Groups of device numbers from the text that follows `replica_groups=`; an empty list means all devices.

    Three notations: lists {{0,2},{1,3}}; iota [2,4]<=[4,2]T(1,0), which counts up in the shape [4,2], transposes and
    reshapes to groups by rows; and a mesh of its own with the axes that a group spans, mesh['a'=4,'b'=2] {'a'}, where
    'a':(2)4 is the part of size 4 after a part of size 2, and device_ids=(...) permutes the devices.
    """
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if text.startswith("["):
        shape, order = text.split("<=", 1)
        return [tuple(row) for row in _iota(order).reshape(_integers(shape)).tolist()]
    found = re.match(r"\{(\{[\d,{} ]*\})?\}", text)
    if found is None:
        raise ValueError(f"cannot read the device groups {text[:80]}")
    return [tuple(_integers(group)) for group in re.findall(r"\{([\d, ]+)\}", found[1] or "")]


def source_target_pairs(text: str) -> list[tuple[int, ...]]:
    """(from, to) of a permute, from the text that follows `source_target_pairs=`."""
    found = re.match(r'"?\{((\{\d+,\s*\d+\},?\s*)*)\}', text)
    if found is None:
        raise ValueError(f"cannot read the device pairs {text[:80]}")
    return [tuple(_integers(pair)) for pair in re.findall(r"\{([\d, ]+)\}", found[1])]


def _mesh_groups(text: str) -> list[tuple[int, ...]]:
    found = _MESH.match(text)
    if found is None:
        raise ValueError(f"cannot read the device groups {text[:80]}")
    sizes = {name: int(size) for name, size in re.findall(r"['\"](.*?)['\"]=(\d+)", found[1])}
    devices = np.arange(math.prod(sizes.values()))
    if found[2]:
        devices = _iota(found[2].split("<=")[-1]) if found[2].startswith("[") else np.array(_integers(found[2]))
    spanned = {name: part for name, *part in re.findall(r"['\"](.*?)['\"](?::\((\d+)\)(\d+))?", found[3])}
    shape, inside = [], []
    for name, size in sizes.items():
        before, middle = (int(part or 1) for part in spanned.get(name, ("", "")))
        middle = size if name in spanned and not spanned[name][1] else middle
        shape += [before, middle, size // (before * middle)]
        inside.append(len(shape) - 2)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    members = math.prod(shape[axis] for axis in inside)
    return [tuple(row) for row in devices.reshape(shape).transpose(outside + inside).reshape(-1, members).tolist()]


def _iota(text: str) -> np.ndarray:
    """[4,2]T(1,0): the numbers from 0 in that shape, transposed, flat."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        raise ValueError(f"cannot read the device order {text[:80]}")
    numbers = np.arange(math.prod(_integers(found[1]))).reshape(_integers(found[1]))
    return (numbers.transpose(_integers(found[2])) if found[2] else numbers).reshape(-1)


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
