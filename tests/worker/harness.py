"""Start a real worker process against a real broker and see what it does."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streamproc.worker.child import free_port


class WorkerProcess:
    """A `streamproc worker`, its config file and its web port."""

    def __init__(self, directory: Path, config: str, *, name: str = "worker", arguments: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.config = directory / f"{name}.yaml"
        self.config.write_text(config.replace("PORT", str(self.port)))
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamproc.cli", "worker", "--config", str(self.config), *arguments],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, *, method: str = "GET") -> tuple[int, str]:
        """Ask the web port; 0 where nobody answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """Return a metric's sum over its labels; -1 while nobody answers."""
        status, text = self.get("/metrics")
        if status != 200:
            return -1.0
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
        """Wait for a condition; fail with the end of the log."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                tail = self.log.read_text()[-3000:]
                raise AssertionError(f"{what}: not within {timeout_s:.0f} s (exit {self.process.poll()})\n{tail}")
            time.sleep(0.1)
        return found

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Send a signal, wait for the end, return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def worker(directory: Path, config: str, **more: Any) -> Iterator[WorkerProcess]:
    """Run a worker within a block."""
    running = WorkerProcess(directory, config, **more)
    try:
        yield running
    finally:
        running.stop(signal.SIGKILL)


def topic(bootstrap: str, name: str, partitions: int = 2, **settings: str) -> None:
    """Create a topic that keeps old records."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = NewTopic(name, partitions, 1, config={"retention.ms": "-1", **settings})
    for future in admin.create_topics([new]).values():
        future.result(30)


def delete(bootstrap: str, name: str) -> None:
    """Delete a topic; return once its name is free again."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.delete_topics([name]).values():
        future.result(30)
    deadline = time.monotonic() + 30
    while name in admin.list_topics(timeout=10).topics:
        assert time.monotonic() < deadline, f"{name} is still there"
        time.sleep(0.05)


def publish(bootstrap: str, name: str, records: Sequence[tuple[Any, ...]]) -> None:
    """Publish (key, value, timestamp in ms, headers) tuples; the last two may be left out."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 10})
    for key, value, *more in records:
        options: dict[str, Any] = {}
        if more:
            options["timestamp"] = more[0]
        if len(more) > 1:
            options["headers"] = more[1]
        producer.produce(name, key=key, value=value, **options)
    assert producer.flush(30) == 0


def read(bootstrap: str, name: str, partitions: int = 2, at_least: int = 0, timeout_s: float = 30.0) -> list[Any]:
    """Return the messages of a topic, once there are at least so many."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"read-{time.monotonic_ns()}", "enable.auto.commit": False,
         "auto.offset.reset": "earliest", "fetch.message.max.bytes": 20_000_000}
    )
    consumer.assign([TopicPartition(name, p, 0) for p in range(partitions)])
    found: list[Any] = []
    deadline = time.monotonic() + timeout_s
    quiet = time.monotonic()
    while time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            found.append(message)
            quiet = time.monotonic()
        elif len(found) >= at_least and time.monotonic() - quiet > 0.6:
            break
    consumer.close()
    return found


def prediction(model: str, at_s: float, **more: Any) -> bytes:
    """Return an ordinary prediction."""
    event = {"id": f"{model}-{at_s}", "source": "test", "time": at_s, "model": {"name": model}, "prediction": 0.5}
    return orjson.dumps(event | more)
