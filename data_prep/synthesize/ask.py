"""All questions of a run: as many seeds at a time as the server may be asked about, each from its first question on."""

import asyncio
import contextlib
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from data_prep.config.synthesis import Synthesis
from data_prep.synthesize.budget import Budget, Spent
from data_prep.synthesize.client import Client, Stopped
from data_prep.synthesize.journal import Commits, Journal
from data_prep.synthesize.progress import TICK, Progress
from data_prep.synthesize.recipe import Recipe, Request
from data_prep.synthesize.seeds import Seed
from maxlm.errors import MaxlmError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class End:
    """How asking ended: "done" with every seed, or why it ended before, with the error where there was one."""

    reason: Literal["done", "max_cost", "interrupted", "error"] = "done"
    error: MaxlmError | None = None


def ask(
    config: Synthesis, recipe: Recipe, key: str | None, seeds: Iterable[Seed], journal: Journal, progress: Progress
) -> End:
    """Put every question that is not answered yet. Whatever ends it, what is in flight is waited for: it may be paid.

    A first SIGINT or SIGTERM takes no more seeds; a second one gives up what is in flight (KeyboardInterrupt).
    """
    return asyncio.run(_Asking(config, recipe, key, journal, progress).run(iter(seeds)))


class _Asking:
    def __init__(self, config: Synthesis, recipe: Recipe, key: str | None, journal: Journal, progress: Progress):
        self.config, self.recipe, self.progress = config, recipe, progress
        self._journal, self._key = journal, key
        self._end = End()
        self._in_vain = 0

    async def run(self, seeds: Iterator[Seed]) -> End:
        totals = self._journal.totals()
        self._budget = Budget(self.config.prices, self.config.max_cost, totals.cost + totals.cost_in_doubt)
        self._commits = Commits(self._journal)
        try:
            async with Client(self.config.server, self._key, self._commits, self._budget) as self._client:
                with self._signals():
                    ticker = asyncio.create_task(self._tick())
                    # They share the iterator, which none of them waits inside of.
                    await asyncio.gather(*(self._work(seeds) for _ in range(self.config.server.concurrency)))
                    ticker.cancel()
        finally:
            self._commits.close()
        if self._in_vain:
            attempts = self.config.server.attempts
            message = f"{self._in_vain:,} seeds have no answer after {attempts} attempts each; the same command goes on"
            self._end_by("error", MaxlmError(f"{self.config.server.url}: {message}"))
        return self._end

    async def _work(self, seeds: Iterator[Seed]) -> None:
        """Take seeds until there are no more, or the run ends."""
        try:
            while self._end.reason == "done" and (seed := next(seeds, None)) is not None:
                await self._finish(seed)
        except Stopped:
            pass
        except Spent:
            self._end_by("max_cost")
        except MaxlmError as error:
            self._end_by("error", error)
            self._client.stop()

    async def _finish(self, seed: Seed) -> None:
        """Put the questions of a seed, one after the other, until it has an outcome or a request was in vain."""
        asked = False
        while isinstance(request := await self._commits.call(self.recipe.follow, seed, self._journal.answer), Request):
            answer = await self._client.ask(request)
            if answer is None:
                self._in_vain += 1
                return
            asked = True
            self.progress.answers += 1
            self.progress.tokens += answer.input_tokens + answer.output_tokens
        self.progress.done += 1
        self.progress.known += not asked

    def _end_by(self, reason: str, error: MaxlmError | None = None) -> None:
        """The first reason is the one that is told."""
        if self._end.reason == "done":
            self._end.reason, self._end.error = reason, error

    async def _tick(self) -> None:
        while True:
            self.progress.show(self._budget.committed if self.config.prices else None)
            await asyncio.sleep(TICK)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._interrupt)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        if self._client.stopping:
            raise KeyboardInterrupt
        self._end_by("interrupted")
        self._client.stop()
        self.progress.say("interrupted; waiting for what is in flight, which may be paid (once more to give it up)")
