"""A bridge as its users have it, what it reads, and receivers that take note."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson

from streamproc.worker.child import free_port
from tests.worker.harness import WorkerProcess, publish


class Bridge(WorkerProcess):
    """A `streamproc bridge`, its config file and its web port."""

    def __init__(self, directory: Path, kind: str, config: str, *, name: str = "bridge", arguments: Any = (),
                 env: dict[str, str] | None = None) -> None:  # fmt: skip
        self.env = {**os.environ, **(env or {})}
        self.port = free_port()
        self.config = directory / f"{name}.yaml"
        self.config.write_text(config)
        self.log = directory / f"{name}.log"
        self.command = [
            sys.executable, "-m", "streamproc.cli", "bridge", kind, "--config", str(self.config),
            "--web-port", str(self.port), "--web-host", "127.0.0.1", *arguments,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.env)

    def ready(self) -> None:
        self.until(lambda: self.get("/-/ready")[0] == 200, "ready")

    def again(self) -> None:
        """Kill it, and start it anew."""
        self.stop(signal.SIGKILL)
        self.start()


@contextlib.contextmanager
def bridge(directory: Path, kind: str, config: str, **more: Any) -> Iterator[Bridge]:
    running = Bridge(directory, kind, config, **more)
    try:
        running.ready()
        yield running
    finally:
        running.stop(signal.SIGKILL)


def config(bootstrap: str, app: str, kind: str, block: dict[str, Any], **kafka: Any) -> str:
    return json.dumps({
        "version": 1,
        "kafka": {"brokers": bootstrap, "predictions": [f"{app}-in"], "alerts": f"{app}-alerts", "app_id": app,
                  "partitions": 1, "session_timeout": "6s", **kafka},
        "bridges": {kind: {"test": block}},
    })  # fmt: skip


def now(minus_s: float = 0.0) -> str:
    moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=minus_s)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def alert(
    model: str = "fraud", action: str = "opened", *, episode: str = "", severity: str = "warning", **more: Any
) -> dict[str, Any]:
    """Return an alert as the worker publishes it."""
    labels = {"alertname": "latency", "model": model, "severity": severity, "signal": "latency",
              "detector": "spike", **more.pop("labels", {})}  # fmt: skip
    episode = episode or f"{model}-1"
    resolved = action == "resolved"
    return {
        "id": f"{episode}-{action}", "fingerprint": f"fp-{model}", "episode_id": episode, "name": f"{model} latency",
        "status": "resolved" if resolved else "firing", "severity": severity, "action": action,
        "summary": f"{model}: latency {action}", "labels": labels,
        "annotations": {"summary": f"{model}: latency {action}", "description": "every latency",
                        "runbook_url": "https://runbooks/latency"},
        "startsAt": now(60), "lastReceived": now(), "signal": "latency",
        "detector": {"name": "spike", "params_hash": "0"}, "score": 1.7, "value": 5.0, "threshold": 1.0,
        "schema_version": "v1", "source": ["streamproc"], "category": "infra",
        **({"endsAt": now()} if resolved else {}), **more,
    }  # fmt: skip


def incident(model: str = "fraud", action: str = "opened", *, episode: str = "", **more: Any) -> dict[str, Any]:
    """Return an incident as the worker publishes it."""
    made = alert(model, action, episode=episode or f"{model}-incident", **more)
    made |= {"incident_id": made.pop("episode_id"), "models": [model],
             "cause": {"category": "data", "confidence": 0.8, "evidence": ["psi of amount"]}}  # fmt: skip
    return made


def tell(bootstrap: str, app: str, *alerts: dict[str, Any] | bytes, topic: str = "alerts") -> None:
    """Publish alerts with the headers the worker gives them."""
    records = []
    for a in alerts:
        if isinstance(a, bytes):
            records.append((b"m", a))
            continue
        headers = [("ce_specversion", b"1.0"), ("ce_type", b"io.streamproc.alert.v1"), ("ce_source", b"streamproc/t"),
                   ("ce_id", a["id"].encode()), ("ce_time", a["lastReceived"].encode()),
                   ("ce_partitionkey", a["fingerprint"].encode()), ("content-type", b"application/json")]  # fmt: skip
        model = a["labels"]["model"].encode()
        records.append((model, orjson.dumps(a), int(time.time() * 1000), headers))
    publish(bootstrap, f"{app}-{topic}", records)


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.05)
    return found


class Request:
    """One request a receiver had."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        parts = urllib.parse.urlsplit(path)
        self.method, self.path, self.headers, self.body = method, parts.path, headers, body
        self.query = dict(urllib.parse.parse_qsl(parts.query))

    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A server that answers as `answer` says and remembers what it was asked.

    fail: answers to give first, each a status and headers.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.fail: list[tuple[int, dict[str, str], bytes]] = []
        self.lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                if receiver._server is None:  # stopped, and with it what was connected
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {k.lower(): v for k, v in self.headers.items()}
                request = Request(self.command, self.path, headers, body)
                with receiver.lock:
                    receiver.requests.append(request)
                    status, more, said = receiver.fail.pop(0) if receiver.fail else receiver.respond(request)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(said)), **more}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(said)

            do_GET = do_POST = do_PUT = handle_one  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.port = free_port()
        self._handler = Handler
        self._server: ThreadingHTTPServer | None = None
        self.url = f"http://127.0.0.1:{self.port}"

    def respond(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        status, tree = self.answer(request)
        body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        return status, {"Content-Type": "application/json"}, body

    def answer(self, request: Request) -> tuple[int, Any]:
        return 200, {}

    def start(self) -> None:
        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a bridge that is killed hangs up

        self._server = Server(("127.0.0.1", self.port), self._handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
