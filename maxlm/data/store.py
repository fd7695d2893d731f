"""Files of one folder in an object store: ranges of bytes through fsspec, asked for again while an error may pass.

Credentials come from where each store's client looks for them (environment, its own files, fsspec's configuration),
or stand in the URL. Messages have neither those nor query strings (`Store.shown`). Google's and Hugging Face's clients
try again by themselves inside each attempt that is counted here.
"""

import asyncio
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from maxlm.config import CacheConfig
from maxlm.errors import ConfigError, DataError, MaxlmError

T = TypeVar("T")

WEB, S3 = ("http", "https"), ("s3", "s3a")
PACKAGES = {
    "gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub", "http": "aiohttp",
    "https": "aiohttp",
}  # fmt: skip
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s'\"<>]*)")


class Missing(DataError):
    """The store has no such file."""


class Refused(DataError):
    """The store does not let these credentials read."""


class _WrongAnswer(OSError):
    """Other bytes than were asked for; the next answer may be right."""


class _NoRanges(ValueError):
    """A server that sends whole files alone."""


def is_url(path: str) -> bool:
    return _URL.match(path) is not None


def redact(text: str) -> str:
    """The text with every URL in it reduced to its address: no query, no user and password."""
    return _URL.sub(lambda found: _address(*found.groups()), text)


def _address(scheme: str, rest: str) -> str:
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    user, at, place = rest.rpartition("@")
    # Elsewhere what stands before an @ without a password is an address: hf://datasets/a/b@main, abfs://container@host.
    secret = at and (scheme.lower() in WEB or ":" in user) and "/" not in user
    return f"{scheme}://{place if secret else rest}"


class Store:
    """Reads the files below a URL; picklable, and safe for threads and forked processes."""

    def __init__(self, url: str, config: CacheConfig):
        self._url, self._config = url, config
        self.protocol = urlsplit(url).scheme.lower()
        self.shown = redact(url).rstrip("/")
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self):
        return self.__dict__ | {"_opened": None}

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes start..stop of a file, all of it without them.

        Raises `Missing` and `Refused` at once, `DataError` where nothing helped, `ConfigError` for a package that is
        not installed.
        """

        def attempt() -> bytes:
            data = self._call("cat_file", self._path(name), start=start, end=stop)
            if stop is not None and len(data) != stop - start:
                raise _WrongAnswer(f"{len(data)} bytes came, {stop - start} were asked for")
            return data

        return self._persist(name, attempt)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of those files that exist: one listing, or a question a file where a server lists nothing."""
        if self.protocol in WEB:
            names = list(names)
            with ThreadPoolExecutor(self._config.threads) as pool:
                sizes = dict(zip(names, pool.map(self._size, names), strict=True))
            return {name: size for name, size in sizes.items() if size is not None}
        root = self._path("").rstrip("/")

        def attempt() -> dict[str, dict]:
            self._filesystem.invalidate_cache()
            return self._call("find", root, detail=True)

        return {path[len(root) + 1 :]: info["size"] for path, info in self._persist("", attempt).items()}

    def _size(self, name: str) -> int | None:
        try:
            size = self._persist(name, lambda: self._call("info", self._path(name))["size"])
        except Missing:
            return None
        if size is None:
            raise DataError(f"{self.where(name)}: the server does not say its size; expected a Content-Length")
        return size

    def where(self, name: str) -> str:
        """A file's address for messages."""
        return f"{self.shown}/{name}" if name else self.shown

    # --- asking -----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        base, mark, query = self._url.partition("?") if self.protocol in WEB else (self._url, "", "")
        return self._filesystem._strip_protocol(f"{base.rstrip('/')}/{name}{mark}{query}")

    @property
    def _filesystem(self):
        """fsspec's client, one a process: none of them survives a fork."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            self._opened = opened = (os.getpid(), self._open())
        return opened[1]

    def _open(self):
        import fsspec

        try:
            client = fsspec.core.url_to_fs(self._url, **_options(self.protocol, self._config.timeout_seconds))[0]
            if self.protocol in S3:
                client.retries = 1  # it would try again inside every attempt
            return client
        except ImportError as error:
            advice = f"pip install {PACKAGES[self.protocol]}" if self.protocol in PACKAGES else _one_line(error)
            raise ConfigError(f"{self.shown}: a package that reads {self.protocol}:// is missing: {advice}") from None
        except ValueError as error:
            raise ConfigError(f"{self.shown}: cannot be opened ({self._reason(error)}); expected the URL of a folder "
                              "in a store that fsspec knows: gs://, s3://, hf://, https://, ...") from None  # fmt: skip

    def _call(self, method: str, *arguments, **options):
        client = self._filesystem
        if not client.async_impl:
            # Ranges come as they are asked for, without blocks read ahead.
            extra = {"cache_type": "none"} if method == "cat_file" else {}
            return getattr(client, method)(*arguments, **options, **extra)
        answer = asyncio.wait_for(getattr(client, f"_{method}")(*arguments, **options), self._config.timeout_seconds)
        return asyncio.run_coroutine_threadsafe(answer, client.loop).result()

    def _persist(self, name: str, attempt: Callable[[], T]) -> T:
        """The attempt's result, with pauses that double and vary between attempts, so that many readers spread."""
        for number in range(1, self._config.attempts + 1):
            try:
                return attempt()
            except MaxlmError:
                raise
            except Exception as error:
                reason = self._reason(error)
                if (final := self._final(name, error, reason)) is not None:
                    raise final from None
            if number < self._config.attempts:
                time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (number - 1)) * random.uniform(0.5, 1))
        raise DataError(
            f"{self.where(name)}: could not be read in {self._config.attempts} attempts, at last: {reason}; "
            "check the network and the store, and start again"
        )

    def _final(self, name: str, error: Exception, reason: str) -> DataError | None:
        """What an error means that no further attempt changes; None for one that may pass."""
        status = _status(error)
        # fsspec's HTTP client calls every failure to learn a size a missing file, and keeps the failure as the cause.
        cause = list(_causes(error))[-1] if self.protocol in WEB else error
        if status in (408, 425, 429) or (status or 0) >= 500:
            return None
        if status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError | NotADirectoryError)):
            return Missing(
                f"{self.where(name)}: missing; the manifest lists it, prepare the data again or restore the file"
            )
        # gcsfs makes a plain OSError of 403.
        forbidden = isinstance(cause, PermissionError) or str(cause).startswith("Forbidden")
        if status in (401, 403, 407) or (status is None and forbidden):
            return Refused(f"{self.where(name)}: access was refused ({reason}); check the credentials for "
                           f"{self.protocol}:// on this machine")  # fmt: skip
        if status is not None or isinstance(cause, ValueError | TypeError | LookupError | AttributeError | ImportError):
            return DataError(f"{self.where(name)}: cannot be read ({reason})")
        return None

    def _reason(self, error: Exception) -> str:
        """The error in one line, without what the URL keeps secret."""
        if isinstance(error, TimeoutError) and not str(error):
            return f"no answer in {self._config.timeout_seconds:g} seconds"
        text = redact(f"{type(error).__name__}: {_one_line(error)}")
        for secret in _secrets(self._url):
            text = text.replace(secret, "***")
        status = _status(error)
        return text[:300] + (f" (status {status})" if status and str(status) not in text else "")


def _secrets(url: str) -> list[str]:
    """What must not be shown of a URL, longest first."""
    parts = urlsplit(url)
    found = {parts.query, parts.password or "", *(value for _, value in parse_qsl(parts.query))}
    return sorted({form for text in found for form in (text, unquote(text)) if len(form) > 3}, key=len, reverse=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, which each client keeps elsewhere."""
    found = [getattr(error, "code", None)]  # gcsfs; aiohttp gives a cause of its own, an answer cut off, a code of 400
    for cause in _causes(error):
        response = getattr(cause, "response", None)  # botocore: a dictionary; requests, httpx: an object
        if isinstance(response, dict):
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        found += [getattr(cause, "status", None), response, getattr(response, "status_code", None)]
    return next((status for status in found if isinstance(status, int) and 400 <= status < 600), None)


# --- clients ---------------------------------------------------------------------------------------------------------


def _options(protocol: str, timeout: float) -> dict[str, Any]:
    """What fsspec's clients are told beyond what the user configured: attempts are counted here, answers checked."""
    if protocol in S3:
        return _merged(protocol, "config_kwargs", {"retries": {"total_max_attempts": 1}})
    if protocol not in WEB:
        return {}
    import aiohttp

    client = {
        "raise_for_status": _check_range,
        "headers": {"Accept-Encoding": "identity"},  # a range of compressed bytes is of no use
        "timeout": aiohttp.ClientTimeout(total=timeout),
    }
    return _merged(protocol, "client_kwargs", client)


def _merged(protocol: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    from fsspec.config import conf

    return {name: conf.get(protocol, {}).get(name, {}) | options}


async def _check_range(response) -> None:
    """Refuse an answer that is not the range asked for before its body, perhaps a whole file, is read."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", response.request_info.headers.get("Range", ""))
    if asked is None or response.status >= 400:
        return
    first, last = map(int, asked.groups())
    sent = response.headers.get("Content-Range", "")
    if response.status != 206 and (first > 0 or response.content_length != last + 1):
        raise _NoRanges(f"the server answers a range with the whole file (status {response.status})")
    if response.status == 206 and not sent.startswith(f"bytes {first}-{last}/"):
        raise _WrongAnswer(f"the server sent '{sent}', asked for bytes {first}-{last}")
