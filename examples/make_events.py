"""Write the demo's stream to a file, in simulated time: history for `streamproc replay`.

python examples/make_events.py --seconds 60 --output events.jsonl.gz
streamproc replay --from-file events.jsonl.gz --config examples/demo.yaml
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from streamproc.demo import feeder

BEGIN = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def events(seconds: float, *, seed: int, fault: bool = True) -> Iterator[dict[str, Any]]:
    """Yield predictions at the demo's rate; the model learns from labels as they come."""
    rng = random.Random(seed)
    stream = feeder.rows(rng)
    model = feeder.trained(stream)
    until = (0.6 * seconds, 0.85 * seconds) if fault else (seconds, seconds)
    broken = feeder.Fault(*until, random.Random(seed + 1))
    due: list[tuple[float, int, dict[str, float | None], str]] = []
    for number in range(int(seconds * feeder.RATE)):
        now = number / feeder.RATE
        while due and due[0][0] <= now:
            _, _, x, y = heapq.heappop(due)
            model.learn_one({k: 0.0 if v is None else v for k, v in x.items()}, y)
        x, y = next(stream)
        seen = broken.applied(x) if broken.active(now) else dict(x)
        answer, confidence, _ = feeder.predict(model, seen)
        heapq.heappush(due, (now + rng.uniform(*feeder.LABEL_DELAY_S), number, seen, y))
        yield {
            "id": f"{seed}-{number}",
            "source": "streamproc-demo",
            "time": (BEGIN + timedelta(seconds=now)).isoformat(),
            "model": {"name": feeder.MODEL, "version": "1"},
            "prediction": {"label": answer, "score": round(confidence, 4)},
            "features": {k: None if v is None else round(v, 3) for k, v in seen.items()},
            # Of a machine with nothing else to do: the file must not depend on the one it is made on.
            "duration_s": round(rng.lognormvariate(-7.6, 0.15), 6),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-fault", action="store_true", help="nothing breaks: every alert is a false one")
    parser.add_argument("--output", default="events.jsonl.gz")
    a = parser.parse_args()
    # No name and no time in the gzip header: the same seed gives the same bytes.
    with open(a.output, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for event in events(a.seconds, seed=a.seed, fault=not a.no_fault):
            file.write(orjson.dumps(event) + b"\n")


if __name__ == "__main__":
    main()
