"""Start broker, worker and feeder; show what the worker says; end with what it came to."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct, field
from rich.console import Console
from rich.markup import escape

from streamproc import rules
from streamproc.demo import feeder
from streamproc.errors import GateFailed, StreamprocError
from streamproc.worker import child, logs
from streamproc.worker.embedded import EmbeddedBroker

#: When the fault begins and ends, as shares of the run.
FAULT_FROM, FAULT_TO = 0.6, 0.85

#: Short windows, so that a warm-up of 30 of them fits into the shortest run; and with them, what a
#: window of 100 events cannot tell from noise. A deployment needs neither.
CONFIG = """\
version: 1
kafka:
  brokers: "{brokers}"
  predictions: [predictions]
  labels: [labels]
  app_id: streamproc-demo
  partitions: 1
  replication_factor: 1
  session_timeout: 6s
worker: {{web_host: 127.0.0.1, web_port: {port}, snapshot_interval: 2s, shutdown_grace: 4s}}
defaults:
  window: 500ms
  lateness: 200ms
  resolve_after: 3s
  signals:
    # The model runs on the machine of this demo: its latency and pace are the machine's other work.
    latency_p50: {{min_effect: 20ms}}
    latency_p95: {{min_effect: 50ms}}
    latency_p99: {{min_effect: 100ms}}
incidents: {{window: 20s, quiet: 1s, confirm_after: 6s}}
"""

_COMPILES_WITHIN_S = 120.0


class Tally(Struct):
    """What the demo has seen."""

    alerts: int = 0
    resolved: int = 0
    incidents: dict[str, str] = field(default_factory=dict)  # what each was last put down to
    false: list[str] = field(default_factory=list)
    caught_after_s: float | None = None
    caught_by: str = ""
    fault_at: float | None = None
    repaired_at: float | None = None
    sent: int = 0
    accuracy: float = 0.0
    done: bool = False


def run(*, seconds: int, seed: int) -> int:
    """Run the demo; return 0 where the fault was caught."""
    logs.configure(form="console", level="error")
    console = Console(highlight=False, soft_wrap=True)
    # A terminal's hang-up or a supervisor's TERM ends us as Ctrl-C does: through every `finally`.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamproc-demo-")))
        console.print("[bold]streamproc demo[/]: a broker, a worker and a live model, all on this machine")
        broker = stack.enter_context(EmbeddedBroker())
        console.print(f"  broker    in memory at {broker.bootstrap}")
        port = child.free_port()
        config = scratch / "worker.yaml"
        config.write_text(CONFIG.format(brokers=broker.bootstrap, port=port), encoding="utf-8")
        rules.load(config, env={})
        argv: list[str | Path] = [
            sys.executable,
            "-m",
            "streamproc.cli",
            "worker",
            "--config",
            config,
            "--log-format",
            "json",
        ]
        worker_log = scratch / "worker.log"
        worker = child.spawn([*argv, "--data-dir", scratch / "data"], log=worker_log)
        stack.callback(child.stop, worker, grace_s=6.0)
        _wait_ready(worker, worker_log, port, console)
        console.print(f"  worker    ready, metrics on http://127.0.0.1:{port}/metrics")
        tally = asyncio.run(
            _watch(console, broker.bootstrap, scratch, worker, worker_log, seconds=seconds, seed=seed)
        )
        scored = _scored(port, tally.sent)
    return _summary(console, tally, scored=scored, seconds=seconds)


def _wait_ready(worker: Any, log: Path, port: int, console: Console) -> None:
    began, told = time.monotonic(), False
    while time.monotonic() - began < _COMPILES_WITHIN_S:
        if worker.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1.0):
                return
        except (OSError, urllib.error.URLError):
            pass
        if not told and time.monotonic() - began > 10.0:
            told = True
            console.print("  worker    starting; the first start on a machine also compiles the detectors")
        time.sleep(0.1)
    raise StreamprocError(f"the demo's worker did not start; the end of its log:\n{child.tail(log)}")


async def _watch(
    console: Console, brokers: str, scratch: Path, worker: Any, worker_log: Path, *, seconds: int, seed: int
) -> Tally:
    tally = Tally()
    feed_log = scratch / "feeder.log"
    fault_from, fault_to = FAULT_FROM * seconds, FAULT_TO * seconds
    argv = [
        sys.executable,
        "-m",
        "streamproc.demo.feeder",
        brokers,
        "--seconds",
        str(seconds),
        "--seed",
        str(seed),
    ]
    feed = child.spawn([*argv, "--fault-from", str(fault_from), "--fault-to", str(fault_to)], log=feed_log)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=brokers, auto_offset_reset="earliest", fetch_max_wait_ms=100
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition("alerts", 0), TopicPartition("incidents", 0)])
        await consumer.seek_to_beginning()
        news = _Lines(feed_log)
        began = time.time()
        while not tally.done:
            for problem, name, log in (
                (worker.poll(), "worker", worker_log),
                (feed.poll(), "feeder", feed_log),
            ):
                if problem not in (None, 0):
                    raise StreamprocError(f"the demo's {name} ended with {problem}:\n{child.tail(log)}")
            for line in news.new():
                began = _hear(console, tally, line, began, seconds)
            for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                show = _show_incident if tp.topic == "incidents" else _show
                for record in records:
                    show(console, tally, orjson.loads(record.value), time.time(), began)
    finally:
        # A consumer that waits for its broker must not keep an interrupted demo from ending.
        with suppress(TimeoutError):
            await asyncio.wait_for(consumer.stop(), 5.0)
        child.stop(feed, grace_s=2.0)
    return tally


class _Lines:
    """The whole lines that a growing file has got since last asked."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        text = self._path.read_bytes()[self._at :]
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            if line.startswith(b"{"):
                yield orjson.loads(line)


def _hear(console: Console, tally: Tally, line: dict[str, Any], began: float, seconds: int) -> float:
    """Take what the feeder says; return when it began."""
    what, at = line["what"], float(line["at"])
    if what == "started":
        console.print(
            f"  model     {feeder.MODEL}: an online classifier on river's ImageSegments, {feeder.RATE} predictions "
            f"a second; labels come {feeder.LABEL_DELAY_S[0]:.0f} to {feeder.LABEL_DELAY_S[1]:.0f} s late\n\n"
            f"{seconds} seconds: it learns what is normal; at {FAULT_FROM * seconds:.0f} s the features break\n"
        )
        return at
    stamp = f"[dim]{at - began:6.1f} s[/]"
    if what == "fault":
        tally.fault_at = at
        console.print(
            f"{stamp}  [bold red]FAULT[/]     injected: {feeder.NULL_FEATURE} is null in {feeder.NULL_SHARE:.0%} of "
            f"requests, {len(feeder.SCALED_FEATURES)} colour features are {1 / feeder.SCALE:.0f} times too small"
        )
    elif what == "repaired":
        tally.repaired_at = at
        console.print(f"{stamp}  [bold green]REPAIRED[/]  the features are as before")
    elif what == "done":
        tally.done, tally.sent, tally.accuracy = True, line["sent"], line["accuracy"]
    return began


def _show(console: Console, tally: Tally, alert: dict[str, Any], now: float, began: float) -> None:
    at = datetime.fromisoformat(alert["lastReceived"]).timestamp()
    stamp = f"[dim]{now - began:6.1f} s[/]"
    if alert["action"] == "resolved":
        tally.resolved += 1
        console.print(f"{stamp}  [green]resolved[/]  {escape(alert['summary'])}")
        return
    if alert["action"] != "opened":
        console.print(f"{stamp}  {alert['action']:9} {escape(alert['summary'])}")
        return
    tally.alerts += 1
    false = tally.fault_at is None or at < tally.fault_at
    if false:
        tally.false.append(alert["summary"])
    elif tally.fault_at is not None and tally.caught_after_s is None:
        tally.caught_after_s, tally.caught_by = now - tally.fault_at, alert["signal"]
    colour = "red" if alert["severity"] == "critical" else "yellow"
    tag = " [magenta](false: nothing is wrong yet)[/]" if false else ""
    console.print(f"{stamp}  [{colour}]{alert['severity']:8}[/]  {escape(alert['summary'])}{tag}")


def _show_incident(console: Console, tally: Tally, incident: dict[str, Any], now: float, began: float) -> None:
    cause, action = incident["cause"], incident["suggested_action"].replace("_", " ")
    tally.incidents[incident["incident_id"]] = f"{cause['category']}, {action}"
    words = f"{incident['summary']} ({incident['alerts']} alerts)"
    if incident["action"] != "updated":
        console.print(f"[dim]{now - began:6.1f} s[/]  [bold cyan]INCIDENT[/]  {incident['action']}: {escape(words)}")


def _scored(port: int, sent: int) -> float:
    """Return how many predictions the worker has scored, once it has scored all or 3 s have passed."""
    until = time.monotonic() + 3.0
    while True:
        scored = _metric(port, 'streamproc_events_total{topic="predictions"}')
        if scored >= sent or time.monotonic() > until:
            return scored
        time.sleep(0.1)


def _metric(port: int, name: str) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2.0) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return float("nan")
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), float("nan"))


def _summary(console: Console, tally: Tally, *, scored: float, seconds: int) -> int:
    caught = tally.caught_after_s is not None
    console.print(
        f"\nevents    {tally.sent:,} predictions made, {scored:,.0f} scored, {tally.sent / seconds:,.0f} a second\n"
        f"alerts    {tally.alerts} opened, {tally.resolved} resolved; {len(tally.false)} false before the fault"
    )
    told = "; ".join(tally.incidents.values()) or "none"
    console.print(f"incidents {len(tally.incidents)}: {told}")
    if caught:
        console.print(
            f"[bold green]caught[/]    {tally.caught_after_s:.1f} s after the fault, by {tally.caught_by}"
        )
    else:
        console.print("[bold red]missed[/]    no alert after the fault")
    return 0 if caught else GateFailed.exit_code
