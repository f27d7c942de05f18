"""The demo's serving system: an online classifier on a real data set, publishing what it does.

The data is the image segmentation set that comes with river (UCI, 2,310 rows, 18 features, 7
classes), drawn over and over in a seeded order. The model is trained on part of it, then serves and
goes on learning from labels that arrive seconds late, as they do in production. From `fault_from_s`
to `fault_to_s` two feeds of features break: one is missing from part of the requests, one is off by 1000.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import random
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer
from river import datasets, naive_bayes

MODEL = "image-classifier"
RATE = 200  # predictions a second
NULL_FEATURE = "hue-mean"
NULL_SHARE = 0.4
SCALED_FEATURES = ("intensity-mean", "rawred-mean", "rawblue-mean", "rawgreen-mean", "value-mean")
SCALE = 0.001
LABEL_DELAY_S = (5.0, 10.0)

#: Rows learned before serving: twice through the data.
_TRAINED_ON = 4600

_TICK_S = 0.01


def rows(rng: random.Random) -> Iterator[tuple[dict[str, float], str]]:
    """Yield features and class for ever, each pass in another order."""
    data = [(dict(x), str(y)) for x, y in datasets.ImageSegments()]
    while True:
        rng.shuffle(data)
        yield from data


def trained(stream: Iterator[tuple[dict[str, float], str]]) -> Any:
    """Return a classifier that has learned from the first rows."""
    model = naive_bayes.GaussianNB()
    for _ in range(_TRAINED_ON):
        x, y = next(stream)
        model.learn_one(x, y)
    return model


class Fault:
    """What goes wrong with the features, between two times of the run."""

    def __init__(self, from_s: float, to_s: float, rng: random.Random) -> None:
        self.from_s, self.to_s, self._rng = from_s, to_s, rng

    def active(self, at_s: float) -> bool:
        """Return whether the fault is there."""
        return self.from_s <= at_s < self.to_s

    def applied(self, x: Mapping[str, float]) -> dict[str, float | None]:
        """Return the features as a broken feed delivers them."""
        broken: dict[str, float | None] = {**x, **{name: x[name] * SCALE for name in SCALED_FEATURES}}
        if self._rng.random() < NULL_SHARE:
            broken[NULL_FEATURE] = None
        return broken


def predict(model: Any, x: dict[str, float | None]) -> tuple[str, float, float]:
    """Return class, confidence and the seconds it took; a null counts as 0, as careless serving code has it."""
    began = time.perf_counter()
    shares = model.predict_proba_one({k: 0.0 if v is None else v for k, v in x.items()})
    label = max(shares, key=shares.__getitem__)
    return label, shares[label], time.perf_counter() - began


def say(what: str, **fields: object) -> None:
    """Tell the parent process, which reads our output, a line of JSON at a time."""
    print(orjson.dumps({"what": what, "at": time.time(), **fields}).decode(), flush=True)  # noqa: T201


async def feed(brokers: str, *, seconds: float, fault_from_s: float, fault_to_s: float, seed: int) -> None:
    """Serve for so many seconds at `RATE`, and publish predictions and, late, labels."""
    rng = random.Random(seed)
    stream = rows(rng)
    model = trained(stream)
    fault = Fault(fault_from_s, fault_to_s, random.Random(seed + 1))
    due: list[tuple[float, int, dict[str, float | None], str]] = []
    broken, sent, right, judged = False, 0, 0, 0
    producer = AIOKafkaProducer(bootstrap_servers=brokers, linger_ms=5)
    await producer.start()
    try:
        began = time.monotonic()
        say("started")
        while (now := time.monotonic() - began) < seconds:
            if fault.active(now) != broken:
                broken = not broken
                say("fault" if broken else "repaired", sent=sent)
            while due and due[0][0] <= now:
                _, number, learned, y = heapq.heappop(due)
                label = {"prediction_id": f"{seed}-{number}", "label": y, "time": _now(), "model": MODEL}
                await producer.send("labels", orjson.dumps(label), key=MODEL.encode())
                model.learn_one({k: 0.0 if v is None else v for k, v in learned.items()}, y)
            while sent < now * RATE:
                x, y = next(stream)
                seen: dict[str, float | None] = fault.applied(x) if broken else dict(x)
                answer, confidence, took_s = predict(model, seen)
                right, judged = right + (answer == y), judged + 1
                event = {
                    "id": f"{seed}-{sent}",
                    "source": "streamproc-demo",
                    "time": _now(),
                    "model": {"name": MODEL, "version": "1"},
                    "prediction": {"label": answer, "score": confidence},
                    "features": seen,
                    "duration_s": took_s,
                }
                await producer.send("predictions", orjson.dumps(event), key=MODEL.encode())
                heapq.heappush(due, (now + rng.uniform(*LABEL_DELAY_S), sent, seen, y))
                sent += 1
            await asyncio.sleep(_TICK_S)
    finally:
        await producer.stop()
    say("done", sent=sent, accuracy=right / max(1, judged))


def _now() -> str:
    return datetime.now(UTC).isoformat()


def main() -> None:
    """Run as a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("brokers")
    for name in ("--seconds", "--fault-from", "--fault-to"):
        parser.add_argument(name, type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    a = parser.parse_args()
    asyncio.run(
        feed(a.brokers, seconds=a.seconds, fault_from_s=a.fault_from, fault_to_s=a.fault_to, seed=a.seed)
    )


if __name__ == "__main__":
    main()
