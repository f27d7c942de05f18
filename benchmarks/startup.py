"""From starting a worker to its first event scored, and from SIGTERM to its end with the broker gone.

One node of real Apache Kafka, topics there, records waiting. The first start of all, which compiles
the detectors' loops, is made before and not counted. Prints one JSON object; medians of --rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks import workload
from benchmarks.chaos import PARTITIONS, Fleet
from benchmarks.memory import metric
from streamproc.worker.child import free_port
from tests.brokers.kafka import KafkaCluster


def config_text(bootstrap: str, app_id: str, port: int) -> str:
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
worker: {{web_host: 127.0.0.1, web_port: {port}}}
"""


def start(directory: Path, bootstrap: str, app_id: str) -> tuple[Fleet, float]:
    """Start a worker; return it and the seconds to its first event scored."""
    port = free_port()
    fleet = Fleet(directory, bootstrap, app_id)
    fleet.config.write_text(config_text(bootstrap, app_id, port))
    began = time.monotonic()
    fleet.add()
    while not metric(port, "streamproc_events_total") > 0:
        if time.monotonic() - began > 60:
            fleet.stop()
            raise SystemExit(f"no event scored in 60 s; see {fleet.log}")
        time.sleep(0.02)
    return fleet, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="directory for logs and configs")
    args = parser.parse_args()
    starts, stops, orphan_stops = [], [], []
    with contextlib.ExitStack() as stack:
        kafka: Any = stack.enter_context(KafkaCluster(nodes=1, jvm=()))
        directory = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        workload.create_topic(kafka.bootstrap, "predictions", PARTITIONS)
        workload.publish(kafka.bootstrap, "predictions", workload.predictions(2_000))
        for round_ in range(args.rounds + 1):
            fleet, seconds = start(directory, kafka.bootstrap, f"startup-{round_}")
            if round_ > 0:
                starts.append(seconds)
            orphan = round_ == args.rounds
            if orphan:
                kafka.kill(1)
                time.sleep(1.0)
            began = time.monotonic()
            fleet.alive[0].send_signal(signal.SIGTERM)
            fleet.alive[0].wait(60)
            (orphan_stops if orphan else stops).append(time.monotonic() - began)
            fleet.alive = []
    result = {
        "start_to_first_event_s": round(statistics.median(starts), 2),
        "sigterm_s": round(statistics.median(stops), 2),
        "sigterm_broker_gone_s": round(orphan_stops[0], 2),
        "rounds": args.rounds,
    }
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
