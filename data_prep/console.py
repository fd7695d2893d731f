"""What a run says: progress while a stage works, a line when it ends, and the outputs at the end."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from maxlm.data.shards import Manifest

LINE_SECONDS = 10.0


@contextlib.contextmanager
def progress(console: Console, stage: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Tell the bytes done so far: a bar on a terminal, a line every ten seconds elsewhere. A total of 0 is unknown."""
    pace = Pace(total_bytes)
    if not console.is_terminal:
        last = time.monotonic()

        def line(done: int) -> None:
            nonlocal last
            text = pace.text(done)
            if (now := time.monotonic()) - last >= LINE_SECONDS:
                last = now
                console.print(f"{stage}: {text}", highlight=False, markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage, total=total_bytes or None, text="")
        yield lambda done: bar.update(task, completed=done, text=pace.text(done))


class Pace:
    """Rate and time left; they count from the first report on, as a cluster needs seconds to start."""

    def __init__(self, total_bytes: int):
        self.total = total_bytes
        self._start: tuple[float, int] | None = None

    def text(self, done: int) -> str:
        now = time.monotonic()
        start, before = self._start = self._start or (now, done)
        rate = (done - before) / (now - start) if now > start else 0
        left = f", {duration((self.total - done) / rate)} left" if rate and done < self.total else ""
        whole = f" of {size(self.total)}" if self.total else ""
        return f"{size(done)}{whole}, {size(rate)}/s{left}"


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def print_outputs(console: Console, outputs: Mapping[str, Manifest]) -> None:
    """A table of the directories that training reads; what their paths share is said once."""
    parents = {str(Path(directory).parent) for directory in outputs}
    parent = parents.pop() if len(parents) == 1 else None
    names = ("documents", "text", "tokens", "bytes/token", "shards")
    first = Column(f"output in {parent}" if parent else "output", overflow="fold", ratio=1)
    table = Table(first, *map(right, names), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for directory, manifest in outputs.items():
        table.add_row(
            Path(directory).name if parent else directory,
            f"{manifest.documents:,}",
            size(manifest.bytes),
            f"{manifest.tokens:,}",
            f"{bytes_per_token(manifest):.3f}",
            f"{len(manifest.shards):,}",
        )
    console.print(table)


def bytes_per_token(manifest: Manifest) -> float:
    """Compression of the text; BOS and EOS are not counted."""
    added = manifest.documents * (1 if manifest.tokenizer.bos_id is None else 2)
    return manifest.bytes / max(1, manifest.tokens - added)


def size(count: float) -> str:
    """A number of bytes in decimal units."""
    return _scaled(count, (" B", " kB", " MB", " GB", " TB"))


def count(number: float) -> str:
    """A large number, rounded."""
    return _scaled(number, ("", " K", " M", " B", " T"))


def _scaled(number: float, units: Sequence[str]) -> str:
    for unit in units:
        # 999.96 would become 1000.0.
        if round(number, 1) < 1000 or unit == units[-1]:
            return f"{number:,.0f}{unit}" if unit == units[0] else f"{number:,.1f}{unit}"
        number /= 1000
    raise AssertionError


def right(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)
