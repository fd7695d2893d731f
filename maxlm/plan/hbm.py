"""Bytes that a compiled program reads from and writes to a device's memory, counted from its text.

Every operation reads its operands and writes its results; what a fusion computes inside stays on the chip. Slices read
what they take, updates in place write what they put, and what the compiler keeps in a TPU's scratch memory, S(1) in
the text, does not count. Caches of GPUs are not known here.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from maxlm.parallel import hlo
from maxlm.parallel.hlo import Computation, Instruction, Program
from maxlm.parallel.walk import Found, walk

# What only names memory, or is entered by the walk.
_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all", "partition-id"),
    *("opt-barrier", "copy-done", "async-done", "async-update", "send-done", "recv-done", "replica-id"),
}
_ENTERED = {"while", "conditional", "call", "async-start"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_SCRATCH = re.compile(r"\{[^{}]*S\(1\)[^{}]*\}")


@dataclass(frozen=True, kw_only=True)
class Access(Found):
    """One operation's reads and writes, in bytes, each time."""

    size: float


def memory_traffic(text: str) -> float:
    """Bytes read and written in one call of the program with this optimised HLO text, on one device.

    Raises ValueError where a loop has no known trip count.
    """
    program = hlo.parse(text)

    def leaf(instruction: Instruction, inside: Computation, where: str) -> list[Access] | None:
        if instruction.opcode in _ENTERED:
            return None
        if instruction.opcode in _NOTHING or instruction.opcode.endswith("-done"):
            return []
        return [Access(where=where, size=_accessed(instruction, inside, program))]

    found = [access.size * access.count for access in walk(program, leaf, lambda access: access.size * access.count)]
    if any(map(math.isnan, found)):
        raise ValueError("the program has a loop whose trip count does not follow from constants")
    return math.fsum(found)


def _accessed(instruction: Instruction, inside: Computation, program: Program) -> float:
    shapes = [inside.instructions[name].shape for name in instruction.operands]
    if instruction.opcode == "fusion":
        return _of_fusion(program.computations[instruction.called("calls")[0]], shapes, instruction.shape)
    if instruction.opcode in _SLICES:
        return 2 * _in_memory([instruction.shape])
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_memory(shapes[1:2])
    results = hlo.elements(instruction.shape)
    # A start names its operands again, besides what it writes and a counter.
    written = results[len(shapes) :] if instruction.opcode.endswith("-start") and len(results) > 1 else results
    if instruction.opcode == "copy-start":
        written = results[:1]
    return _in_memory(shapes) + _in_memory(written)


def _of_fusion(body: Computation, operands: list[str], result: str) -> float:
    """Reads of what enters a fusion and writes of what leaves it."""
    users: dict[str, list[Instruction]] = {}
    for user in body.instructions.values():
        for name in user.operands:
            users.setdefault(name, []).append(user)
    read = 0.0
    for parameter in (each for each in body.instructions.values() if each.opcode == "parameter"):
        shape = operands[int(parameter.arguments)]
        if not _scratch(shape):
            read += _read(parameter, shape, users)
    results = hlo.elements(result)
    roots = [body.root] if body.root.opcode != "tuple" else [body.instructions[name] for name in body.root.operands]
    if len(roots) != len(results):  # one operation with several results, such as a collective that starts
        return read + _in_memory(results)
    pairs = zip(roots, results, strict=True)
    return read + sum(_written(_behind(root, body), shape, body) for root, shape in pairs)


def _read(parameter: Instruction, shape: str, users: dict[str, list[Instruction]]) -> float:
    """The whole of a parameter, or only what is sliced from it; nothing of what is updated in place."""
    names, taken = [parameter.name], 0.0
    while names:
        name = names.pop()
        for user in users.get(name, ()):
            if user.opcode in ("bitcast", "copy") and hlo.num_bytes(user.shape) == hlo.num_bytes(shape):
                names.append(user.name)
            elif user.opcode in _SLICES and user.operands[0] == name:
                taken += hlo.num_bytes(user.shape)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return hlo.num_bytes(shape)
    return min(taken, hlo.num_bytes(shape))


def _behind(instruction: Instruction, body: Computation) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = body.instructions[instruction.operands[0]]
    return instruction


def _written(root: Instruction, shape: str, body: Computation) -> float:
    if _scratch(shape):
        return 0.0
    updated = root.opcode == "dynamic-update-slice"
    return hlo.num_bytes(body.instructions[root.operands[1]].shape if updated else shape)


def _in_memory(shapes: Iterable[str]) -> float:
    return math.fsum(hlo.num_bytes(part) for shape in shapes for part in hlo.elements(shape) if not _scratch(part))


def _scratch(shape: str) -> bool:
    return bool(_SCRATCH.search(shape))
