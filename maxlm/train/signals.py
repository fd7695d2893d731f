"""A polite stop: SIGTERM (a scheduler's preemption) and Ctrl-C end the run after the step in progress, saved."""

import signal
import threading
from types import FrameType
from typing import Self

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


class StopRequest:
    """While it is entered, remembers the first signal; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.signal] if self.signal else 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._remember) for number in EXIT_CODES}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)
