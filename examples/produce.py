"""Publish predictions as a serving system would: bare JSON, keyed by model.

streamproc worker --config worker.yaml          # in another terminal
python examples/produce.py localhost:9092
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from datetime import UTC, datetime

import orjson
from aiokafka import AIOKafkaProducer


def predict(features: dict[str, float]) -> float:
    """Stand in for a model."""
    return 1 / (1 + 2.718281828 ** -(features["amount"] / 100 - features["age_days"] / 365))


async def main(brokers: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=brokers) as producer:
        for i in range(600):
            features = {"amount": 10.0 + i % 90, "age_days": 30.0 + i % 700}
            began = time.perf_counter()
            value = predict(features)
            event = {
                "id": str(uuid.uuid4()),
                "source": "checkout-eu",
                "time": datetime.now(UTC).isoformat(),
                "model": {"name": "fraud-eu", "version": "3"},
                "prediction": {"value": value, "label": "fraud" if value > 0.5 else "ok"},
                "features": features,
                "duration_s": time.perf_counter() - began,
            }
            # The key is the model: then one worker sees all of it, in order.
            await producer.send("predictions", orjson.dumps(event), key=b"fraud-eu")
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:9092"))
