"""Events per second of CPU: the worker with its default detectors, against what one would use instead.

All contenders read the same topic of a real Kafka, one after another, several rounds; each reports
its own process's CPU time from its first event to its last. Ratios are of medians over rounds run
in turn, so a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import orjson

from benchmarks import workload
from tests.brokers.kafka import KafkaCluster

#: The naive agent is slow enough that a part of the topic tells as much.
_SHARE = {"naive_faust": 0.1, "quix": 0.25}

#: The worker doing, by its adapters, the very work the others do.
_SAME_WORK = (
    "{signals: {prediction_drift: {detector: adwin}, latency: {detector: gaussian_scorer}, "
    "feature_outlier: {detector: half_space_trees}}}"
)


def run_one(name: str, bootstrap: str, topic: str, events: int, *more: str) -> dict[str, float]:
    """Run one contender to its end; return what it reports."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.contenders.{name}", bootstrap, topic, str(events), *more],
        env=workload.plain_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{name} gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found: dict[str, float] = orjson.loads(lines[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="contenders to run")
    args = parser.parse_args()
    contenders = [
        ("worker", "worker", ()),
        ("bare_loop", "bare_loop", ()),
        ("worker_same_work", "worker", (_SAME_WORK,)),
        ("naive_faust", "naive_faust", ()),
        ("quix", "quix", ()),
    ]
    us: dict[str, list[float]] = {label: [] for label, _, _ in contenders}
    with KafkaCluster(nodes=1, jvm=()) as kafka:
        for round_ in range(args.rounds):
            topic = f"predictions-{round_}"
            workload.create_topic(kafka.bootstrap, topic, 4)
            workload.publish(kafka.bootstrap, topic, workload.predictions(args.events, models=args.models))
            for label, name, more in contenders:
                if args.only and label not in args.only:
                    continue
                events = int(args.events * _SHARE.get(name, 1.0))
                began = time.perf_counter()
                found = run_one(name, kafka.bootstrap, topic, events, *more)
                us[label].append(1e6 * found["cpu_s"] / found["events"])
                print(
                    f"round {round_ + 1}/{args.rounds} {label:18s} {us[label][-1]:8.2f} us CPU an event, "
                    f"{found['events'] / found['wall_s']:9.0f} events/s wall ({time.perf_counter() - began:.0f} s)",
                    flush=True,
                )
    median = {label: statistics.median(values) for label, values in us.items() if values}
    worker = median["worker"]
    result: dict[str, object] = {
        "worker_per_cpu_s": round(1e6 / worker),
        "vs_naive_faust": round(median.get("naive_faust", float("nan")) / worker, 2),
        "vs_quix": round(median.get("quix", float("nan")) / worker, 2),
        "vs_bare_loop": round(median.get("bare_loop", float("nan")) / worker, 3),
        "same_work_vs_naive_faust": round(
            median.get("naive_faust", float("nan")) / median.get("worker_same_work", float("nan")), 2
        ),
        "us_per_event": {label: round(value, 2) for label, value in median.items()},
        "events": args.events,
        "models": args.models,
        "rounds": args.rounds,
    }
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
