"""How often the loops of a compiled program run, read from their conditions.

TPU programs state no trip counts. A loop is counted when its condition compares one element of the loop's tuple with
a constant, its body adds a constant to that element, and it starts at a constant. Constants may come from afar:
through tuples, copies, fusions, and the unchanging elements of the loops around.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from maxlm.parallel.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_TRANSPARENT = {"copy", "bitcast", "convert", "reshape", "opt-barrier", "copy-start", "copy-done"}
_ARITHMETIC = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
}
_SWAPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}


@dataclass(frozen=True)
class Frame:
    """A computation as it is called: where the values of its parameters come from.

    Exactly one caller is known of each frame; `arguments` are the caller's operands, or for the body and the condition
    of a loop the one tuple that enters it, of which only the elements that the body leaves alone are the same in
    every iteration.
    """

    computation: Computation
    caller: "Frame | None" = None
    arguments: tuple[str, ...] = ()
    loop: Instruction | None = None


class Value(NamedTuple):
    """An instruction of a frame, and which element of its tuple is meant."""

    frame: Frame
    instruction: Instruction
    path: tuple[int, ...]

    @property
    def is_parameter(self) -> bool:
        return self.instruction.opcode == "parameter"


class Trips:
    """Trip counts of one program."""

    def __init__(self, program: Program):
        self._computations = program.computations

    def enter(self, frame: Frame, call: Instruction, name: str) -> Frame:
        """The frame of a computation that an instruction other than a loop calls."""
        return Frame(self._computations[name], frame, call.operands)

    def enter_loop(self, frame: Frame, loop: Instruction, part: str) -> Frame:
        """The frame of a loop's `body` or `condition`."""
        return Frame(self._computations[loop.called(part)[0]], frame, loop.operands, loop)

    def count(self, frame: Frame, loop: Instruction) -> int | None:
        """How often a `while` runs; None where that does not follow from constants."""
        known = _KNOWN.search(loop.attributes)
        if known:
            return int(known[1])
        condition, body = (self.enter_loop(frame, loop, part) for part in ("condition", "body"))
        test = self._origin(Value(condition, condition.computation.root, ()))
        if test.instruction.opcode != "compare":
            return None
        direction = re.search(r"direction=(\w+)", test.instruction.attributes)[1]
        left, right = (self._operand(test, number) for number in (0, 1))
        if not self._varies(left):
            left, right, direction = right, left, _SWAPPED.get(direction, direction)
        if not self._varies(left) or left.frame is not condition:
            return None
        limit = self._constant(right)
        start = self._constant(self._find(frame, loop.operands[0], left.path))
        step = self._step(body, left.path)
        return None if None in (limit, start, step) else _iterations(start, limit, step, direction)

    def _step(self, body: Frame, path: tuple[int, ...]) -> int | None:
        """The constant that an iteration adds to an element of the loop's tuple."""
        after = self._origin(Value(body, body.computation.root, path))
        if after.instruction.opcode not in ("add", "subtract"):
            return None
        first, second = (self._operand(after, number) for number in (0, 1))
        if after.instruction.opcode == "add" and not (first.is_parameter and first.frame is body):
            first, second = second, first
        if not (first.is_parameter and first.frame is body and first.path == path):
            return None
        step = self._constant(second)
        return step if step is None or after.instruction.opcode == "add" else -step

    def _constant(self, value: Value) -> int | None:
        opcode = value.instruction.opcode
        if opcode == "constant":
            found = re.fullmatch(r"\s*(-?\d+)\s*", value.instruction.arguments)
            return int(found[1]) if found else None
        if opcode in _ARITHMETIC:
            first, second = (self._constant(self._operand(value, number)) for number in (0, 1))
            known = first is not None and second is not None
            return _ARITHMETIC[opcode](first, second) if known else None
        return None

    def _varies(self, value: Value) -> bool:
        """Whether it is an element of a loop's tuple that changes from one iteration to the next."""
        return value.is_parameter and value.frame.loop is not None

    def _operand(self, value: Value, number: int) -> Value:
        return self._find(value.frame, value.instruction.operands[number], ())

    def _find(self, frame: Frame, name: str, path: tuple[int, ...]) -> Value:
        return self._origin(Value(frame, frame.computation.instructions[name], path))

    def _origin(self, value: Value) -> Value:
        """Where a value comes from, through everything that only passes it on."""
        while True:
            passed = self._back(value)
            if passed is None:
                return value
            frame, name, path = passed
            value = Value(frame, frame.computation.instructions[name], path)

    def _back(self, value: Value) -> tuple[Frame, str, tuple[int, ...]] | None:
        """One step towards the origin; None at the origin."""
        frame, instruction, path = value
        match instruction.opcode:
            case opcode if opcode in _TRANSPARENT:
                return frame, instruction.operands[0], path
            case "tuple" if path:
                return frame, instruction.operands[path[0]], path[1:]
            case "get-tuple-element":
                return frame, instruction.operands[0], (instruction.number("index"), *path)
            case "fusion" | "call":
                name, *_ = instruction.called("calls") + instruction.called("to_apply")
                inner = self.enter(frame, instruction, name)
                return inner, inner.computation.root.name, path
            case "while" if path and self._unchanged(self.enter_loop(frame, instruction, "body"), path):
                return frame, instruction.operands[0], path
            case "parameter" if frame.caller is not None:
                body = self.enter_loop(frame.caller, frame.loop, "body") if frame.loop is not None else None
                if body is None or self._unchanged(body, path):
                    return frame.caller, frame.arguments[int(instruction.arguments)], path
        return None

    def _unchanged(self, body: Frame, path: tuple[int, ...]) -> bool:
        """Whether an iteration leaves an element of the loop's tuple as it was."""
        # Without the way out of the body, or this question would be asked again at its parameter.
        inside = Frame(body.computation)
        end = self._origin(Value(inside, inside.computation.root, path))
        return end.is_parameter and end.frame is inside and end.path == path


def _iterations(start: int, limit: int, step: int, direction: str) -> int | None:
    if step == 0:
        return None
    distance = limit - start
    match direction:
        case "LT" | "GT" if (step > 0) == (direction == "LT"):
            return max(0, math.ceil(distance / step))
        case "LE" | "GE" if (step > 0) == (direction == "LE"):
            return max(0, distance // step + 1)
        case "NE" if distance % step == 0 and distance // step >= 0:
            return distance // step
    return None
