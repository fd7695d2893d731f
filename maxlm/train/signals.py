"""A polite stop: SIGTERM (a scheduler's preemption) and Ctrl-C end the run after the step in progress, saved.

With several processes jax listens to SIGTERM itself: it tells all of them, and they agree on a step which none has
begun. Ctrl-C in one of them is passed on as SIGTERM, so it stops them all in the same way.
"""

import itertools
import signal
import threading
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}

# Numbers the questions to jax. It stops at the number that follows the largest asked for, so they may never go back:
# not with the step at a rewind, and not in a second run of one program.
_QUESTIONS = itertools.count(1)


class StopRequest:
    """While it is entered, remembers the first signal; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._several = jax.process_count() > 1

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.signal] if self.signal else 0

    def agreed(self) -> bool:
        """Whether to stop after this step, in all processes alike; to be asked once a step."""
        if not self._several:
            return self.signal is not None
        if not multihost_utils.reached_preemption_sync_point(next(_QUESTIONS)):
            return False
        self.signal = self.signal or signal.SIGTERM
        return True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            numbers = [signal.SIGINT] if self._several else EXIT_CODES
            self._previous = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._several and self.signal is None:
            signal.raise_signal(signal.SIGTERM)
        self.signal = self.signal or signal.Signals(number)
