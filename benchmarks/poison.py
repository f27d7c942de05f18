"""Bad records among good ones: every bad one in the dead letters whole, every good one scored.

Bad: truncated, mistyped, huge, deeply nested, not UTF-8, NaN and Infinity, null, of another schema,
without a model. Prints one JSON object: lost (good records not scored, plus bad ones not found in
the dead letters with their bytes and a reason) and restarts, both to be 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer

from benchmarks import workload
from benchmarks.chaos import PARTITIONS, Fleet, drained, events_of, read_states
from tests.brokers.kafka import KafkaCluster

#: Each makes a bad record of a good one.
POISON: dict[str, Any] = {
    "truncated": lambda rng, value: value[: rng.randrange(1, len(value) - 1)],
    "mistyped": lambda rng, value: value.replace(b'"duration_s":', b'"duration_s":"slow","was":', 1),  # noqa: ARG005
    "huge": lambda rng, value: b'{"pad":"' + b"x" * 900_000 + b'"' + value[1:-2],  # noqa: ARG005
    "nested": lambda rng, value: b'{"a":' * rng.randrange(2_000, 20_000) + b"1",  # noqa: ARG005
    "not_utf8": lambda rng, value: value.replace(b'"serving', b'"\xff\xfe', 1),  # noqa: ARG005
    "nan": lambda rng, value: value.replace(b'"duration_s":', b'"duration_s":NaN,"was":', 1),  # noqa: ARG005
    "infinity": lambda rng, value: value.replace(b'"duration_s":', b'"duration_s":-Infinity,"was":', 1),  # noqa: ARG005
    "null": lambda rng, value: None,  # noqa: ARG005
    "empty": lambda rng, value: b"",  # noqa: ARG005
    "other_schema": lambda rng, value: orjson.dumps([1, {"order": rng.random()}]),  # noqa: ARG005
    "no_answer": lambda rng, value: value.replace(b'"prediction"', b'"predicted"', 1),  # noqa: ARG005
    "binary": lambda rng, value: rng.randbytes(rng.randrange(1, 300)),  # noqa: ARG005
    "future": lambda rng, value: value.replace(b'"time":"2', b'"time":"3', 1),  # noqa: ARG005
}


#: Such as are read all the same: what Python's `json` writes for a number that is none is a missing value.
READ = ("nan", "infinity")


def records(n: int, seed: int) -> list[tuple[str | None, bytes, bytes | None, int]]:
    """Return (kind of poison or None, key, value, timestamp) of n records, one in ten of them bad."""
    rng = random.Random(seed)
    made: list[tuple[str | None, bytes, bytes | None, int]] = []
    kinds = list(POISON)
    for key, value, at in workload.predictions(n, models=20, rate=2_000.0, seed=seed):
        kind = rng.choice(kinds) if rng.random() < 0.1 else None
        if kind == "huge" and rng.random() > 0.05:
            kind = "truncated"  # a gigabyte of them proves no more
        value = value if kind is None else POISON[kind](rng, value)
        made.append((None if kind in READ else kind, key, value, at))
    made.append(("no_model", b"", b'{"prediction": 1}', made[-1][3]))
    return made


async def dead_letters(bootstrap: str, topic: str) -> list[tuple[bytes | None, dict[str, bytes]]]:
    """Return value and headers of every dead letter."""
    found = []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", max_partition_fetch_bytes=20_000_000
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                found += [(r.value, dict(r.headers)) for r in batch]
    finally:
        await consumer.stop()
    return found


async def run(bootstrap: str, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Publish, let one worker at it, count."""
    for topic in ("predictions", "telemetry"):
        workload.create_topic(bootstrap, topic, PARTITIONS)
    made = records(args.records, args.seed)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50})
    for _, key, value, at in made:
        while True:
            try:
                producer.produce("predictions", key=key or None, value=value, timestamp=at)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    began = time.monotonic()
    fleet = Fleet(directory, bootstrap, "poison")
    fleet.add()
    try:
        await drained(bootstrap, "poison", 150.0, fleet)
    finally:
        fleet.stop()
    seconds = time.monotonic() - began
    letters = await dead_letters(bootstrap, "poison-dead-letters")
    bad = [value for kind, _, value, _ in made if kind is not None]
    wanted: dict[bytes | None, int] = {}
    for value in bad:
        wanted[value] = wanted.get(value, 0) + 1
    for value, headers in letters:
        named = all(headers.get(h) for h in ("error.type", "__streams.errors.message", "__streams.errors.offset"))
        if named and value in wanted:
            wanted[value] -= 1
    states = await read_states(bootstrap, "poison")
    scored = sum(events_of(s) for (source, name), s in states.items() if source == "predictions" and name[0] != "(")
    good = len(made) - len(bad)
    reasons: dict[str, int] = {}
    for _, headers in letters:
        reason = headers.get("error.type", b"?").decode()
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "lost": abs(good - scored) + sum(abs(n) for n in wanted.values()),
        "restarts": len(fleet.unexpected),
        "good": good,
        "bad": len(bad),
        "scored": scored,
        "dead_letters": len(letters),
        "reasons": dict(sorted(reasons.items())),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory for logs and configs")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(KafkaCluster(nodes=1))
        directory = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(run(kafka.bootstrap, args, directory))
    print(orjson.dumps(result).decode())
    raise SystemExit(1 if result["lost"] or result["restarts"] else 0)


if __name__ == "__main__":
    main()
