"""Raw files in object stores and hubs and on web servers, through fsspec.

Files are read front to back in ranges of `BLOCK_BYTES`, the next one on its way while one is worked on: every request
costs tens of milliseconds, so that reads of a few hundred bytes made hours of minutes (datatrove, thread 497). Every
question is asked again, with growing pauses, while its error may pass. Credentials come from where each store's client
looks for them, or stand in the URL; messages have neither those nor query strings. A reader holds three blocks.
"""

import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data_prep.config.urls import redact, secrets
from maxlm.errors import ConfigError, DataError, MaxlmError

T = TypeVar("T")

BLOCK_BYTES = 2**23
ATTEMPTS, FIRST_PAUSE, LONGEST_PAUSE, TIMEOUT = 6, 0.5, 30.0, 120.0  # seconds
WEB, S3 = ("http", "https"), ("s3", "s3a")
# The extras of this package that have each protocol's client.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}
# What the stores call that which changes with a file's content, most certain first.
VERSIONS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "Last-Modified", "LastModified", "last_modified",
            "mtime", "created")  # fmt: skip


class Missing(DataError):
    """There is no such file."""


@dataclass(frozen=True)
class Found:
    """A file of a store: its path there, its path below what was asked for, and what is known of it.

    `walked`: it was found below a directory, not named itself or by a glob.
    """

    path: str
    name: str
    size: int
    version: str
    walked: bool = False


@dataclass(frozen=True)
class Place:
    """Where fsspec finds files: the URL that names a store and how it is reached; not shown, as it may have secrets."""

    url: str = field(repr=False)

    @property
    def shown(self) -> str:
        return redact(self.url)

    @property
    def protocol(self) -> str:
        return urlsplit(self.url).scheme.lower()

    def where(self, path: str) -> str:
        """The address of a file for messages."""
        return redact(path) if self.protocol in WEB else f"{self.protocol}://{path.lstrip('/')}"

    def find(self) -> Iterator[Found]:
        """The files at the URL: one, all below a directory, or those that a glob matches, sorted."""
        client, path = self._client()
        client.invalidate_cache()
        if self.protocol in WEB:
            info = self._ask(lambda: client.info(path))
            yield self._found(info, path, urlsplit(path).path.rpartition("/")[2])
        elif re.search(r"[*?\[]", path):
            root = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
            for match, info in sorted(self._ask(lambda: client.glob(path, detail=True)).items()):
                if info["type"] == "directory" and "**" not in path:
                    yield from self._below(client, match, root)
                elif info["type"] != "directory":
                    yield self._found(info, match, match[len(root) :].lstrip("/"))
        elif (info := self._ask(lambda: client.info(path)))["type"] == "directory":
            yield from self._below(client, path.rstrip("/"), path.rstrip("/"))
        else:
            yield self._found(info, path, path.rpartition("/")[2])

    def _below(self, client: Any, folder: str, root: str) -> Iterator[Found]:
        for path, info in sorted(self._ask(lambda: client.find(folder, detail=True)).items()):
            yield self._found(info, path, path[len(root) :].lstrip("/"), walked=True)

    def _found(self, info: Mapping[str, Any], path: str, name: str, walked: bool = False) -> Found:
        if info.get("size") is None:
            raise DataError(f"{self.where(path)}: the server does not say its size; expected a Content-Length")
        version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
        return Found(path, name, info["size"], version, walked)

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes start..stop of a file."""
        client, _ = self._client()

        def attempt() -> bytes:
            data = client.cat_file(path, start=start, end=stop) if stop > start else b""
            if len(data) != stop - start:
                raise OSError(f"{len(data):,} bytes came, {stop - start:,} were asked for")
            return data

        return self._ask(attempt, self.where(path))

    # --- asking -------------------------------------------------------------------------------------------------------

    def _client(self) -> tuple[Any, str]:
        """fsspec's client, which fsspec keeps, and the path in it."""
        import fsspec

        try:
            client, path = fsspec.core.url_to_fs(self.url, **_options(self.protocol))
        except ImportError as error:
            extra = EXTRAS.get(self.protocol)
            advice = f"pip install 'maxlm[{extra}]'" if extra else _one_line(error)
            raise ConfigError(f"{self.shown}: the package that reads {self.protocol}:// is missing: {advice}") from None
        except ValueError as error:
            raise ConfigError(f"{self.shown}: cannot be opened ({self._reason(error)}); expected s3://, gs://, hf://, "
                              "https:// or another protocol that fsspec knows") from None  # fmt: skip
        if self.protocol in S3:
            client.retries = 1  # it would try again inside every attempt
        return client, path

    def _ask(self, attempt: Callable[[], T], shown: str | None = None) -> T:
        """The attempt's result, after pauses that double while it fails; `shown` is what is read."""
        shown = shown or self.shown
        for number in range(ATTEMPTS):
            if number:
                time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (number - 1)))
            try:
                return attempt()
            except MaxlmError:
                raise
            except Exception as error:
                reason = self._reason(error)
                if (final := self._final(shown, error, reason)) is not None:
                    raise final from None
        raise DataError(
            f"{shown}: could not be read in {ATTEMPTS} attempts, at last: {reason}; check the network and the store, "
            "and start again"
        )

    def _final(self, shown: str, error: Exception, reason: str) -> DataError | None:
        """What an error means that no further attempt changes; None for one that may pass."""
        status = _status(error)
        if status in (408, 425, 429) or (status or 0) >= 500:
            return None
        # fsspec's HTTP client calls every failure to learn a size a missing file, and keeps the failure as the cause.
        cause = [*_causes(error)][-1] if self.protocol in WEB else error
        if status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError)):
            return Missing(f"{shown}: no such file or directory")
        # gcsfs makes a plain OSError of 403; botocore says that it has no credentials by the name of the error alone.
        refused = str(cause).startswith("Forbidden") or "Credentials" in type(cause).__name__
        if status in (401, 403, 407) or (status is None and (refused or isinstance(cause, PermissionError))):
            return DataError(f"{shown}: access was refused ({reason}); check the credentials for {self.protocol}:// on "
                             "this machine")  # fmt: skip
        if status is not None or isinstance(cause, ValueError | TypeError | LookupError | AttributeError):
            return DataError(f"{shown}: cannot be read ({reason})")
        return None

    def _reason(self, error: Exception) -> str:
        """The error in one line, without what the URL keeps secret."""
        text = redact(f"{type(error).__name__}: {_one_line(error)}")
        for secret in secrets(self.url):
            text = text.replace(secret, "***")
        status = _status(error)
        return text[:300] + (f" (status {status})" if status and str(status) not in text else "")


class RemoteStream(io.RawIOBase):
    """A file of a store as a stream whose reads are whole; from the second in a row on, the next is fetched ahead."""

    def __init__(self, place: Place, path: str, size: int):
        self._place, self._path, self._size = place, path, size
        self._position, self._last = 0, -1
        self._pool = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, count, data = self._position, min(len(buffer), max(0, self._size - self._position)), b""
        if self._ahead is not None and self._ahead[0] == start:
            data, self._ahead = self._ahead[1].result()[:count], None
        if len(data) < count:
            data += self._place.read(self._path, start + len(data), start + count)
        buffer[: len(data)] = data
        in_a_row, self._last = start == self._last, start + len(data)
        self._position = self._last
        if in_a_row and self._last < self._size:
            stop = min(self._size, self._last + len(data))
            self._ahead = (self._last, self._pool.submit(self._place.read, self._path, self._last, stop))
        return len(data)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


# --- clients ----------------------------------------------------------------------------------------------------------


def _options(protocol: str) -> dict[str, Any]:
    """What fsspec's clients are told beyond what the user configured: attempts are counted here, answers checked."""
    from fsspec.config import conf

    configured = conf.get(protocol, {})
    if protocol in S3:
        return {"config_kwargs": configured.get("config_kwargs", {}) | {"retries": {"total_max_attempts": 1}}}
    if protocol not in WEB:
        return {}
    import aiohttp

    client = {
        "raise_for_status": _check_range,
        "headers": {"Accept-Encoding": "identity"},  # a range of compressed bytes is of no use
        "timeout": aiohttp.ClientTimeout(total=TIMEOUT),
    }
    return {"client_kwargs": configured.get("client_kwargs", {}) | client}


async def _check_range(response: Any) -> None:
    """Refuse an answer that is a whole file and not the range asked for before it is read into memory."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", response.request_info.headers.get("Range", ""))
    if asked is None or response.status >= 400:
        return
    first, last = map(int, asked.groups())
    if response.status != 206 and (first > 0 or response.content_length != last + 1):
        raise ValueError("the server sends whole files alone, no ranges of them; download the file")
    sent = response.headers.get("Content-Range", "")
    if response.status == 206 and not sent.startswith(f"bytes {first}-{last}/"):
        raise OSError(f"the server sent '{sent}', asked for bytes {first}-{last}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, which each client keeps elsewhere."""
    found = [getattr(error, "code", None)]  # gcsfs
    for cause in _causes(error):
        response = getattr(cause, "response", None)  # botocore: a dictionary; httpx, requests: an object
        if isinstance(response, dict):
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        found += [getattr(cause, "status", None), response, getattr(response, "status_code", None)]
    return next((status for status in found if isinstance(status, int) and 400 <= status < 600), None)
