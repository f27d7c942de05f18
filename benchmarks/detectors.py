"""Microseconds an update takes, of every detector, and of river's own class used plainly where there is one.

    python -m benchmarks.detectors                           all of them, a minute
    python -m benchmarks.detectors --names pattern kswin     some
    python -m benchmarks.detectors --rounds 9                for a busy machine

Each detector is fed seeded values of its kind, one a minute: a normal value with a daily rhythm, ones of probability
.1, rows of 10 normal features; kswin a value without rhythm, for a drift empties its window and a test costs nothing
until it is full again. It has learned --lead values (a slow one fewer) before the clock runs, all loops are
compiled, and of a few rounds, each over values not seen before, the quickest counts. river's class learns and is asked
value by value, without the standardising and calibrating ours do. Printed are µs an update in batches of 1, 100 and
1000 values, river's µs, how many times as long that is as ours at 1000, and the bytes of a snapshot.

`first event` is making a detector and its first score, in a fresh process that has called
`detectors.compile.warm_up_kernels` with its name, the loops being cached on disk. Then comes one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import orjson

from detectors import registry
from detectors.compile import warm_up_kernels
from detectors.protocol import F64, I64, Detector
from detectors.state import dumps

BATCHES: Final = (1, 100, 1000)
COLUMNS: Final = 10
A_DAY: Final = 1440
A_MINUTE_US: Final = 60_000_000
START_US: Final = 1_790_000_000_000_000

#: µs an update in batches of 1000 that are not to be exceeded.
TARGETS: Final = {"pattern": 10.0, "outlier": 3.0, "drift": 0.5, "spike": 0.2, "rate": 0.2, "seasonal": 1.0}

#: What a detector needs to be made at all.
PARAMS: Final[dict[str, dict[str, Any]]] = {"limits": {"upper": 130.0}}

#: Seconds of one round; no round is longer than the stream or shorter than a batch.
A_ROUND_S: Final = 0.06
LONGEST: Final = 14 * A_DAY

Step: TypeAlias = Callable[[], object]


def stream(name: str, n: int) -> F64:
    """Return n values, or rows, of the kind a detector is fed."""
    rng = np.random.default_rng(1)
    match registry.spec(name).kind:
        case "boolean":
            return (rng.random(n) < 0.1).astype(np.float64)
        case "vector":
            return rng.normal(10.0, 2.0, (n, COLUMNS))
        case _:
            rhythm = 0.0 if name == "kswin" else 10.0 * np.sin(2.0 * np.pi * np.arange(n) / A_DAY)
            return 100.0 + rhythm + rng.normal(0.0, 2.0, n)


def minutes(at: int, n: int) -> I64:
    return START_US + np.arange(at, at + n, dtype=np.int64) * A_MINUTE_US


def make(name: str) -> Detector:
    columns = COLUMNS if registry.spec(name).kind == "vector" else 1
    return registry.create(name, PARAMS.get(name), columns=columns, seed=1)


def rivers(name: str) -> Callable[[Any], object] | None:
    """Return what learns one value by river's own class, or None where river has no such detector."""
    drift, binary, anomaly = (importlib.import_module(f"river.{m}") for m in ("drift", "drift.binary", "anomaly"))
    model: Any
    match name:
        case "adwin":
            model = drift.ADWIN()
        case "kswin":
            model = drift.KSWIN(seed=1)
        case "page_hinkley":
            model = drift.PageHinkley()
        case "ddm" | "eddm" | "fhddm" | "hddm_a" | "hddm_w":
            model = getattr(binary, name.replace("_", "").upper())()
        case "gaussian_scorer":
            model = anomaly.GaussianScorer()
        case "standard_absolute_deviation":
            model = anomaly.StandardAbsoluteDeviation()
        case "half_space_trees":
            scaler = importlib.import_module("river.preprocessing").MinMaxScaler()
            model = scaler | anomaly.HalfSpaceTrees(seed=1)
        case "loda":
            model = anomaly.LODA(seed=1)
        case "one_class_svm":
            model = anomaly.OneClassSVM()
        case "local_outlier_factor":
            # As many rows as ours keeps; river's own default is 1000.
            engine = importlib.import_module("river.neighbors").LazySearch(window_size=200)
            model = anomaly.LocalOutlierFactor(engine=engine)
        case _:
            return None

    def update(x: Any) -> object:
        model.update(x)
        return model.drift_detected

    def score_value(x: Any) -> None:
        model.score_one(None, x)
        model.learn_one(None, x)

    def score_row(x: Any) -> None:
        model.score_one(x)
        model.learn_one(x)

    if hasattr(model, "update"):
        return update
    return score_row if registry.spec(name).kind == "vector" else score_value


def best(steps: Callable[[int], list[Step]], least: int, *, rounds: int) -> float:
    """Return the least µs a value of `rounds` rounds; steps(n) are what takes n values more, `least` at a time."""

    def seconds(n: int) -> float:
        todo = steps(n)
        before = time.perf_counter()
        for step in todo:
            step()
        return (time.perf_counter() - before) / n

    n = least * max(1, 20 // least)
    n = max(least, min(LONGEST, int(A_ROUND_S / seconds(n))) // least * least)
    return min(seconds(n) for _ in range(rounds)) * 1e6


def ours_us(name: str, *, lead: int, rounds: int) -> tuple[dict[str, float], int]:
    """Return µs an update by size of batch, and the bytes of a snapshot at the end."""
    detector = make(name)
    values = stream(name, LONGEST)
    values = np.concatenate((values, values[: max(BATCHES)]))
    at = 0

    def slices(count: int, size: int) -> Iterator[Step]:
        # Round and round the stream, whole days of it, time going on.
        nonlocal at
        for _ in range(count // size):
            part, times = values[at % LONGEST : at % LONGEST + size], minutes(at, size)
            at += size
            yield lambda part=part, times=times: detector.score(part, times)

    before = time.perf_counter()
    while at < lead and (time.perf_counter() - before < 0.5 or detector.warming() > 0):
        for step in slices(100, 100):
            step()
    us = {str(size): best(lambda k, s=size: list(slices(k, s)), size, rounds=rounds) for size in BATCHES}
    return us, len(dumps(detector.snapshot()))


def river_us(name: str, *, lead: int, rounds: int) -> float | None:
    """Return µs an update of river's own class."""
    learn = rivers(name)
    if learn is None:
        return None
    kind = registry.spec(name).kind
    values: list[Any] = stream(name, LONGEST).tolist()
    if kind == "vector":
        values = [{f"{j:05d}": x for j, x in enumerate(row)} for row in values]
    elif kind == "boolean":
        values = [int(x) for x in values]
    at = 0

    def take(count: int) -> list[Any]:
        nonlocal at
        taken = [values[(at + i) % LONGEST] for i in range(count)]
        at += count
        return taken

    before = time.perf_counter()
    while at < lead and time.perf_counter() - before < 1.0:
        for x in take(10):
            learn(x)

    def steps(count: int) -> list[Step]:
        taken = take(count)

        def run() -> None:
            for x in taken:
                learn(x)

        return [run]

    return best(steps, 20, rounds=rounds)


def first_events(names: list[str]) -> dict[str, float]:
    """Return ms that making each detector and its first score take, once loops are loaded."""
    warm_up_kernels(names=names)
    found = {}
    for name in names:
        values, times = stream(name, 1), minutes(0, 1)
        before = time.perf_counter()
        make(name).score(values, times)
        found[name] = (time.perf_counter() - before) * 1e3
    return found


def in_a_fresh_process(names: list[str]) -> dict[str, float]:
    code = "import sys, benchmarks.detectors as b; print(b.orjson.dumps(b.first_events(sys.argv[1:])).decode())"
    done = subprocess.run([sys.executable, "-c", code, *names], check=True, capture_output=True, timeout=120)
    return dict(orjson.loads(done.stdout))


def run(names: list[str], *, lead: int, rounds: int) -> dict[str, Any]:
    warm_up_kernels(names=names)
    first = in_a_fresh_process(names)
    heads = f"{'batch 1':>9}{'100':>9}{'1000':>9}{'river':>10}{'ratio':>8}{'snapshot':>11}{'first event':>13}"
    print(f"{'µs an update':28}{heads}")
    us: dict[str, dict[str, float]] = {}
    river: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for name in names:
        us[name], sizes[name] = ours_us(name, lead=lead, rounds=rounds)
        theirs = river_us(name, lead=lead, rounds=rounds)
        beside = f"{'':10}{'':8}"
        if theirs is not None:
            river[name] = theirs
            beside = f"{theirs:10.2f}{theirs / us[name]['1000']:8.1f}"
        columns = "".join(f"{us[name][str(size)]:9.2f}" for size in BATCHES)
        print(f"{name:28}{columns}{beside}{sizes[name]:9} B{first[name]:10.2f} ms", flush=True)
    targets = {name: limit for name, limit in TARGETS.items() if name in us}
    missed = [name for name, limit in targets.items() if us[name]["1000"] > limit]
    if targets:
        told = ", ".join(f"{name} {us[name]['1000']:.2f} of {limit:g}" for name, limit in targets.items())
        print(f"at 1000, of at most: {told}; missed: {', '.join(missed) or 'none'}")
    return {
        "us": {name: {size: round(x, 3) for size, x in by_size.items()} for name, by_size in us.items()},
        "river": {name: round(x, 3) for name, x in river.items()},
        "snapshot_bytes": sizes,
        "first_event_ms": {name: round(x, 3) for name, x in first.items()},
        "targets_missed": missed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.detectors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = registry.names()
    parser.add_argument("--names", nargs="+", choices=known, default=known, metavar="NAME", help="(default: all)")
    parser.add_argument("--lead", type=int, default=3_000, help="values learned before (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="of which the quickest counts (default: %(default)s)")
    args = parser.parse_args()
    print(orjson.dumps(run(list(dict.fromkeys(args.names)), lead=args.lead, rounds=args.rounds)).decode())


if __name__ == "__main__":
    main()
