"""What a prediction costs while it waits for its label, and what it costs to be joined.

--rows predictions of one model are sent on, wait thirty days and are joined with their labels, by the pipeline
that the worker runs, without Kafka. Prints one JSON object: bytes of memory a waiting prediction, bytes sent on
for it, bytes that a snapshot writes again and again and bytes that it writes once, and seconds.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import orjson

from streamproc import rules
from streamproc.events import RecordBatch
from streamproc.joins import Rows, class_hash
from streamproc.outstanding import CHUNK
from streamproc.pipeline import PART, Pipeline
from streamproc.quality import QualityState

DAY_US = 86_400_000_000
BEGIN_US = 1_790_000_000_000_000
BATCH = 2000


def rows(side: str, keys: np.ndarray, times: np.ndarray, first: int) -> Rows:
    n = len(keys)
    return Rows(
        side,  # type: ignore[arg-type]
        side,
        0,
        first - 1,
        False,
        keys,
        times,
        np.full(n, np.nan),
        np.full(n, class_hash("a"), np.uint32),
        np.arange(first, first + n),
        np.full(n, 0.9, np.float32),
        np.zeros(n, np.uint16),
        ["1"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    config = rules.parse(
        "version: 1\nkafka: {brokers: 'none:1', predictions: [predictions], labels: [labels]}\n"
        f"defaults: {{labels: {{max_delay: 30d, max_outstanding: {args.rows + CHUNK}}}}}\n"
    )
    pipeline = Pipeline(rules.RuleBook(config), kind="quality", topic="joins")
    rng = np.random.default_rng(1)
    keys = rng.integers(1, 1 << 63, args.rows).astype(np.uint64)
    times = BEGIN_US + np.arange(args.rows) * 1000
    sent = 0

    def send(side: str, order: np.ndarray, late_us: int) -> float:
        nonlocal sent
        began = time.perf_counter()
        for start in range(0, args.rows, BATCH):
            own = order[start : start + BATCH]
            values = rows(side, keys[own], times[own] + late_us, start).pack("model")
            sent += sum(map(len, values)) if side == "predictions" else 0
            offsets = range(pipeline.next_offset, pipeline.next_offset + len(values))
            stamp = int(times[own].max() + late_us) // 1000
            pipeline.process(
                RecordBatch(
                    "joins", 0, offsets, [stamp] * len(values), [b"model"] * len(values), values, [()] * len(values)
                )
            )
        return time.perf_counter() - began

    asked_s = send("predictions", np.arange(args.rows), 0)
    model = pipeline.models["model"]
    assert isinstance(model, QualityState)
    memory = model.waiting.nbytes
    began = time.perf_counter()
    once = again = 0
    for name, data in pipeline.snapshot_models():
        once, again = (once + len(data), again) if PART in name else (once, again + len(data))
    saved_s = time.perf_counter() - began
    joined_s = send("labels", rng.permutation(args.rows), 30 * DAY_US - 10 * args.rows * 1000)
    result = {
        "rows": args.rows,
        "bytes_a_row": round(memory / args.rows, 1),
        "sent_on_bytes_a_row": round(sent / args.rows, 1),
        "snapshot_once_bytes": once,
        "snapshot_again_bytes": again,
        "snapshot_s": round(saved_s, 2),
        "joined": model.counts["joined"],
        "us_a_prediction": round(asked_s / args.rows * 1e6, 2),
        "us_a_label": round(joined_s / args.rows * 1e6, 2),
    }
    print(orjson.dumps(result).decode())
    sys.exit(0 if result["bytes_a_row"] <= 64 and result["joined"] == args.rows else 1)


if __name__ == "__main__":
    main()
