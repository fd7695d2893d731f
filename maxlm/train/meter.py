"""Time and rates of steps, measured without reading a value from the device."""

import time

import jax

from maxlm.parallel.hardware import peak_flops
from maxlm.report.metrics import Goodput
from maxlm.train.reader import Reader


class Meter:
    """Seconds per step since the last line, apart from what was waited for data, evaluation and saving.

    FLOPs count no recomputation; MFU is FLOPs/s / (devices x dense bfloat16 peak).
    """

    def __init__(self, devices: list[jax.Device], began: float):
        peak = peak_flops(devices[0].device_kind)
        self._peak = peak * len(devices) if peak else None
        self._device = next(device for device in devices if device.process_index == jax.process_index())
        self._running: jax.Array | None = None  # a result of the step that was started last
        self._mark, self._steps, self._seconds, self._waited = 0.0, 0, 0.0, 0.0
        self._tokens, self._flops, self._work = 0, 0.0, (0, 0.0)  # slots and FLOPs; those of the running step
        self.goodput = Goodput(began)

    def next_batch(self, reader: Reader) -> dict[str, jax.Array]:
        began = time.monotonic()
        batch = next(reader)
        self._waited += time.monotonic() - began
        return batch

    def step_started(self, metrics: dict[str, jax.Array], tokens: int, flops: float) -> None:
        """Wait until the step before this one is done: the device always has one to go on with, never many.

        `tokens` are the slots of the step, `flops` those of the model for them.
        """
        if self._running is None:
            self._mark = time.monotonic()
        self.settle()
        self._running, self._work = metrics["loss"], (tokens, flops)

    def settle(self) -> None:
        """Wait for the step that was started last and count it; what comes before the next one is not counted."""
        if self._running is None:
            return
        jax.block_until_ready(self._running)
        now = time.monotonic()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        self._steps, self._running = self._steps + 1, None
        self._tokens, self._flops = self._tokens + self._work[0], self._flops + self._work[1]

    def take(self, metrics: dict[str, jax.Array]) -> dict[str, float | None]:
        """Fields of the line of a step, given its metrics: means per step since the last line."""
        if self._running is metrics["loss"]:
            self.settle()
        seconds, steps = self._seconds, self._steps
        self.goodput.productive(seconds - self._waited)
        memory = self._device.memory_stats() or {}
        used = memory.get("peak_bytes_in_use")
        line = {
            "step_seconds": seconds / steps,
            "data_wait_seconds": self._waited / steps,
            "tokens_per_second": self._tokens / seconds,
            "mfu": self._flops / seconds / self._peak if self._peak else None,
            "hbm_gib": used / 2**30 if used else None,
        }
        self._steps, self._seconds, self._waited, self._tokens, self._flops = 0, 0.0, 0.0, 0, 0.0
        return line
