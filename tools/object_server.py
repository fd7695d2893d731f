"""A store on loopback: serves a folder by ranges, with latency and faults on demand, as a web server, S3, Google Cloud
Storage or the Hugging Face Hub would. It has as much of each protocol as reading shards takes; tests and
`bench_storage.py` read from it.

    python tools/object_server.py FOLDER --latency 0.05        # prints its URL
"""

import argparse
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
DATASET = "org/set"
DATE = "Tue, 24 Nov 2026 00:00:00 GMT"


@dataclass
class Request:
    method: str
    name: str  # of the file
    range: tuple[int, int] | None  # first and last byte
    query: str = ""
    authorization: str | None = None
    status: int = 0
    began: float = field(default_factory=time.monotonic)


@dataclass
class Fault:
    """What happens to the next `times` requests for a file whose name contains `name`.

    kinds: a status as a number; reset, hang; short (a body cut off), fewer (a shorter range), shifted (another range),
    whole (no range).
    """

    name: str
    kind: int | str
    times: int
    ranges: bool = True  # requests for ranges alone
    begin: int = 0  # and of those, the ones that begin here or later

    def meets(self, request: Request) -> bool:
        first = request.range[0] if request.range else -1 if self.ranges else self.begin
        return self.times > 0 and self.name in request.name and first >= self.begin


class ObjectServer:
    def __init__(self, folder: Path):
        self.folder, self.latency, self.bandwidth = folder, 0.0, float("inf")  # seconds, bytes a second and connection
        self.gate = threading.Event()  # no file is answered while it is closed
        self.gate.set()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.most_at_once = self._at_once = 0
        self._lock, self._server = threading.Lock(), None

    def __enter__(self) -> "ObjectServer":
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, name: str, kind: int | str, times: int = 1, ranges: bool = True, begin: int = 0) -> None:
        self.faults.append(Fault(name, kind, times, ranges, begin))

    def asked(self, name: str = "", method: str = "GET") -> list[Request]:
        return [request for request in self.requests if name in request.name and request.method == method]

    def begin(self, request: Request) -> int | str | None:
        """Write a request down; returns the fault that it meets."""
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            for fault in self.faults:
                if fault.meets(request):
                    fault.times -= 1
                    return fault.kind
        return None

    def end(self) -> None:
        with self._lock:
            self._at_once -= 1


@contextmanager
def in_a_process(folder: Path, latency: float = 0.0, bandwidth: float = float("inf")) -> Iterator[str]:
    """Serve a folder from another process, which takes no time from this one; yields the URL."""
    command = [sys.executable, __file__, str(folder), f"--latency={latency}", f"--bandwidth={bandwidth}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


class _Handler(BaseHTTPRequestHandler):
    owner: ObjectServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for its headers to be acknowledged

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        for pattern, answer in _DIALECTS:
            if (found := re.fullmatch(pattern, path)) and (answer is not _s3_list or "list-type" in query):
                body, kind = answer(self.owner.folder, query, *found.groups())
                self.owner.requests.append(Request("LIST", "", None, 200))
                return self._send(200, body, {"Content-Type": kind})
        for prefix in (f"/datasets/{DATASET}/resolve/main/", f"/download/storage/v1/b/{BUCKET}/o/", f"/{BUCKET}/", "/"):
            if path.startswith(prefix):
                return self._file(path.removeprefix(prefix), parts.query)

    def _file(self, name: str, query: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = tuple(map(int, asked.groups())) if asked else None
        request = Request(self.command, name, span, query, self.headers.get("Authorization"))
        fault = self.owner.begin(request)
        try:
            self.owner.gate.wait()
            time.sleep(self.owner.latency)
            request.status = self._answer(request, fault)
        finally:
            self.owner.end()

    def _answer(self, request: Request, fault: int | str | None) -> int:
        path = self.owner.folder / request.name
        if fault == "reset":
            # Closing at once with a linger of nothing sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return 0
        if fault == "hang":
            time.sleep(2)
        status = fault if isinstance(fault, int) else 200 if path.is_file() else 404
        if status != 200:
            code = {404: "NoSuchKey", 403: "AccessDenied", 503: "SlowDown"}.get(status, "Error")
            return self._send(status, f"<Error><Code>{code}</Code><Message>no: {self.path}</Message></Error>".encode())
        size = path.stat().st_size
        if request.range is None or fault == "whole":
            return self._send(200, _bytes(path, 0, size))
        first, last = request.range[0], min(request.range[1], size - 1)
        if first >= size:
            return self._send(416, b"")
        if fault == "shifted":
            first, last = first + 1, last + 1
        if fault == "fewer":
            last -= 1
        headers = {"Content-Range": f"bytes {first}-{last}/{size}"}
        return self._send(206, _bytes(path, first, last + 1), headers, cut=fault == "short")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> int:
        self.send_response(status)
        described = {"Content-Length": str(len(body)), "ETag": '"1"', "Last-Modified": DATE} | (headers or {})
        for name, value in described.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            time.sleep(len(body) / self.owner.bandwidth)
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
        return status


def _bytes(path: Path, start: int, stop: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(stop - start)


# --- lists of files -----------------------------------------------------------------------------------------------


def _below(folder: Path, prefix: str) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    return {name: size for name, size in names.items() if name.startswith(prefix)}


def _s3_list(folder: Path, query: dict[str, str]) -> tuple[bytes, str]:
    found = "".join(
        f"<Contents><Key>{escape(name)}</Key><LastModified>2026-11-24T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;1&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for name, size in _below(folder, query.get("prefix", "")).items()
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode(), "application/xml"


def _gcs_list(folder: Path, query: dict[str, str]) -> tuple[bytes, str]:
    items = [
        {"kind": "storage#object", "bucket": BUCKET, "name": name, "size": str(size), "generation": "1"}
        for name, size in _below(folder, query.get("prefix", "")).items()
    ]
    return json.dumps({"kind": "storage#objects", "items": items}).encode(), "application/json"


def _hub_revision(folder: Path, query: dict[str, str]) -> tuple[bytes, str]:
    return json.dumps({"id": DATASET, "sha": "1" * 40, "siblings": []}).encode(), "application/json"


def _hub_tree(folder: Path, query: dict[str, str], place: str) -> tuple[bytes, str]:
    place = (place or "").strip("/")
    files = _below(folder, f"{place}/")
    folders = []
    if query.get("recursive", "").lower() != "true":
        within = {name: name.removeprefix(f"{place}/").partition("/") for name in files}
        folders = sorted({f"{place}/{first}" for first, slash, _ in within.values() if slash})
        files = {name: files[name] for name, (_, slash, _) in within.items() if not slash}
    found = [{"type": "directory", "oid": "1" * 40, "size": 0, "path": name} for name in folders]
    found += [{"type": "file", "oid": "1" * 40, "size": size, "path": name} for name, size in files.items()]
    return json.dumps(found).encode(), "application/json"


_DIALECTS: list[tuple[str, Callable]] = [
    (rf"/{BUCKET}/?", _s3_list),
    (rf"/storage/v1/b/{BUCKET}/o/?", _gcs_list),
    (rf"/api/datasets/{DATASET}(?:/revision/main)?", _hub_revision),
    (rf"/api/datasets/{DATASET}/tree/main(/.*)?", _hub_tree),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Serve a folder by ranges.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--bandwidth", type=float, default=float("inf"), help="MiB a second of one connection")
    args = parser.parse_args()
    with ObjectServer(args.folder) as server:
        server.latency, server.bandwidth = args.latency, args.bandwidth * 2**20
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
