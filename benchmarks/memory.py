"""Memory a model, time to save and to restore them all, and what a flood of new names does.

One worker on a real Kafka learns --models models with every default detector; its resident memory,
its snapshot and, after a restart, its restore are measured. Then as many names nobody has seen
before are published: the number of series and the memory must stay bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import orjson

from benchmarks import workload
from benchmarks.chaos import PARTITIONS, Fleet, drained
from streamproc.worker.child import free_port
from tests.brokers.kafka import KafkaCluster

#: Enough for features to be settled, half-space trees to be built and windows to close.
EVENTS_A_MODEL = 80


def config_text(bootstrap: str, port: int, models: int) -> str:
    return f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [predictions]
  telemetry: [telemetry]
  app_id: memory
  alerts: memory-alerts
  snapshots: memory-snapshots
  dead_letters: memory-dead-letters
  partitions: {PARTITIONS}
defaults:
  discover: {{max_series: {models}}}
worker: {{web_host: 127.0.0.1, web_port: {port}, snapshot_interval: 15s, shutdown_grace: 60s, idle_advance: false}}
"""


def rss(pid: int) -> int:
    """Return a process's resident memory, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def metric(port: int, name: str) -> float:
    """Return the sum over labels of one metric of the worker."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
            text = response.read().decode()
    except OSError:
        return float("nan")
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


async def reached(port: int, name: str, value: float, timeout_s: float) -> float:
    """Wait until a metric has reached a value; return it."""
    deadline = time.monotonic() + timeout_s
    while (found := await asyncio.to_thread(metric, port, name)) < value or found != found:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} is {found} after {timeout_s:.0f} s; expected {value}")
        await asyncio.sleep(0.2)
    return found


async def run(bootstrap: str, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    for topic in ("predictions", "telemetry"):
        workload.create_topic(bootstrap, topic, PARTITIONS)
    fleet = Fleet(directory, bootstrap, "memory")
    port = free_port()
    fleet.config.write_text(config_text(bootstrap, port, int(args.models * 1.2)))
    fleet.add()
    try:
        await reached(port, "streamproc_partitions_owned", 2 * PARTITIONS, 60.0)
        pid = fleet.alive[0].pid
        empty = rss(pid)
        events = args.models * EVENTS_A_MODEL
        print(f"publishing {events} predictions of {args.models} models", flush=True)
        stream = workload.predictions(events, models=args.models, rate=args.models * 1.0)
        await asyncio.to_thread(workload.publish, bootstrap, "predictions", stream)
        await reached(port, "streamproc_events_total", events, 240.0)
        count = metric(port, "streamproc_snapshot_seconds_count")
        await reached(port, "streamproc_snapshot_seconds_count", count + 1, 300.0)
        # One more round in which every model has changed, and nothing else happens.
        before = [metric(port, f"streamproc_snapshot_seconds_{x}") for x in ("sum", "count")]
        size = metric(port, "streamproc_snapshot_bytes_total")
        more = workload.predictions(
            args.models, models=args.models, rate=args.models * 1.0, seed=2, start_s=1_790_000_000.0 + EVENTS_A_MODEL
        )
        await asyncio.to_thread(workload.publish, bootstrap, "predictions", more)
        await reached(port, "streamproc_events_total", events + args.models, 60.0)
        await reached(port, "streamproc_snapshot_seconds_count", before[1] + 1, 240.0)
        snapshot_s = metric(port, "streamproc_snapshot_seconds_sum") - before[0]
        snapshot_bytes = metric(port, "streamproc_snapshot_bytes_total") - size
        full = rss(pid)
        series = metric(port, "streamproc_series_active")
        print("restarting", flush=True)
        fleet.stop()
        fleet.add()
        await reached(port, "streamproc_series_active", series, 300.0)
        restore_s = metric(port, "streamproc_restore_seconds_sum")
        print("flooding", flush=True)
        pid, calm = fleet.alive[0].pid, rss(fleet.alive[0].pid)
        after = 1_790_000_000.0 + EVENTS_A_MODEL + 1
        flood = workload.predictions(2 * args.models, models=2 * args.models, prefix="flood", seed=3, start_s=after)
        await asyncio.to_thread(workload.publish, bootstrap, "predictions", flood)
        await drained(bootstrap, "memory", 200.0, fleet, topics=["predictions", "telemetry"])
        flooded = metric(port, "streamproc_series_active")
        refused = metric(port, "streamproc_refused_events_total")
        growth = rss(pid) - calm
    finally:
        fleet.stop()
    return {
        "bytes_per_series": round((full - empty) / series),
        "snapshot_bytes_per_series": round(snapshot_bytes / series),
        "snapshot_seconds": round(snapshot_s, 2),
        "restore_seconds": round(restore_s, 2),
        "series": int(series),
        "series_after_flood": int(flooded),
        "refused_events": int(refused),
        "growth_bytes_in_flood": growth,
        "empty_worker_bytes": empty,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="directory for logs and configs")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(KafkaCluster(nodes=1, jvm=()))
        directory = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(run(kafka.bootstrap, args, directory))
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
