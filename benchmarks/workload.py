"""Seeded predictions to benchmark with, and a quick way to put them on a topic."""

from __future__ import annotations

import datetime as dt
import os
import random
from collections.abc import Iterator

import orjson
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

FEATURES = 10


def predictions(
    n: int,
    *,
    models: int = 20,
    rate: float = 20_000.0,
    seed: int = 1,
    start_s: float = 1_790_000_000.0,
    features: int = FEATURES,
    prefix: str = "fraud",
) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield (key, value, timestamp in ms) of n predictions over several models, in event time."""
    rng = random.Random(seed)
    names = [f"feature_{k}" for k in range(features)]
    for i in range(n):
        at = start_s + i / rate
        model = f"{prefix}-{i % models}"
        event = {
            "id": f"{seed:04x}-{i:012d}",
            "source": f"serving/{model}",
            "time": dt.datetime.fromtimestamp(at, dt.UTC).isoformat(),
            "model": {"name": model, "version": "7"},
            "prediction": {"value": rng.random(), "label": "fraud" if rng.random() < 0.1 else "ok"},
            "duration_s": rng.lognormvariate(-4.0, 0.3),
            "features": {name: rng.gauss(0.0, 1.0) for name in names},
        }
        yield model.encode(), orjson.dumps(event), int(at * 1000)


def create_topic(bootstrap: str, name: str, partitions: int, *, replication: int = 1) -> None:
    """Create a topic and wait for it."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    # Kept for ever: event times, which are the records' times here, may be long past.
    topic = NewTopic(name, partitions, replication, config={"retention.ms": "-1"})
    for future in admin.create_topics([topic]).values():
        future.result(30)


def publish(bootstrap: str, topic: str, records: Iterator[tuple[bytes, bytes, int]]) -> int:
    """Put records on a topic in batches; return how many."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50, "batch.size": 500_000})
    count = 0
    for key, value, timestamp in records:
        while True:
            try:
                producer.produce(topic, key=key, value=value, timestamp=timestamp)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        if count % 1000 == 0:
            producer.poll(0)
    producer.flush(60)
    return count


def plain_environment() -> dict[str, str]:
    """Return an environment for child processes: ours, with one thread for numeric libraries."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
