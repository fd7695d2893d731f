"""A server on loopback with OpenAI's chat completions, that makes up answers and fails on demand: it tells whether a
client loses requests or pays twice. Tests of `maxlm-prep synthesize` ask it, and its example recipe can be tried on it.

    python tools/answer_server.py --port 8000 --faults 500=0.1,429=0.1,drop=0.05 --ledger ledger.jsonl

An answer to a prompt with "score" in its last part is a JSON object with a score; any other one is a problem and its
solution, out of the words of the prompt. They are what a form needs, and no more than that.

The ledger has a line per request: key (Idempotency-Key), body (a hash), outcome, and the tokens that were charged.
Outcomes: the number of a refusal; `drop` (closed before anything was charged); `answered`; `lost` (charged, but the
client was gone or the connection was cut before the answer's end). With --idempotent a key is charged once, and later
requests with it get the same answer: `repeated`.
"""

import argparse
import contextlib
import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# What can happen to a request, beside refusals by their number: drop, and lost, the connection is cut; hang, the answer
# comes after `--hang` seconds; prose, shape, the answer is no JSON, or lacks a property; cut, it ends at max_tokens.
FAULTS = ("drop", "lost", "hang", "prose", "shape", "cut")
RETRY_AFTER = 0.2  # seconds
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, with RST


@dataclass(frozen=True)
class Entry:
    key: str | None
    body: str
    outcome: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass
class AnswerServer:
    """`faults` are shares of the requests by kind; which requests they meet is drawn from `seed`."""

    faults: dict[str, float] = field(default_factory=dict)
    latency: float = 0.02  # seconds
    hang: float = 5.0  # seconds
    together: int = 1  # the first so many requests are answered when all are there, or after `hang` seconds
    idempotent: bool = False
    key: str | None = None  # that requests must have
    ledger: Path | None = None
    seed: int = 0
    usage: bool = True  # whether tokens are told

    def __post_init__(self) -> None:
        self.entries: list[Entry] = []
        self.authorizations: set[str | None] = set()
        self.most_at_once = self.at_once = 0
        self.charged: dict[str, bytes] = {}
        self.lock = threading.Condition()
        self._random = random.Random(self.seed)
        self._server: ThreadingHTTPServer | None = None

    def start(self, port: int = 0) -> "AnswerServer":
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", port), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __enter__(self) -> "AnswerServer":
        return self.start()

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def draw(self) -> str | None:
        """The fault of the next request, if it has one."""
        with self.lock:
            place = self._random.random()
        for kind, part in self.faults.items():
            place -= part
            if place < 0:
                return kind
        return None

    def write(self, entry: Entry) -> None:
        with self.lock:
            self.entries.append(entry)
            if self.ledger is not None:
                with open(self.ledger, "a") as file:
                    file.write(json.dumps(asdict(entry)) + "\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_) -> None:
        """A client that goes away is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    owner: AnswerServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": [{"id": "made-up", "object": "model"}]}).encode())

    def do_POST(self) -> None:
        owner = self.owner
        with owner.lock:
            owner.at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner.at_once)
            owner.lock.notify_all()
            owner.lock.wait_for(lambda: owner.most_at_once >= owner.together, owner.hang)
        try:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))
        finally:
            with owner.lock:
                owner.at_once -= 1

    def _answer(self, data: bytes) -> None:
        owner, key = self.owner, self.headers.get("Idempotency-Key")
        digest = hashlib.sha256(data).hexdigest()[:16]
        owner.authorizations.add(self.headers.get("Authorization"))
        if owner.key is not None and self.headers.get("Authorization") != f"Bearer {owner.key}":
            owner.write(Entry(key, digest, "401"))
            sent = self.headers.get("Authorization") or "none"
            return self._refuse(401, f"Incorrect API key provided: {sent}")
        body = json.loads(data)
        if self.path != "/v1/chat/completions" or not body.get("messages"):
            owner.write(Entry(key, digest, "404"))
            return self._refuse(404, "not found")
        fault = owner.draw()
        if fault is not None and fault.isdigit():
            owner.write(Entry(key, digest, fault))
            return self._refuse(int(fault), "made to fail")
        if fault == "drop":
            owner.write(Entry(key, digest, "drop"))
            return self._cut()
        time.sleep(owner.hang if fault == "hang" else owner.latency)
        with owner.lock:
            repeated = owner.charged.get(key) if owner.idempotent else None
            said = repeated or _completion(body, fault, owner.usage)
            if key is not None:
                owner.charged[key] = said
        usage = json.loads(said).get("usage") or {}
        tokens = (0, 0) if repeated else (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        if fault == "lost":
            owner.write(Entry(key, digest, "lost", *tokens))
            return self._cut()
        # Before the answer, so that no client can act on one that is not in the ledger.
        gone = self._is_gone()
        owner.write(Entry(key, digest, "lost" if gone else "repeated" if repeated else "answered", *tokens))
        if gone:
            self.close_connection = True
        else:
            self._send(200, said)

    def _is_gone(self) -> bool:
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _refuse(self, status: int, message: str) -> None:
        headers = {"Retry-After": str(RETRY_AFTER)} if status == 429 else {}
        self._send(status, json.dumps({"error": {"message": message}}).encode(), headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _cut(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.connection.close()
        self.close_connection = True


def _completion(body: dict, fault: str | None, usage: bool) -> bytes:
    prompt = "\n".join(message["content"] for message in body["messages"])
    content = _content(body["messages"][-1]["content"], fault, body.get("seed", 0))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content[: len(content) // 2] if fault == "cut" else content},
        "finish_reason": "length" if fault == "cut" else "stop",
    }
    said = {"id": "made-up", "object": "chat.completion", "model": body["model"], "choices": [choice]}
    if usage:
        limit = body.get("max_tokens", body.get("max_completion_tokens"))
        tokens = min(max(1, len(content.encode()) // 4), limit or 2**31)
        said["usage"] = {"prompt_tokens": max(1, len(prompt.encode()) // 4), "completion_tokens": tokens}
    return json.dumps(said).encode()


def _content(prompt: str, fault: str | None, seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    if fault == "prose":
        return "I would rather talk about something else."
    if fault == "shape":
        return json.dumps({"question": "What is missing here?"})
    if '"score"' in prompt:
        return json.dumps({"score": 1 + digest[0] % 5, "reason": "drawn from a hash"})
    words = re.findall(r"\w{2,}", prompt)
    some = [words[digest[place] * len(words) // 256] for place in range(1, 13)] if words else ["nothing"]
    solution = f"{some[0].capitalize()} is not {some[1]}: {', '.join(some[2:])}. ({digest.hex()[:8]})"
    made = json.dumps({"problem": f"What have {some[0]} and {some[-1]} in common?", "solution": solution})
    return f"```json\n{made}\n```" if digest[1] % 2 else made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--faults", default="", help=f"shares by kind: a status, or {', '.join(FAULTS)}; 500=0.1,drop=0.05"
    )
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before an answer")
    parser.add_argument("--hang", type=float, default=5.0, help="seconds before an answer that hangs")
    parser.add_argument("--idempotent", action="store_true", help="charge an Idempotency-Key once")
    parser.add_argument("--ledger", type=Path, help="file that gets a line per request")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    given = parser.parse_args(arguments)
    faults = {
        kind: float(part) for kind, _, part in (entry.partition("=") for entry in given.faults.split(",") if entry)
    }
    if wrong := [kind for kind in faults if not kind.isdigit() and kind not in FAULTS]:
        parser.error(f"--faults: no fault is called '{wrong[0]}'")
    server = AnswerServer(
        faults, given.latency, given.hang, given.idempotent, ledger=given.ledger, seed=given.seed
    ).start(given.port)
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
