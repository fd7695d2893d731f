"""Time and rates of steps, measured without reading a value from the device."""

import time
from collections.abc import Iterator

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
        self._device = next(device for device in devices if device.process_index == jax.process_index())
        self._flops_per_token = flops_per_token
        self._running: jax.Array | None = None  # a result of the step that was started last
        self._mark, self._steps, self._seconds, self._waited = 0.0, 0, 0.0, 0.0
        self.goodput = Goodput(began)

    def next_batch(self, reader: Iterator[dict]) -> dict:
        began = time.monotonic()
        batch = next(reader)
        self._waited += time.monotonic() - began
        return batch

    def step_started(self, metrics: dict[str, jax.Array]) -> None:
        """Wait until the step before this one is done: the device always has one to go on with, never many."""
        if self._running is None:
            self._mark = time.monotonic()
        self.settle()
        self._running = metrics["loss"]

    def settle(self) -> None:
        """Wait for the step that was started last and count it; what comes before the next one is not counted."""
        if self._running is None:
            return
        jax.block_until_ready(self._running)
        now = time.monotonic()
        self._seconds, self._steps, self._mark, self._running = (
            self._seconds + now - self._mark,
            self._steps + 1,
            now,
            None,
        )

    def take(self, metrics: dict[str, jax.Array], batch_tokens: int) -> dict[str, float | None]:
        """Fields of the line of a step, given its metrics: means per step since the last line."""
        if self._running is metrics["loss"]:
            self.settle()
        step_seconds, waited = self._seconds / self._steps, self._waited / self._steps
        self.goodput.productive(self._seconds - self._waited)
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        rate = batch_tokens / step_seconds
        memory = self._device.memory_stats() or {}
        used = memory.get("peak_bytes_in_use")
        return {
            "step_seconds": step_seconds,
            "data_wait_seconds": waited,
            "tokens_per_second": rate,
            "mfu": rate * self._flops_per_token / self._peak if self._peak else None,
            "hbm_gib": used / 2**30 if used else None,
        }
