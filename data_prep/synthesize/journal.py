"""The journal: what was sent and what was answered, on disk before anything else happens.

A row of `attempts` is committed before its request is sent, with the most that it can cost. It is closed when the
answer is in `answers`, or when the server refused. What stays open (the program was killed, the connection broke, time
ran out) may have been paid without an answer that we saw: it is in doubt, and its cost counts. So what is committed is
one sum, whether a run is at work or was killed:

    committed = cost of all answers + worst cost of all open attempts

SQLite with a write-ahead log that is synced at every commit: what a kill or a power cut tears is dropped when the
journal is opened again. It is held by one process, and no memory of it grows with the answers.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from data_prep.synthesize.answers import Answer
from maxlm.errors import DataError, MaxlmError, SaveError

JOURNAL = "journal.sqlite"
VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (id INTEGER PRIMARY KEY, key TEXT NOT NULL, worst REAL NOT NULL, outcome TEXT);
CREATE INDEX IF NOT EXISTS open_attempts ON attempts (worst) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, content TEXT NOT NULL, finish TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, counted INTEGER NOT NULL, cost REAL NOT NULL,
    time TEXT NOT NULL);
"""
ANSWERED, REFUSED = "answered", "refused"
Write = tuple[str, Sequence[Any]]


@dataclass(frozen=True)
class Totals:
    """Of all runs with a journal: attempts and answers, tokens, US dollars; `uncounted` answers did not tell tokens."""

    requests: int
    answered: int
    uncounted: int
    input_tokens: int
    output_tokens: int
    cost: float
    in_doubt: int
    cost_in_doubt: float


class Journal:
    """Opened by one process; calls must come one at a time, from whatever thread."""

    def __init__(self, directory: Path):
        self.path = directory / JOURNAL
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> "Journal":
        def start() -> sqlite3.Connection:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=1, isolation_level=None, check_same_thread=False)
            # Exclusive: then a write-ahead log needs no memory that processes share, which file systems of clusters
            # do not have.
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                database.execute(f"PRAGMA {setting}")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise DataError(f"{self.path}: a journal of version {version}, expected {VERSION}; set another output")
            database.executescript(SCHEMA)
            database.execute(f"PRAGMA user_version={VERSION}")
            return database

        self._database = self._guarded(start)
        return self

    def __exit__(self, *_) -> None:
        self._database.close()

    def answer(self, key: str) -> Answer | None:
        """The answer to a request, if there is one."""
        query = "SELECT content, finish, input_tokens, output_tokens, counted, cost, time FROM answers WHERE key = ?"
        row = self._guarded(lambda: self._database.execute(query, (key,)).fetchone())
        return None if row is None else Answer(*row[:4], bool(row[4]), *row[5:])

    def write(self, statements: Sequence[Write]) -> None:
        """Commit and sync statements, all or none."""

        def commit() -> None:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in statements:
                    self._database.execute(statement, values)
                self._database.execute("COMMIT")
            except sqlite3.Error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

        self._guarded(commit)

    def next_attempt(self) -> int:
        return self._one("SELECT coalesce(max(id), 0) + 1 FROM attempts")[0]

    def totals(self) -> Totals:
        """Reads all of it."""
        answers = "SELECT count(*), coalesce(sum(1 - counted), 0), coalesce(sum(input_tokens), 0), "
        answers += "coalesce(sum(output_tokens), 0), coalesce(sum(cost), 0.0) FROM answers"
        doubts = "SELECT count(*), coalesce(sum(worst), 0.0) FROM attempts WHERE outcome IS NULL"
        (requests,) = self._one("SELECT count(*) FROM attempts")
        return Totals(requests, *self._one(answers), *self._one(doubts))

    def _one(self, query: str) -> tuple:
        return self._guarded(lambda: self._database.execute(query).fetchone())

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """What SQLite and the system say, in one line."""
        try:
            return action()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise MaxlmError(f"{self.path}: another run writes it; wait for it, or set another output") from None
            raise SaveError(f"{self.path}: cannot be written ({error}); what is in it stays") from None
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path}: damaged ({error}); restore it, or move it away: then every question is asked again"
            ) from None
        except OSError as error:
            raise SaveError(f"{self.path}: cannot be written ({error.strerror})") from None


class Commits:
    """The journal for many who write at a time: what comes while a commit is synced goes with the next one.

    All calls of the journal run in one thread, so that nobody waits for the disk but who needs it.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, "journal")
        self._waiting: list[tuple[Sequence[Write], asyncio.Future]] = []
        self._task: asyncio.Task | None = None
        self._next = journal.next_attempt()

    def close(self) -> None:
        """Waits for what is being written."""
        self._thread.shutdown()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that reads the journal."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def open_attempt(self, key: str, worst: float) -> int:
        """Write down that a request is sent now; returns the number of the attempt."""
        attempt, self._next = self._next, self._next + 1
        insert = "INSERT INTO attempts (id, key, worst) VALUES (?, ?, ?)"
        await self._write([(insert, (attempt, key, worst))])
        return attempt

    async def close_attempt(self, attempt: int, key: str, answer: Answer | None) -> None:
        """Write down what came of an attempt: an answer, or that the server refused."""
        outcome = REFUSED if answer is None else ANSWERED
        statements: list[Write] = [("UPDATE attempts SET outcome = ? WHERE id = ?", (outcome, attempt))]
        if answer is not None:
            statements.append(("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (key, *astuple(answer))))
        await self._write(statements)

    async def _write(self, statements: Sequence[Write]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((statements, done))
        if self._task is None:
            self._task = asyncio.create_task(self._commit())
        await done

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self.call(self._journal.write, [one for statements, _ in batch for one in statements])
                problem = None
            except Exception as error:  # whoever waits raises it
                problem = error
            for _, done in batch:
                if not done.done():
                    done.set_exception(problem) if problem else done.set_result(None)
        self._task = None
