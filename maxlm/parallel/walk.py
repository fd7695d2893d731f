"""Going through a compiled program as it runs: into what is called, as often as loops turn."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from maxlm.parallel.hlo import Computation, Instruction, Program
from maxlm.parallel.trips import Frame, Trips

_CALLS = ("calls", "to_apply", "called_computations")
_BRANCHES = ("branch_computations", "true_computation", "false_computation")


@dataclass(frozen=True)
class Loop:
    """A loop that something sits in."""

    name: str
    trips: float  # NaN where it does not follow from constants


@dataclass(frozen=True, kw_only=True)
class Found:
    """Something found in a program."""

    where: str  # op_name, the place in the traced Python
    count: float = 1.0  # times per call of the program; NaN where a loop around it has no known trip count
    loops: tuple[Loop, ...] = ()  # outermost first


Item = TypeVar("Item", bound=Found)
# What an instruction of a computation, at a place in the Python, counts as; None: look into what it calls.
Leaf = Callable[[Instruction, Computation, str], Sequence[Item] | None]


def walk(program: Program, leaf: Leaf, size: Callable[[Item], float]) -> Iterator[Item]:
    """Everything that `leaf` finds, in the order of the text.

    A loop multiplies `count` by its trips. A conditional counts as its largest branch by `size`.
    """
    yield from _Walk(program, leaf, size).read(Frame(program.entry), "")


class _Walk:
    def __init__(self, program: Program, leaf: Leaf, size: Callable[[Item], float]):
        self.program, self.leaf, self.size = program, leaf, size
        self.trips = Trips(program)

    def read(self, frame: Frame, where: str) -> Iterator[Item]:
        """What one run of a computation finds, with all that it calls."""
        for instruction in frame.computation.instructions.values():
            opcode, here = instruction.opcode, instruction.op_name or where
            found = self.leaf(instruction, frame.computation, here)
            if found is not None:
                yield from found
            elif opcode == "while":
                yield from self._loop(frame, instruction, here)
            elif opcode == "conditional":
                yield from self._largest_branch(frame, instruction, here)
            elif not opcode.endswith(("-done", "-update")):  # those name again what their -start has called
                for name in (name for attribute in _CALLS for name in instruction.called(attribute)):
                    yield from self.read(self.trips.enter(frame, instruction, name), here)

    def _loop(self, frame: Frame, instruction: Instruction, where: str) -> Iterator[Item]:
        count = self.trips.count(frame, instruction)
        trips = math.nan if count is None else float(count)
        loop = (Loop(instruction.name, trips),)
        # The condition is asked once more than the body runs.
        for part, times in (("body", trips), ("condition", trips + 1)):
            for inner in self.read(self.trips.enter_loop(frame, instruction, part), where):
                yield replace(inner, count=inner.count * times, loops=loop + inner.loops)

    def _largest_branch(self, frame: Frame, instruction: Instruction, where: str) -> list[Item]:
        names = [name for attribute in _BRANCHES for name in instruction.called(attribute)]
        branches = []
        for number, name in enumerate(names, 1):
            inner = Frame(self.program.computations[name], frame, (instruction.operands[number],))
            branches.append(list(self.read(inner, where)))
        return max(branches, key=lambda found: sum(map(self.size, found)), default=[])
