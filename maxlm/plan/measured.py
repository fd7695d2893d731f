"""What a compiled train step takes: memory, arithmetic and traffic of one chip, read from the program."""

import re
import time
from dataclasses import dataclass
from typing import Any

from jax.errors import JaxRuntimeError

from maxlm.config import Config
from maxlm.parallel import hlo
from maxlm.parallel.hardware import System
from maxlm.plan.communication import Layout
from maxlm.plan.compile import CompiledStep, compile_for
from maxlm.plan.roofline import layout_for
from maxlm.plan.work import Work, compiled_work

GIB = 2**30
# libtpu says one or the other when a program is too large, by how far it came.
_TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_ALLOCATION = re.compile(r"Size: ([\d.]+[KMGT]).*?(?:Operator: op_name=\"([^\"]*)\".*?)?Shape: (\S+)", re.DOTALL)
_UNITS = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 1024.0}


@dataclass(frozen=True)
class Measured:
    """Of one device. `sum_gib` is argument + output + temporary - alias, which counts fragmentation."""

    argument_gib: float
    output_gib: float
    temporary_gib: float
    alias_gib: float
    peak_gib: float
    sum_gib: float
    seconds: float  # to trace, lower and compile
    work: Work | None  # None where the program cannot be read, for which `unread` is the reason
    unread: str
    largest: list[str]  # buffers, in words

    @property
    def bytes_by_axis(self) -> dict[str, float]:
        """Sent in a step, the most first."""
        both = self.work.weights | self.work.activations if self.work else {}
        return dict(sorted(both.items(), key=lambda item: -item[1]))

    def to_json(self) -> dict[str, Any]:
        figures = {name: value for name, value in vars(self).items() if name not in ("work", "largest")}
        return figures | {"flops_per_chip": self.work and self.work.flops, "bytes_by_axis": self.bytes_by_axis}


@dataclass(frozen=True)
class TooLarge:
    """The compiler gave up: the program does not fit."""

    needs_gib: float
    seconds: float
    largest: list[str]

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def measure(config: Config, system: System) -> Measured | TooLarge:
    """Compile the train step for absent hardware and read the program.

    Raises `ConfigError` where sizes do not divide or the compiler for the hardware is not installed.
    """
    began = time.perf_counter()
    try:
        step = compile_for(config, system)
    except JaxRuntimeError as error:
        if (needs := _needed(str(error))) is None:
            raise
        return TooLarge(needs, time.perf_counter() - began, _allocations(str(error)))
    return _read(step, layout_for(config, system), time.perf_counter() - began)


def _read(step: CompiledStep, plan: Layout, seconds: float) -> Measured:
    memory = {f"{name}_gib": size / GIB for name, size in step.memory().items()}
    text, work, unread = step.executable.as_text(), None, ""
    try:
        work = compiled_work(text, step.mesh, plan)
    except ValueError as error:  # a new version of the compiler may write what is not known yet
        unread = str(error)
    return Measured(**memory, seconds=seconds, work=work, unread=unread, largest=largest_buffers(text))


def largest_buffers(text: str, number: int = 3) -> list[str]:
    """The largest arrays that a program makes outside its arguments, each with where it comes from."""
    program = hlo.parse(text)
    fused = {
        name
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
        for name in instruction.called("calls")
    }
    found: dict[str, float] = {}
    for computation in program.computations.values():
        for instruction in computation.instructions.values() if computation.name not in fused else ():
            if instruction.opcode in ("parameter", "while", "tuple", "conditional") or instruction.shape[0] == "(":
                continue
            label = f"{hlo.plain(instruction.shape)} of {_brief(instruction.op_name) or instruction.opcode}"
            found.setdefault(label, hlo.num_bytes(instruction.shape))
    order = sorted(found, key=found.get, reverse=True)[:number]
    return [f"{found[label] / GIB:.2f} GiB {label}" for label in order]


def _needed(message: str) -> float | None:
    """GiB of device memory that the compiler asked for in vain; None for any other failure."""
    for pattern in _TOO_LARGE:
        if found := pattern.search(message):
            return float(found[1]) * _UNITS[found[2]]
    return None


def _allocations(message: str, number: int = 3) -> list[str]:
    """The largest buffers that the compiler's message lists."""
    found = _ALLOCATION.findall(message)[:number]
    return [f"{size}iB {shape} of {_brief(name)}".removesuffix(" of ") for size, name, shape in found]


def _brief(op_name: str) -> str:
    """The last parts of a traced path."""
    return "/".join(op_name.split("/")[-2:])
