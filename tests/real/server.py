"""What clients of language models speak to, on loopback: an API of OpenAI's public shape, and a collector of traces."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What is asked for, what answers, and what it used.
ASKED, ANSWERED, EMBEDS = "gpt-4o-mini", "gpt-4o-mini-2024-07-18", "text-embedding-3-small"
TOKENS_IN, TOKENS_OUT, EMBEDDED = 11, 7, 5


@dataclass
class Server:
    """A running server: its address, and the bodies of traces that came, as a collector would publish them."""

    url: str
    traces: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def _completion(number: int, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Good morning.", "refusal": None}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_767_603_600,
        "model": ANSWERED,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": _usage(),
    }


def _usage() -> dict[str, int]:
    return {"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT, "total_tokens": TOKENS_IN + TOKENS_OUT}


def _stream(number: int) -> bytes:
    """Return an answer in pieces, the last of which says what it used."""
    base = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1_767_603_600, "model": ANSWERED}
    deltas: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": ""}, None), ({"content": "Good "}, None), ({"content": "morning."}, None),
        ({}, "stop"),
    ]  # fmt: skip
    pieces = [{**base, "choices": [{"index": 0, "delta": d, "finish_reason": r}]} for d, r in deltas]
    pieces.append({**base, "choices": [], "usage": _usage()})
    return b"".join(b"data: %s\n\n" % json.dumps(p).encode() for p in pieces) + b"data: [DONE]\n\n"


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        of: Server = self.server.of
        if self.path.endswith("/traces"):
            of.traces.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self._answer(200, b"", "application/x-protobuf")
            return
        asked = json.loads(body)
        of.asked.append(self.path)
        number = len(of.asked)
        if self.path.endswith("/embeddings"):
            if "too often" in json.dumps(asked["input"]):
                self._refuse()
                return
            data = [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}]
            used = {"prompt_tokens": EMBEDDED, "total_tokens": EMBEDDED}
            self._json(200, {"object": "list", "data": data, "model": EMBEDS, "usage": used})
            return
        said = json.dumps(asked.get("messages"))
        if "too often" in said:
            self._refuse()
        elif asked.get("stream"):
            self._answer(200, _stream(number), "text/event-stream")
        else:
            self._json(200, _completion(number, "length" if "at length" in said else "stop"))

    def _refuse(self) -> None:
        error = {"message": "Slow down.", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
        self._json(429, {"error": error})

    def _json(self, status: int, tree: Any) -> None:
        self._answer(status, json.dumps(tree).encode(), "application/json")

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Serve within a block."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.of = Server(f"http://127.0.0.1:{http.server_port}")  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield http.of  # type: ignore[attr-defined]
    finally:
        http.shutdown()
        http.server_close()
