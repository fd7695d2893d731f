"""Time and rates of steps, measured without reading a value from the device."""

import time
from collections.abc import Iterator
from typing import Any

import jax

from maxlm.parallel.hardware import peak_flops
from maxlm.report.metrics import Goodput


class Meter:
    """Seconds per step since the last line, apart from what was waited for data, evaluation and saving.

    `flops_per_token` counts no recomputation; MFU is flops_per_token x tokens/s / (devices x dense bfloat16 peak).
    """

    def __init__(self, devices: list[jax.Device], flops_per_token: float, began: float):
        peak = peak_flops(devices[0].device_kind)
        self._peak = peak * len(devices) if peak else None
        self._device = devices[0]
        self._flops_per_token = flops_per_token
        self._previous: Any = None
        self.goodput = Goodput(began)
        self.resume()

    def resume(self) -> None:
        """Start counting anew, after a line of the metrics or after something that is no step."""
        self._mark, self._steps, self._seconds, self._waited = time.monotonic(), 0, 0.0, 0.0

    def skip(self) -> None:
        """Leave out the time since the last step (an evaluation, a save)."""
        self._mark = time.monotonic()

    def next_batch(self, reader: Iterator[dict]) -> dict:
        began = time.monotonic()
        batch = next(reader)
        self._waited += time.monotonic() - began
        return batch

    def step_started(self, metrics: dict[str, jax.Array]) -> None:
        """Wait until the step before this one is done: the device always has one to go on with, never many."""
        if self._previous is not None:
            jax.block_until_ready(self._previous)
        self._previous = metrics["loss"]
        now = time.monotonic()
        self._seconds, self._steps, self._mark = self._seconds + now - self._mark, self._steps + 1, now

    def take(self, batch_tokens: int) -> dict[str, float | None]:
        """Fields of a metrics line: means per step since the last line."""
        step_seconds, waited = self._seconds / self._steps, self._waited / self._steps
        self.goodput.productive(self._seconds - self._waited)
        rate = batch_tokens / step_seconds
        memory = self._device.memory_stats() or {}
        used = memory.get("peak_bytes_in_use")
        self.resume()
        return {
            "step_seconds": step_seconds,
            "data_wait_seconds": waited,
            "tokens_per_second": rate,
            "mfu": rate * self._flops_per_token / self._peak if self._peak else None,
            "hbm_gib": used / 2**30 if used else None,
        }
