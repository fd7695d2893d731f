"""What a run says while it asks: a bar on a terminal, a line every ten seconds elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from data_prep.console import LINE_SECONDS, count, duration

STAGE = "synthesize"
TICK = 0.25  # seconds


class Progress:
    """Counts seeds that are finished (`known` of them without a question), answers and their tokens."""

    def __init__(self, console: Console, seeds: int):
        self.seeds, self.done, self.known = seeds, 0, 0
        self.answers = self.tokens = 0
        self._console = console
        self._start = self._last = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[text]}"))
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(STAGE, total=self.seeds, text="")
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, cost: float | None) -> None:
        """Called every `TICK`; `cost` so far in US dollars, None where nothing is paid."""
        text = self.text(cost, time.monotonic() - self._start)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=text)
        elif time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self.say(text)

    def text(self, cost: float | None, seconds: float) -> str:
        """Rates over the whole run; the time left by the seeds that took a question."""
        asked = self.done - self.known
        parts = [
            f"{self.done:,} of {self.seeds:,} seeds",
            f"{self.answers / max(seconds, TICK):.1f} requests/s",
            f"{count(self.tokens / max(seconds, TICK))} tokens/s",
            *([] if cost is None else [dollars(cost)]),
            *([f"{duration((self.seeds - self.done) * seconds / asked)} left"] if asked else []),
        ]
        return ", ".join(parts)

    def say(self, text: str) -> None:
        self._console.print(f"{STAGE}: {text}", highlight=False, markup=False, soft_wrap=True)


def dollars(amount: float) -> str:
    """With two decimals, or as many as show the first two digits of a smaller amount."""
    return f"${amount:,.2f}" if amount >= 0.1 or not amount else f"${amount:.2g}" if amount >= 1e-4 else "<$0.0001"
