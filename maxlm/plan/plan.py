"""A plan: what a run takes on given hardware, estimated in a second or read from the compiled program.

plan = make_plan(config, system, compile=True)
plan.to_json()
"""

from dataclasses import dataclass
from typing import Any

from maxlm.config import Config
from maxlm.errors import DoesNotFitError
from maxlm.model import counts
from maxlm.parallel.hardware import System
from maxlm.plan import memory, roofline
from maxlm.plan.measured import Measured, TooLarge, measure
from maxlm.plan.remedies import remedies
from maxlm.plan.roofline import Prediction
from maxlm.plan.space import check_layout

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Figures are of one device, which is a chip (of TPU 7x half of one)."""

    config: Config
    system: System
    mesh: dict[str, int]  # sizes of the axes
    memory: dict[str, float]  # bytes by part, estimated
    predicted: Prediction
    measured: Measured | TooLarge | None  # by compiling

    @property
    def needed_gib(self) -> float:
        """Of device memory: the compiler's peak where there is one, else the estimate."""
        if self.measured is None:
            return sum(self.memory.values()) / GIB
        return self.measured.needs_gib if isinstance(self.measured, TooLarge) else self.measured.peak_gib

    @property
    def available_gib(self) -> float:
        return self.system.chip.hbm_bytes / GIB

    @property
    def fits(self) -> bool:
        return not isinstance(self.measured, TooLarge) and self.needed_gib <= self.available_gib

    def check_fit(self) -> None:
        """Raise `DoesNotFitError` where the step does not fit, with what is largest and what may help."""
        if self.fits:
            return
        largest = self.measured.largest if self.measured else []
        if not largest:
            parts = sorted(self.memory, key=self.memory.get, reverse=True)[:3]
            largest = [f"{self.memory[part] / GIB:.1f} GiB {part}" for part in parts]
        raise DoesNotFitError(
            f"does not fit: needs {self.needed_gib:.1f} of {self.available_gib:.1f} GiB on {self.system.name}; "
            f"largest buffers are {', '.join(largest)}; try {remedies(self.config, self.system)}"
        )

    def to_json(self) -> dict[str, Any]:
        model, predicted = self.config.model, self.predicted
        return {
            "name": self.config.name,
            "hardware": self.system.name,
            "chips": self.system.num_chips * self.config.mesh.slices,
            "mesh": self.mesh,
            "parameters": counts.parameter_count(model),
            "active_parameters": counts.active_parameter_count(model),
            "parameters_by_part": counts.parameters_by_part(model),
            "flops_per_token": counts.flops_per_token(model, self.config.data.seq_len),
            "estimate": {
                "gib_per_chip": _rounded(sum(self.memory.values()) / GIB),
                "parts": {part: _rounded(size / GIB) for part, size in self.memory.items()},
            },
            "predicted": {
                "step_seconds": predicted.step_seconds,
                "mfu": predicted.mfu,
                "tokens_per_second_per_chip": predicted.tokens_per_second_per_chip,
                "days": predicted.days,
                "cost": predicted.cost,
                "parts": predicted.parts,
                "overlapped": predicted.overlapped,
                "mfu_formula": predicted.mfu_formula,
            },
            "compiled": self.measured.to_json() if self.measured else None,
            "fits": self.fits,
        }


def make_plan(config: Config, system: System, compile: bool = False, measured: Measured | None = None) -> Plan:
    """Estimate, and with `compile` compile too, unless what that shows is given.

    Raises `ConfigError` where a size does not divide.
    """
    layout = check_layout(config, system)
    estimated, predicted = memory.estimate(layout), roofline.predict(config, system)
    if compile:
        measured = measure(config, system)
    return Plan(config, system, dict(layout.shape), estimated, predicted, measured)


def _rounded(gib: float) -> float:
    return round(gib, 3)
