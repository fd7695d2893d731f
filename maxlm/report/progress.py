"""What a person sees while something runs. Progress and notes go to stderr, results to stdout, so that
`maxlm eval RUN > results.txt` shows the one and keeps the other.

On a terminal a run has one live line with notes printed above it; elsewhere (a log file, a scheduler) every log
step is one plain line without control characters.

    with Progress("demo", total_steps=1950, start_step=0) as progress:
        progress.update({"step": 120, "tokens": 983040, "loss": 4.213, "tokens_per_second": 12345.0, ...})
        progress.note("checkpoint saved at step 120 in 1.2 s")

    for file in track(files, "verifying checksums"):
        ...
"""

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

T = TypeVar("T")
Track = Callable[..., Iterable]  # what passes on items and shows their progress, as `track` below

QUIET_SECONDS = 2.0  # what is over sooner shows no progress
PLAIN_SECONDS = 30.0  # between two plain lines of `track`
UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def compact(count: float) -> str:
    """A count in at most six characters: 999, 1.2K, 3.4M, 15.0T."""
    for size, unit in UNITS:
        if count >= 0.99995 * size:  # 999,950 is 1.0M, not 1000.0K
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: 42s, 2m10s, 3h05m, 12d 4h."""
    minutes, s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{s:02d}s" if minutes else f"{s}s"
    hours, m = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours}h{m:02d}m"
    days, h = divmod(round(seconds / 3600), 24)
    return f"{days}d {h}h"


class StepTimer:
    """Seconds per step as the median over the last 32 updates, which one evaluation or one save does not move."""

    def __init__(self):
        self._recent: deque[float] = deque(maxlen=32)
        self._last: tuple[int, float] | None = None

    def add(self, step: int, now: float, step_seconds: float | None = None) -> None:
        """Note that `step` was reached at `now`; `step_seconds` stands in where there is no step before."""
        if self._last and step > self._last[0]:
            self._recent.append((now - self._last[1]) / (step - self._last[0]))
        elif not self._recent and step_seconds:
            self._recent.append(step_seconds)
        self._last = (step, now)

    def left(self, steps: int) -> float | None:
        """Seconds that `steps` more take; None before the first measurement."""
        return statistics.median(self._recent) * steps if self._recent else None


class Progress:
    """The progress of a training run, from `start_step` to `total_steps`; a context manager. One that is not `shown`
    says nothing: of the processes of a run, one speaks."""

    def __init__(self, name: str, total_steps: int, start_step: int, shown: bool = True):
        self.name = name
        self.total_steps = total_steps
        self._shown = shown
        self._timer = StepTimer()
        self._line: Mapping[str, Any] = {"step": start_step}
        self._deadline: float | None = None
        self._doing = ""  # what keeps the steps waiting
        self._live = None

    def __enter__(self) -> Self:
        if self._shown and _on_terminal():
            from rich.live import Live

            # The live line lives on stderr; stdout is routed above it only where both are the same screen.
            self._live = Live(
                get_renderable=self._render,
                console=_console(),
                refresh_per_second=2,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def update(self, line: Mapping[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        now = time.monotonic()
        self._timer.add(line["step"], now, line.get("step_seconds"))
        left = self._timer.left(self.total_steps - line["step"])
        self._deadline = None if left is None else now + left
        self._line = line
        if self._shown and not self._live:
            print(plain_line(line, self.total_steps, left), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print an event, above the live line where there is one."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)

    def track(self, iterable: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield from `iterable`, showing its progress in place of the run's; what comes of it is left to a note."""
        began = printed = time.monotonic()
        total = _total(iterable, total)
        try:
            for done, item in enumerate(iterable, 1):
                yield item
                now = time.monotonic()
                if self._live:
                    self._doing = _track_line(description, done, total, now - began, unit)
                elif self._shown and now - printed >= PLAIN_SECONDS:
                    printed = now
                    print(_track_line(description, done, total, now - began, unit), file=sys.stderr, flush=True)
        finally:
            self._doing = ""

    def _render(self):
        from rich.text import Text

        if self._doing:
            return Text.assemble((f"{self.name}  ", "bold"), self._doing, no_wrap=True, overflow="ellipsis")

        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        width = self._live.console.width if self._live else 80
        name, bar, rest = live_parts(self.name, self._line, self.total_steps, left, width)
        return Text.assemble((name, "bold"), (bar, "cyan"), rest, no_wrap=True, overflow="ellipsis")


def plain_line(line: Mapping[str, Any], total_steps: int, left: float | None) -> str:
    """One log step as aligned text; `left` in seconds."""
    total = f"{total_steps:,}"
    parts = [f"step {line['step']:>{len(total)},}/{total}"]
    parts += [f"tokens {_text(line.get('tokens'), compact):>6}", f"loss {_text(line.get('loss'), _loss):>6}"]
    parts += [f"lr {_text(line.get('learning_rate'), _rate):>7}"]
    parts += [f"{_text(line.get('tokens_per_second'), _grouped):>9} tok/s", f"{_text(left, duration):>6} left"]
    return "  ".join(parts)


def live_parts(
    name: str, line: Mapping[str, Any], total_steps: int, left: float | None, width: int
) -> tuple[str, str, str]:
    """Name, bar and figures of the live line in at most `width` characters: the bar takes what the figures leave;
    where that is too little, speed and tokens go first, then name and bar."""
    step, total = line["step"], f"{total_steps:,}"
    figures = [f"{step:>{len(total)},}/{total}"]
    if "loss" not in line:
        figures.append("waiting for the first step")
    else:
        figures += [f"{_text(line.get('tokens'), compact):>6} tokens", f"loss {_text(line['loss'], _loss):>6}"]
        figures += [f"{_text(line.get('tokens_per_second'), _grouped):>7} tok/s", f"{_text(left, duration):>6} left"]
        for index in (3, 1):
            if len(name) + len("  ".join(figures)) + 14 > width:
                del figures[index]
    rest = "  ".join(figures)
    room = min(40, width - len(name) - len(rest) - 4)
    if room < 5:
        return "", "", rest[:width]
    done = round(room * min(1.0, step / max(1, total_steps)))
    return f"{name}  ", "━" * done + "╌" * (room - done) + "  ", rest


def track(iterable: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yield from `iterable`, showing progress once it lasts over two seconds; `total` where it has no length.

    With a `unit`, what an item is one of, the rate is shown too.
    """
    total = _total(iterable, total)
    began = printed = time.monotonic()
    bar, task, done = None, None, 0
    try:
        for done, item in enumerate(iterable, 1):
            yield item
            now = time.monotonic()
            if now - began < QUIET_SECONDS:
                continue
            if not _on_terminal():
                if now - printed >= PLAIN_SECONDS:
                    printed = now
                    print(_track_line(description, done, total, now - began, unit), file=sys.stderr, flush=True)
            elif bar is None:
                bar = _start_bar(unit)
                task = bar.add_task(description, total=total, completed=done)
            else:
                bar.update(task, completed=done)
    finally:
        if bar:
            bar.stop()
    seconds = time.monotonic() - began
    if bar is None and seconds >= QUIET_SECONDS:
        print(_track_line(description, done, done, seconds, unit), file=sys.stderr, flush=True)


def untracked(iterable: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterable[T]:
    """In place of `track` where nothing is shown."""
    return iterable


def _total(iterable: Iterable, total: int | None) -> int | None:
    return len(iterable) if total is None and hasattr(iterable, "__len__") else total


def _track_line(description: str, done: int, total: int | None, seconds: float, unit: str) -> str:
    line = (
        f"{description}  {done:,}" + (f"/{total:,}" if total else "") + f" {unit}".rstrip() + f"  {duration(seconds)}"
    )
    if not unit or not done:
        return line
    left = f"  {duration(seconds * (total - done) / done)} left" if total and total > done else ""
    return f"{line}  {done / seconds:,.0f} {unit}/s{left}"


def _start_bar(unit: str):
    from rich import progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    columns = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn())
    columns += (progress.MofNCompleteColumn(), *((Rate(),) if unit else ()), progress.TimeRemainingColumn(compact=True))
    bar = progress.Progress(*columns, console=_console(), redirect_stdout=sys.stdout.isatty())
    bar.start()
    return bar


def _on_terminal() -> bool:
    # Not rich's own test: it takes FORCE_COLOR for a terminal, which continuous integration sets.
    return sys.stderr.isatty() and not _console().is_dumb_terminal


def _console():
    from rich.console import Console

    return Console(stderr=True)


def _text(value: Any, form: Any) -> str:
    return "-" if value is None else form(value)


def _loss(value: float) -> str:
    return f"{float(value):.3f}"


def _rate(value: float) -> str:
    return f"{float(value):.1e}"


def _grouped(value: float) -> str:
    return f"{float(value):,.0f}"
