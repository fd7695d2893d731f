"""What a compiled program moves between devices, by mesh axis: no surprises from the compiler.

    for transfer in transfers(compiled.as_text(), mesh):
        print(transfer.axes, transfer.opcode, transfer.bytes, transfer.where)

Bytes are those that one device sends in one call of the program, by the usual ring algorithms. With n devices in a
group, b bytes of operands on each device (as computed, after any padding that the compiler adds) and r of results:

    all-gather                    (n - 1) b, which is (n - 1) / n r
    all-reduce                    (n - 1) / n (b + r), which is 2 (n - 1) / n b where it does not convert its result
    reduce-scatter                (n - 1) / n b
    all-to-all                    (n - 1) / n b
    ragged-all-to-all             (n - 1) / n b, as though the buffer that is sent were full: the sizes are data
    collective-permute            b, by the devices that send
    collective-broadcast          b

Where devices differ (a permute in which some do not send, groups of several sizes) it is the busiest device. A device
that sends to itself sends nothing. A conditional counts its most expensive branch. Loops are multiplied by their trip
counts; where a count does not follow from constants, `Transfer.count` is NaN and `totals` refuses to add. Copies to
the host and what a custom kernel (Pallas) sends by itself do not appear.

Devices in the text are numbered by partition, which under `jax.jit` is the position in `mesh.devices.flat`, whatever
the ids of the devices. Over several TPU slices all run one program of the devices of a single slice, numbered in that
order; what crosses the data-centre network is a `send` to the runtime that says which collective it stands for.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from maxlm.parallel import hlo
from maxlm.parallel.hlo import Computation, Instruction
from maxlm.parallel.walk import Found, walk

# Bytes sent per byte of operands, by the size of the group.
SENT = {
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: (n - 1) / n,  # and of its result again
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
# Their numbers are always those of devices; without this flag the others group replicas, of which jit makes one.
_BY_PARTITION = {"all-to-all", "ragged-all-to-all", "collective-broadcast"}
SEMAPHORE = "u32[]{:S(2)}"  # a number in the TPU's memory for synchronisation
# What the runtime does between slices with what it is sent, each device with its like in the other slices.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICE_OPCODES = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


@dataclass(frozen=True, kw_only=True)
class Transfer(Found):
    """One collective operation of a program."""

    axes: tuple[str, ...]  # the mesh axes in which the devices of a group differ, in the mesh's order
    opcode: str  # without -start; an all-reduce fused with the slice of its result is a reduce-scatter
    size: float  # bytes that one device sends each time
    shape: str  # the result of an all-gather, the operands of others

    @property
    def bytes(self) -> float:
        """Bytes that one device sends in one call of the program."""
        return self.size * self.count

    @property
    def axis(self) -> str:
        """The axes as one name: fsdp, or data+fsdp where a group spans both."""
        return "+".join(self.axes)


def transfers(text: str, mesh: Mesh) -> list[Transfer]:
    """Everything that the program with this optimised HLO text moves over the mesh, in the order of the text.

    Raises ValueError where the text cannot be read, or is of a program for another number of devices.
    """
    program = hlo.parse(text)
    if program.replica_count != 1 or program.num_partitions not in (1, mesh.size // len(_slices(mesh))):
        raise ValueError(
            f"the program is for {program.replica_count} x {program.num_partitions} devices, the mesh has {mesh.size}"
        )
    return list(walk(program, _Reader(mesh).read, _weight))


def _slices(mesh: Mesh) -> dict[int, np.ndarray]:
    """Of every slice the positions of its devices, [devices, axes]; devices that know no slice are in one."""
    number = np.array([getattr(device, "slice_index", 0) for device in mesh.devices.flat])
    positions = np.stack(np.unravel_index(np.arange(mesh.size), mesh.devices.shape), axis=1)
    return {int(index): positions[number == index] for index in np.unique(number)}


def totals(moved: Iterable[Transfer]) -> dict[str, float]:
    """Bytes that one device sends per call, by axis name, the largest first; raises ValueError for unknown counts."""
    sums: dict[str, float] = {}
    for transfer in moved:
        if math.isnan(transfer.count):
            names = ", ".join(loop.name for loop in transfer.loops if math.isnan(loop.trips))
            raise ValueError(f"{transfer.opcode} of {transfer.shape}: no trip count is known of its loops {names}")
        sums[transfer.axis] = sums.get(transfer.axis, 0.0) + transfer.bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Row:
    """Transfers of one axis and opcode, together."""

    axis: str
    opcode: str
    bytes: float
    count: float
    largest: Transfer


def table(moved: Iterable[Transfer]) -> list[Row]:
    """Transfers added up by axis and opcode, the most bytes first; NaN, for unknown counts, before all."""
    groups: dict[tuple[str, str], list[Transfer]] = {}
    for transfer in moved:
        groups.setdefault((transfer.axis, transfer.opcode), []).append(transfer)
    rows = [
        Row(axis, opcode, sum(t.bytes for t in group), sum(t.count for t in group), max(group, key=_weight))
        for (axis, opcode), group in groups.items()
    ]
    return sorted(rows, key=_weight, reverse=True)


def _weight(item: Transfer | Row) -> float:
    return math.inf if math.isnan(item.bytes) else item.bytes


class _Reader:
    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.slices = list(_slices(mesh).values())
        self.positions = self.slices[0]

    def read(self, instruction: Instruction, inside: Computation, where: str) -> list[Transfer] | None:
        base = instruction.opcode.removesuffix("-start")
        if base in SENT and _continues(inside):
            return []
        if base in SENT:
            transfer = self._transfer(instruction, base, inside, where)
            return [transfer] if transfer is not None else []
        if instruction.opcode == "send" and (found := _BETWEEN_SLICES.search(instruction.attributes)):
            return [self._between_slices(instruction, _SLICE_OPCODES[found[1]], inside, where)]
        return None

    def _transfer(self, instruction: Instruction, opcode: str, inside: Computation, where: str) -> Transfer | None:
        groups = self._groups(instruction, opcode)
        axes = self._axes(groups)
        if not axes:
            return None
        operands = instruction.operands[:1] if opcode == "ragged-all-to-all" else instruction.operands
        if "slice_sizes=" in instruction.attributes:
            raise ValueError(f"cannot count the bytes of %{instruction.name}, which sends slices of its operands")
        shapes = [inside.instructions[name].shape for name in operands]
        if opcode == "all-reduce" and _only_slices_are_used(instruction, inside):
            opcode = "reduce-scatter"
        buffers = [*shapes, instruction.shape] if opcode == "all-reduce" else shapes
        size = SENT[opcode](max(map(len, groups))) * sum(map(hlo.num_bytes, buffers))
        if opcode == "all-gather":
            parts = hlo.elements(instruction.shape)
            shapes = hlo.elements(parts[1]) if instruction.opcode.endswith("-start") else parts
        shape = " + ".join(map(hlo.plain, shapes))
        return Transfer(where=where, axes=axes, opcode=opcode, size=size, shape=shape)

    def _between_slices(self, instruction: Instruction, opcode: str, inside: Computation, where: str) -> Transfer:
        alike = np.stack([positions[0] for positions in self.slices])
        axes = self._differing([alike])
        shape = inside.instructions[instruction.operands[0]].shape
        size = SENT[opcode](len(self.slices)) * hlo.num_bytes(shape) * (2 if opcode == "all-reduce" else 1)
        return Transfer(where=where, axes=axes, opcode=opcode, size=size, shape=hlo.plain(shape))

    def _groups(self, instruction: Instruction, opcode: str) -> list[tuple[int, ...]]:
        """Groups of positions in the mesh that exchange something; pairs for a permute."""
        attributes = instruction.attributes
        by_partition = "channel_id=" in attributes
        if opcode == "collective-permute":
            pairs = hlo.source_target_pairs(attributes.split("source_target_pairs=", 1)[1])
            return [pair for pair in pairs if by_partition and pair[0] != pair[1]]
        if not by_partition:
            return []  # among replicas, of which there is one
        found = re.search(r"\breplica_groups=", attributes)
        groups = hlo.replica_groups(attributes[found.end() :]) if found else []
        if not groups or (opcode not in _BY_PARTITION and "use_global_device_ids=true" not in attributes):
            return [tuple(range(len(self.positions)))]
        return [group for group in groups if len(group) > 1]

    def _axes(self, groups: list[tuple[int, ...]]) -> tuple[str, ...]:
        return self._differing([self.positions[list(group)] for group in groups])

    def _differing(self, groups: list[np.ndarray]) -> tuple[str, ...]:
        """Mesh axes in which the members [devices, axes] of any group differ."""
        differ = np.zeros(self.positions.shape[1], bool)
        for members in groups:
            differ |= (members != members[0]).any(axis=0)
        return tuple(name for name, here in zip(self.mesh.axis_names, differ, strict=True) if here)


def _continues(inside: Computation) -> bool:
    """Whether a fusion carries on with a collective that another one has begun, whose semaphores it is given.

    TPU programs so overlap one collective with several products, and write it once for its start, each of its steps,
    which may be in loops, and its end.
    """
    return any(i.opcode == "parameter" and i.shape == SEMAPHORE for i in inside.instructions.values())


def _only_slices_are_used(reduction: Instruction, inside: Computation) -> bool:
    """Whether each device keeps a part of the sum alone: so TPU programs write the reduce-scatter that they run."""
    names, sliced = {reduction.name}, False
    for user in inside.instructions.values():
        if not names.intersection(user.operands):
            continue
        if user.opcode in ("get-tuple-element", "bitcast", "copy", "reshape"):
            names.add(user.name)
        elif user.opcode == "dynamic-slice":
            sliced = True
        else:
            return False
    return sliced and not names & {inside.root.name}
