"""A process beside a worker that extracts text from pages, so that a page can hang or crash and cost only itself.

Pages go to it in batches and texts come back one by one, as bytes through two pipes. While it works on a batch, the
worker reads the next one. Each page has a wall clock, which the kernel keeps (SIGALRM), so that it holds whatever
library code does and also when the worker is gone. A page that ends the process is tried once more, alone in a new one:
neither a loaded machine nor memory that pages before it used up should change what is kept.

Memory of the worker: two batches of `BATCH_BYTES` or one page each, and their texts; of the process: at most `memory`.
"""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from data_prep.ingest.extractors import Extract
from data_prep.ingest.pages import Page
from maxlm.errors import ConfigError, MaxlmError

TIMED_OUT, CRASHED, FAILED, NO_TEXT = (
    "extraction timed out",
    "extraction crashed",
    "extraction failed",
    "no text extracted",
)
READY, TEXT, ERROR = b"R", b"T", b"E"
PIPE_BYTES = 2**20
F_SETPIPE_SZ, PR_SET_PDEATHSIG = 1031, 1  # of Linux


@dataclass(frozen=True)
class Failure:
    reason: str


class Child:
    """The process, started when it is first needed. `make` makes the extractor in it: importable, not a closure.

    `seconds` of wall clock per page, `memory` in bytes.
    """

    def __init__(self, make: Callable[[], Extract], seconds: float, memory: int):
        self.make, self.seconds, self.memory = make, seconds, memory
        self.process: multiprocessing.process.BaseProcess | None = None
        self._pages: Sequence[Page] = ()

    def send(self, pages: Sequence[Page]) -> None:
        """Hand over the next batch, after the texts of the last one were received."""
        self._pages = pages
        if not pages:
            return
        if self.process is None:
            self._start()
        try:
            self._out.send_bytes(_pack(pages))
        except OSError:
            self._end()  # It is found dead when its answer is missed.

    def receive(self) -> list[bytes | Failure]:
        """The texts of the batch that was sent, in UTF-8, or why there is none."""
        pages, texts = self._pages, []
        while len(texts) < len(pages):
            text = self._answer()
            if text is None:
                self._end()
                text = self._alone(pages[len(texts)])
                self.send(pages[len(texts) + 1 :])
            texts.append(text)
        self._pages = ()
        return texts

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self._end()
        self._pages = ()

    def _alone(self, page: Page) -> bytes | Failure:
        self.send([page])
        text = self._answer()
        return Failure(TIMED_OUT if self._end() == -signal.SIGALRM else CRASHED) if text is None else text

    def _answer(self) -> bytes | Failure | None:
        """The next text; None where the process died instead."""
        if self.process is None:
            return None
        try:
            answer = self._in.recv_bytes()
        except (EOFError, OSError):
            return None
        if not answer.startswith(TEXT):
            return Failure(FAILED)
        return answer[1:] if answer[1:].strip() else Failure(NO_TEXT)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        (pages, self._out), (self._in, texts) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        for pipe in (self._out, texts):
            _enlarge(pipe)
        arguments = (pages, texts, self.make, self.seconds, self.memory)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        pages.close()
        texts.close()
        try:
            ready = self._in.recv_bytes()
        except (EOFError, OSError):
            raise MaxlmError(
                f"the process that extracts text ends before it is ready (exit code {self._end()}); "
                "raise extract.memory"
            ) from None
        if ready != READY:
            self.close()
            raise ConfigError(f"extract: {ready[1:].decode()}")

    def _end(self) -> int | None:
        """Wait for a process that ends; its exit code."""
        if self.process is None:
            return None
        self._out.close()
        self._in.close()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return code


def _enlarge(pipe: Connection) -> None:
    """A pipe that holds a batch's texts, so that the process does not wait for a worker that reads the next batch."""
    if sys.platform == "linux":
        # Where it is more than this user may have, 64 kB do, only slower.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, PIPE_BYTES)


def _pack(pages: Sequence[Page]) -> bytes:
    fields = [field for page in pages for field in (page.html, (page.charset or "").encode())]
    return b"".join([struct.pack(f"<Q{len(fields)}Q", len(fields), *map(len, fields)), *fields])


def _unpack(batch: bytes) -> list[tuple[bytes, str | None]]:
    (count,) = struct.unpack_from("<Q", batch)
    lengths = struct.unpack_from(f"<{count}Q", batch, 8)
    fields, position = [], 8 * (count + 1)
    for length in lengths:
        fields.append(batch[position : position + length])
        position += length
    return [(html, charset.decode() or None) for html, charset in zip(fields[::2], fields[1::2], strict=True)]


def _serve(pages: Connection, texts: Connection, make: Callable[[], Extract], seconds: float, memory: int) -> None:
    """The process: texts for pages, until the pipe of pages is closed."""
    _prepare(memory)
    try:
        extract = make()
    except (ImportError, ValueError) as error:
        texts.send_bytes(ERROR + " ".join(str(error).split()).encode())
        return
    texts.send_bytes(READY)
    while True:
        try:
            batch = _unpack(pages.recv_bytes())
        except EOFError:
            return
        for html, charset in batch:
            answer = _extract(extract, html, charset, seconds)
            try:
                texts.send_bytes(answer)
            except OSError:
                return


def _extract(extract: Extract, html: bytes, charset: str | None, seconds: float) -> bytes:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return TEXT + extract(html, charset).encode("utf-8", "replace")
    except MemoryError:
        os._exit(1)  # What pages before it left may be why: it is tried in a new process.
    except Exception:
        return ERROR
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _prepare(memory: int) -> None:
    """Signals, limits, and an end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What dying library code prints would fall into the middle of the worker's output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if sys.platform == "linux":
        # A process that waits for pages sees the pipe close; this is for one that works on a page.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != multiprocessing.parent_process().pid:
            os._exit(1)
