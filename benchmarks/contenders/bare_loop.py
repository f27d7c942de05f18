"""A bare confluent-kafka loop: consume, parse, no detection at all."""

from __future__ import annotations

import sys

import orjson
from confluent_kafka import Consumer

from benchmarks.contenders.river_work import Meter


def main() -> None:
    bootstrap, topic, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"bare-{topic}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    meter, done = Meter(events), False
    while not done:
        for message in consumer.consume(1000, timeout=1.0):
            if message.error() is None:
                orjson.loads(message.value())
                done = meter.tick()
    print(meter.report())
    consumer.close()


if __name__ == "__main__":
    main()
