"""The cost limit: the most that a request can cost is reserved before it is sent."""

import asyncio

from data_prep.config.synthesis import PricesConfig
from data_prep.synthesize.recipe import Request


class Spent(Exception):
    """The limit leaves no room for a request, with nothing in flight that could make some."""


class Budget:
    """`committed` is what answers cost and what open attempts can cost, in US dollars; it never passes the limit.

    Without prices everything costs nothing.
    """

    def __init__(self, prices: PricesConfig | None, limit: float | None, committed: float):
        self.prices = prices or PricesConfig(input=0, output=0)
        self.limit, self.committed = limit, committed
        self._in_flight = 0
        self._changed = asyncio.Event()

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.prices.input + output_tokens * self.prices.output) / 1e6

    def worst(self, request: Request) -> float:
        return self.cost(request.input_tokens, request.output_tokens)

    async def reserve(self, request: Request) -> float:
        """Wait until the limit has room for a request; raises `Spent` where that cannot be."""
        worst = self.worst(request)
        while self.limit is not None and self.committed + worst > self.limit:
            if not self._in_flight:
                raise Spent
            self._changed.clear()
            await self._changed.wait()
        self.committed += worst
        self._in_flight += 1
        return worst

    def settle(self, worst: float, cost: float) -> None:
        """A reserved request is over and cost this: nothing if it was refused, the worst if nobody knows."""
        self.committed += cost - worst
        self._in_flight -= 1
        self._changed.set()
