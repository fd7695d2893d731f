"""A plan: what a run takes on given hardware, estimated in a second or read from the compiled program.

plan = make_plan(config, system, compile=True)
plan.to_json()
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maxlm.config import Config
from maxlm.data.overview import Overview
from maxlm.errors import DoesNotFitError
from maxlm.model import counts
from maxlm.parallel.hardware import System
from maxlm.plan import memory, roofline
from maxlm.plan.measured import Measured, TooLarge, measure
from maxlm.plan.remedies import remedies
from maxlm.plan.roofline import Prediction
from maxlm.plan.space import check_layout
from maxlm.plan.stages import laid_out, main_shape
from maxlm.report import mixture

GIB = 2**30


@dataclass(frozen=True)
class Steps:
    """Steps of one shape. Figures are of one device, which is a chip (of TPU 7x half of one)."""

    config: Config  # of a run whose steps all have the shape
    count: int  # in the run
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
    def seconds(self) -> float:
        return self.count * self.predicted.step_seconds

    def to_json(self) -> dict[str, Any]:
        return {
            "batch_size": self.config.batch_size,
            "seq_len": self.config.data.seq_len,
            "steps": self.count,
            "flops_per_token": counts.flops_per_token(self.config.model, self.config.data.seq_len),
            "estimate": {
                "gib_per_chip": _rounded(sum(self.memory.values()) / GIB),
                "parts": {part: _rounded(size / GIB) for part, size in self.memory.items()},
            },
            "predicted": vars(self.predicted),
            "compiled": self.measured.to_json() if self.measured else None,
        }


@dataclass(frozen=True)
class Plan:
    config: Config
    system: System
    mesh: dict[str, int]  # sizes of the axes
    shapes: Sequence[Steps]  # of the stages; the first has the most slots
    mixture: Overview

    @property
    def main(self) -> Steps:
        """The steps with the most slots."""
        return self.shapes[0]

    @property
    def largest(self) -> Steps:
        """The steps that need the most memory."""
        return max(self.shapes, key=lambda steps: steps.needed_gib)

    @property
    def chips(self) -> int:
        return self.system.num_chips * self.config.mesh.slices

    @property
    def days(self) -> float:
        """Of all steps, without interruptions."""
        return math.fsum(steps.seconds for steps in self.shapes) / 86400

    @property
    def cost(self) -> float | None:
        """In the currency of hardware.price_per_chip_hour; None without it."""
        price = self.config.hardware.price_per_chip_hour
        return None if price is None else self.days * 24 * self.chips * price

    @property
    def available_gib(self) -> float:
        return self.system.chip.hbm_bytes / GIB

    @property
    def fits(self) -> bool:
        refused = any(isinstance(steps.measured, TooLarge) for steps in self.shapes)
        return not refused and self.largest.needed_gib <= self.available_gib

    def check_fit(self) -> None:
        """Raise `DoesNotFitError` where a step does not fit, with what is largest and what may help."""
        if self.fits:
            return
        steps = self.largest
        largest = steps.measured.largest if steps.measured else []
        if not largest:
            parts = sorted(steps.memory, key=steps.memory.get, reverse=True)[:3]
            largest = [f"{steps.memory[part] / GIB:.1f} GiB {part}" for part in parts]
        raise DoesNotFitError(
            f"does not fit: needs {steps.needed_gib:.1f} of {self.available_gib:.1f} GiB on {self.system.name}; "
            f"largest buffers are {', '.join(largest)}; try {remedies(self.config, self.system)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Of the main shape, with the days and the cost of the whole run; `shapes` has every one."""
        model, main = self.config.model, self.main.to_json()
        return {
            "name": self.config.name,
            "hardware": self.system.name,
            "chips": self.chips,
            "mesh": self.mesh,
            "parameters": counts.parameter_count(model),
            "active_parameters": counts.active_parameter_count(model),
            "parameters_by_part": counts.parameters_by_part(model),
            "flops_per_token": main["flops_per_token"],
            "estimate": main["estimate"],
            "predicted": main["predicted"] | {"days": self.days, "cost": self.cost},
            "compiled": main["compiled"],
            "fits": self.fits,
            "shapes": [steps.to_json() for steps in self.shapes],
            "mixture": mixture.to_json(self.mixture),
        }


def make_plan(config: Config, system: System, compile: bool = False, measured: Measured | None = None) -> Plan:
    """Estimate, and with `compile` compile every shape too; `measured` is what compiling the main one has shown.

    Raises `ConfigError` where a size does not divide.
    """
    mesh, found = dict(check_layout(config, system).shape), laid_out(config)
    counted = found.steps_by_shape
    main = main_shape(counted)
    shapes = []
    for shape in dict.fromkeys((main, *config.shapes)):
        one = config.with_shape(*shape)
        estimated, predicted = memory.estimate(roofline.layout_for(one, system)), roofline.predict(one, system)
        known = measure(one, system) if compile else measured if shape == main else None
        shapes.append(Steps(one, counted.get(shape, 0), estimated, predicted, known))
    return Plan(config, system, mesh, shapes, found)


def _rounded(gib: float) -> float:
    return round(gib, 3)
