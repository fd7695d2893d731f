"""One request to a server, until it is answered: every attempt is in the journal before it is sent.

What passes (time out, a broken connection, 408, 409, 429, 5xx) is tried again, with pauses that double and are drawn
between half and all of their length, so that requests which failed together do not come back together; Retry-After
holds all requests back. Attempts for one request have the same Idempotency-Key, so that a server which honours it
charges once whatever the network does. Any other status would be the same for every request: it stops the run.
"""

import asyncio
import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from data_prep.config.synthesis import ServerConfig
from data_prep.ingest.records import replace_invalid
from data_prep.synthesize.answers import Answer
from data_prep.synthesize.budget import Budget
from data_prep.synthesize.journal import Commits
from data_prep.synthesize.recipe import Request
from maxlm.errors import ConfigError, MaxlmError

if TYPE_CHECKING:
    import httpx2

PASSING = (408, 409, 429)
# Of the errors of a server those by which it says that it did not answer; behind 502 and 504 somebody may have.
REFUSING = (500, 503)
FIRST_PAUSE, LONGEST_WAIT = 1.0, 3600.0  # seconds
MESSAGE_CHARACTERS = 300


class Stopped(Exception):
    """The run ends before the request was answered."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt gave no answer; whether it may have been paid all the same; whether all others will fail so."""

    reason: str
    doubtful: bool
    final: bool = False


class Client:
    """Asks as many as call `ask` at a time; `stop` makes those who wait or would send raise `Stopped`."""

    def __init__(self, config: ServerConfig, key: str | None, commits: Commits, budget: Budget):
        self.config, self._key = config, key
        self._commits, self._budget = commits, budget
        self._stop = asyncio.Event()
        self._failures = 0
        self._open_at = 0.0  # of time.monotonic()
        self._http: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> "Client":
        import httpx2

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=self.config.concurrency)
        # Time is limited as a whole (`_post`), not by what passes between two pieces of an answer.
        self._http = httpx2.AsyncClient(headers=headers, limits=limits, timeout=None)
        return self

    async def __aexit__(self, *_) -> None:
        await self._http.aclose()

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    async def ask(self, request: Request) -> Answer | None:
        """Send a request until it is answered, and the answer is on disk; None after `attempts` that were in vain.

        Raises `Stopped`, `Spent`, or the `MaxlmError` that should stop the run.
        """
        for number in range(self.config.attempts):
            while not self.stopping and (rest := self._open_at - time.monotonic()) > 0:
                await self._pause(rest)
            worst = await self._budget.reserve(request)
            cost = worst
            try:
                if self.stopping:
                    cost = 0.0
                    raise Stopped
                attempt = await self._commits.open_attempt(request.key, worst)
                found = await self._post(request)
                if isinstance(found, Answer):
                    await self._commits.close_attempt(attempt, request.key, found)
                    cost = found.cost
                elif not found.doubtful:
                    await self._commits.close_attempt(attempt, request.key, None)
                    cost = 0.0
            finally:
                self._budget.settle(worst, cost)
            if isinstance(found, Answer):
                self._failures = 0
                return found
            if found.final:
                raise ConfigError(f"{self.config.url}: {found.reason}")
            self._count(found)
            if number + 1 < self.config.attempts:
                pause = min(FIRST_PAUSE * 2**number, self.config.longest_pause)
                await self._pause(pause * random.uniform(0.5, 1))
        return None

    def _count(self, failure: Failure) -> None:
        self._failures += 1
        if self._failures >= self.config.failures:
            raise MaxlmError(
                f"{self.config.url}: {self._failures} failures in a row, the last one: {failure.reason}; what "
                "is answered is kept, the same command goes on when the server does"
            )

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
        raise Stopped

    async def _post(self, request: Request) -> Answer | Failure:
        import httpx2

        url = self.config.url.rstrip("/") + "/chat/completions"
        try:
            async with asyncio.timeout(self.config.timeout):
                headers = {"Idempotency-Key": request.key}
                response = await self._http.post(url, json=dict(request.body), headers=headers)
        except TimeoutError:
            return Failure(f"no answer in {self.config.timeout:g} s", doubtful=True)
        except httpx2.ConnectError as error:
            return Failure(f"no connection ({self._clean(error)})", doubtful=False)
        except httpx2.InvalidURL as error:
            return Failure(f"no address ({self._clean(error)})", doubtful=False, final=True)
        except httpx2.RequestError as error:
            return Failure(f"the connection broke ({self._clean(error) or type(error).__name__})", doubtful=True)
        status = response.status_code
        if status == 200:
            return self._read(response, request)
        reason = f"status {status} ({self._clean(response.text)})"
        if status in PASSING or 500 <= status < 600:
            self._open_at = max(self._open_at, time.monotonic() + _retry_after(response.headers))
            return Failure(reason, doubtful=status >= 500 and status not in REFUSING)
        return Failure(f"{self._explain(status, request)}: {reason}", doubtful=False, final=True)

    def _explain(self, status: int, request: Request) -> str:
        if status in (401, 403):
            name = self.config.api_key_env
            return f"the key in {name} is refused" if name else "the server wants a key; set server.api_key_env"
        if status == 404:
            return f"no chat completions of '{self.config.model}' here; correct server.url or server.model"
        return (
            f"the server does not take the request ({request.place}); correct the prompt, its max_tokens or its body, "
            "or set a smaller seed_characters"
        )

    def _read(self, response: "httpx2.Response", request: Request) -> Answer | Failure:
        """The answer of a response; what does not have the form of one may have been paid."""
        try:
            said = response.json()
            choice = said["choices"][0]
            content = choice["message"].get("content") or ""
            finish = choice.get("finish_reason") or ""
            if not isinstance(content, str) or not isinstance(finish, str):
                raise TypeError("its content is no text")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            return Failure(f"an answer that is no chat completion ({self._clean(error)})", doubtful=True)
        usage = said.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        counted = all(isinstance(count, int) and 0 <= count < 2**53 for count in counts)
        tokens = counts if counted else (request.input_tokens, request.output_tokens)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Answer(replace_invalid(content), finish, *tokens, counted, self._budget.cost(*tokens), now)

    def _clean(self, message: Any) -> str:
        """A message in one line, without the key, which servers like to quote."""
        text = str(message)
        return " ".join((text.replace(self._key, "***") if self._key else text).split())[:MESSAGE_CHARACTERS]


def _retry_after(headers: Any, now: Callable[[], float] = time.time) -> float:
    """Seconds to wait by a header that has seconds or a date; 0 without one that can be read."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value[:1].isdigit() else email.utils.parsedate_to_datetime(value).timestamp() - now()
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)
