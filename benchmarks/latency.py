"""From publishing a prediction to reading its alert, with a steady stream around it.

A feeder publishes --rate predictions a second to a real Kafka; one in 500 has a latency over its
limit, whose alert names the record's offset. A reader notes when each alert arrives. The load must
be a third or less of what one core can take for the figure to be about latency; the share of a core
the worker used is printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Consumer, Producer

from benchmarks import workload
from benchmarks.chaos import PARTITIONS, Fleet
from tests.brokers.kafka import KafkaCluster

#: Slow predictions go to models of their own, so that each is an alert: every episode is resolved,
#: by the model's ordinary predictions, long before its next slow one.
SLOW_EVERY = 500


def config_text(bootstrap: str, app_id: str) -> str:
    return f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [predictions]
  app_id: {app_id}
  alerts: {app_id}-alerts
  snapshots: {app_id}-snapshots
  dead_letters: {app_id}-dead-letters
  partitions: {PARTITIONS}
defaults:
  resolve_after: 20ms
  signals:
    latency: {{detector: limits, params: {{upper: 5.0}}}}
worker: {{web_port: 0}}
"""


def feed(bootstrap: str, rate: float, seconds: float) -> tuple[int, dict[str, float]]:
    """Publish predictions at a steady rate; return how many, and when each slow one was handed over."""
    sent: dict[str, float] = {}
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2})
    template = [(k, orjson.loads(v)) for k, v, _ in workload.predictions(2_000, models=20)]
    names = [(k, orjson.dumps(v)) for k, v in template]
    began, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = int(elapsed * rate)
        while count < due:
            key, value = names[count % len(names)]
            now = time.time()
            head = value.index(b'"time":"') + 8
            tail = value.index(b'"', head)
            stamp = f"{now:.6f}".encode()
            value = value[: head - 1] + stamp + value[tail + 1 :]
            if count % SLOW_EVERY == 0:
                model = f"slow-{count // SLOW_EVERY}"
                event = orjson.loads(value)
                event |= {"duration_s": 60.0, "model": {"name": model}, "features": None}
                sent[model] = now
                producer.produce("predictions", key=model.encode(), value=orjson.dumps(event))
            else:
                producer.produce("predictions", key=key, value=value)
            count += 1
        producer.poll(0)
        time.sleep(0.0005)
    producer.flush()
    return count, sent


def listen(bootstrap: str, topic: str, got: dict[str, float], stop: threading.Event) -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "latency-reader", "auto.offset.reset": "earliest",
                         "fetch.wait.max.ms": 5})
    consumer.subscribe([topic])
    while not stop.is_set():
        message = consumer.poll(0.05)
        if message is None or message.error() is not None:
            continue
        alert = orjson.loads(message.value())
        if alert["signal"] == "latency" and alert["action"] == "opened":
            got.setdefault(alert["labels"]["model"], time.time())
    consumer.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run(bootstrap: str, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    workload.create_topic(bootstrap, "predictions", PARTITIONS)
    fleet = Fleet(directory, bootstrap, "latency")
    fleet.config.write_text(config_text(bootstrap, "latency"))
    fleet.add()
    got: dict[str, float] = {}
    # A process of its own: in ours, feeding would hold up the reader that notes when alerts arrive.
    feeders = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    stop = threading.Event()
    try:
        # Until the worker has its partitions, what is published waits: not what is measured.
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(feeders, feed, bootstrap, 2_000.0, 12.0)
        reader = threading.Thread(target=listen, args=(bootstrap, "latency-alerts", got, stop), daemon=True)
        reader.start()
        await asyncio.sleep(3.0)
        got.clear()
        pid = fleet.alive[0].pid
        cpu, wall = cpu_seconds(pid), time.monotonic()
        count, sent = await loop.run_in_executor(feeders, feed, bootstrap, args.rate, args.seconds)
        share = (cpu_seconds(pid) - cpu) / (time.monotonic() - wall)
        await asyncio.sleep(3.0)
        stop.set()
        reader.join()
    finally:
        feeders.shutdown()
        fleet.stop()
    # The first seconds of load are the ramp: the kernel's sockets and the feeder settle.
    first = min(sent.values()) + 2.0
    delays = np.array([1e3 * (got[m] - at) for m, at in sent.items() if m in got and at >= first])
    return {
        "p50_ms": round(float(np.percentile(delays, 50)), 1),
        "p99_ms": round(float(np.percentile(delays, 99)), 1),
        "max_ms": round(float(delays.max()), 1),
        "alerts": len(delays),
        "unanswered": len(sent.keys() - got.keys()),
        "rate": round(count / args.seconds),
        "worker_cpu_share": round(share, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20_000.0, help="predictions a second")
    parser.add_argument("--seconds", type=float, default=20.0)
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
