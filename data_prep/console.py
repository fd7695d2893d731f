"""What a run says: progress while a stage works, a line when it ends, and the outputs at the end."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from maxlm.data.shards import Manifest

LINE_SECONDS = 10.0


@contextlib.contextmanager
def progress(console: Console, stage: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Tell the bytes done so far: a bar on a terminal, a line every ten seconds elsewhere. A total of 0 is unknown."""
    start = time.monotonic()
    if not console.is_terminal:
        last = start

        def line(done: int) -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= LINE_SECONDS:
                last, rate = now, done / (now - start)
                left = f", {(total_bytes - done) / rate:,.0f} s left" if 0 < done < total_bytes else ""
                console.print(f"{stage}: {size(done)} of {size(total_bytes)}, {size(rate)}/s{left}")

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage, total=total_bytes or None, text="")

        def update(done: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, text=f"{size(done)} of {size(total_bytes)}, {size(rate)}/s")

        yield update


def print_outputs(console: Console, outputs: Mapping[str, Manifest]) -> None:
    names = ("documents", "text", "tokens", "bytes/token", "shards")
    table = Table(Column("output", overflow="fold"), *map(right, names))
    for directory, manifest in outputs.items():
        table.add_row(
            directory,
            f"{manifest.documents:,}",
            size(manifest.bytes),
            f"{manifest.tokens:,}",
            f"{bytes_per_token(manifest):.3f}",
            str(len(manifest.shards)),
        )
    console.print(table)


def bytes_per_token(manifest: Manifest) -> float:
    """Compression of the text; BOS and EOS are not counted."""
    added = manifest.documents * (1 if manifest.tokenizer.bos_id is None else 2)
    return manifest.bytes / max(1, manifest.tokens - added)


def size(count: float) -> str:
    """A number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def right(name: str) -> Column:
    return Column(name, justify="right", no_wrap=True)
