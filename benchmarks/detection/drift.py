"""Drift, event by event: `drift` and `rate` beside river's detectors, on the same series, in the same run.

Each detector of values sees independent normal values whose mean rises by half a standard deviation, or whose
standard deviation, or only whose variance, grows by half, after
--before values; each detector of zeros and ones sees their rate rise. The delay is the number of values from the
change to the first alarm, the changed one counted; the table has the median and the share missed within --after.
False alarms are counted on unchanging series, per 10,000 values past 1,000: an alarm within 500 values of
the last is the same alarm, for all alike. River's detectors run with river's own defaults. Prints tables, then one
JSON object.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from river import drift as river_drift
from river.drift import binary

from detectors import registry

F64 = npt.NDArray[np.float64]
Watch = Callable[[F64, int], npt.NDArray[np.int64]]  # values, seed → places of alarms

_SKIP = 1_000  # values before false alarms count: the longest warm-up
_SAME = 500


def ours(name: str, params: dict[str, Any]) -> Watch:
    def watch(values: F64, seed: int) -> npt.NDArray[np.int64]:
        detector = registry.create(name, params, seed=seed)
        return np.flatnonzero(detector.score(values, np.arange(len(values), dtype=np.int64)) >= 1.0)

    return watch


def rivers(make: Callable[[int], Any], cast: Callable[[float], Any] = float) -> Watch:
    def watch(values: F64, seed: int) -> npt.NDArray[np.int64]:
        detector = make(seed)
        found = []
        for i, value in enumerate(values.tolist()):
            detector.update(cast(value))
            if detector.drift_detected:
                found.append(i)
        return np.array(found, dtype=np.int64)

    return watch


VALUES: dict[str, Watch] = {
    "drift": ours("drift", {"limit": 1e5}),
    "drift, prewhitened": ours("drift", {"limit": 1e5, "prewhiten": True}),
    "river ADWIN": rivers(lambda _: river_drift.ADWIN()),
    "river PageHinkley": rivers(lambda _: river_drift.PageHinkley()),
    "river KSWIN": rivers(lambda seed: river_drift.KSWIN(seed=seed)),
}
BOOLEANS: dict[str, Watch] = {
    "rate": ours("rate", {"limit": 1e4}),
    "river ADWIN": rivers(lambda _: river_drift.ADWIN()),
    "river DDM": rivers(lambda _: binary.DDM(), bool),
    "river EDDM": rivers(lambda _: binary.EDDM(), bool),
    "river HDDM_A": rivers(lambda _: binary.HDDMA(), bool),
    "river HDDM_W": rivers(lambda _: binary.HDDMW(), bool),
}
# 180 µs a value: a tenth of the runs is what there is time for.
SLOW = {"river KSWIN"}


def delays(watch: Watch, series: Callable[[int], F64], before: int, runs: int) -> tuple[float, float]:
    """Return the median delay, missed ones counted as never, and the share missed."""
    found = []
    for seed in range(runs):
        alarms = watch(series(seed), seed)
        later = alarms[alarms >= before]
        found.append(float(later[0] - before + 1) if len(later) else np.inf)
    return float(np.median(found)), float(np.mean(np.isinf(found)))


def false_alarms(watch: Watch, series: Callable[[int], F64], runs: int) -> tuple[float, float]:
    """Return alarms per 10,000 unchanging values, and microseconds a value."""
    count, total, began = 0, 0, time.perf_counter()
    for seed in range(runs):
        values = series(seed)
        total += len(values) - _SKIP
        last = -_SAME
        for at in watch(values, seed):
            if at >= _SKIP and at - last >= _SAME:
                count += 1
            if at >= _SKIP:
                last = int(at)
    seconds = time.perf_counter() - began
    return count / total * 1e4, seconds / (total + runs * _SKIP) * 1e6


def changed(before: int, after: int, by: float = 0.0, wider: float = 1.0) -> Callable[[int], F64]:
    def series(seed: int) -> F64:
        values = np.random.default_rng((1, seed)).normal(size=before + after)
        values[before:] = values[before:] * wider + by
        return values

    return series


def flips(before: int, after: int, low: float, high: float) -> Callable[[int], F64]:
    def series(seed: int) -> F64:
        chances = np.repeat([low, high], [before, after])
        return (np.random.default_rng((2, seed)).random(before + after) < chances).astype(np.float64)

    return series


def ar(n: int, phi: float) -> Callable[[int], F64]:
    def series(seed: int) -> F64:
        values = np.random.default_rng((3, seed)).normal(size=n)
        for i in range(1, n):
            values[i] += phi * values[i - 1]
        return values

    return series


def _cell(delay: float, missed: float) -> str:
    text = "missed" if np.isinf(delay) else f"{delay:.0f}"
    return f"{text} ({missed:.0%})" if missed > 0 else text


def run(
    *, runs: int = 100, before: int = 3_000, after: int = 3_000, baselines: bool = True, table: bool = False
) -> dict[str, Any]:
    """Measure; return the figures of `drift` (limit 1e5) and `rate` (limit 1e4)."""
    for name in ("drift", "rate"):  # compile before the clock runs
        registry.create(name).score(np.zeros(3), np.arange(3))
    quiet = 11_000
    found: dict[str, list[Any]] = {}
    head = ("FA/10k", "FA AR(.5)", "+.25 sd", "+.5 sd", "sd x1.5", "var x1.5", "us")
    if table:
        print(f"{'real values':20s}", *(f"{title:>12s}" for title in head))
    for name, watch in VALUES.items():
        if not baselines and name.startswith("river"):
            continue
        few = max(1, runs // 10) if name in SLOW else runs
        wrong, us = false_alarms(watch, changed(quiet, 0), few)
        related, _ = false_alarms(watch, ar(quiet, 0.5), max(1, few // 4))
        seen = [
            delays(watch, changed(before, after, by, wider), before, few)
            for by, wider in ((0.25, 1.0), (0.5, 1.0), (0.0, 1.5), (0.0, 1.5**0.5))
        ]
        found[name] = [wrong, related, *(delay for delay, _ in seen), us]
        if table:
            cells = [f"{wrong:.2f}", f"{related:.2f}", *(_cell(*one) for one in seen), f"{us:.2f}"]
            print(f"{name:20s}", *(f"{cell:>12s}" for cell in cells), flush=True)
    if table:
        head = ("FA .02/10k", "FA .10/10k", ".02 to .05", ".10 to .15", ".10 to .25", "us")
        print(f"\n{'zeros and ones':20s}", *(f"{title:>12s}" for title in head))
    ones: dict[str, list[Any]] = {}
    for name, watch in BOOLEANS.items():
        if not baselines and name.startswith("river"):
            continue
        rare, _ = false_alarms(watch, flips(quiet, 0, 0.02, 0.02), runs)
        wrong, us = false_alarms(watch, flips(quiet, 0, 0.1, 0.1), runs)
        seen = [
            delays(watch, flips(before, after, low, high), before, runs)
            for low, high in ((0.02, 0.05), (0.1, 0.15), (0.1, 0.25))
        ]
        ones[name] = [rare, wrong, *(delay for delay, _ in seen), us]
        if table:
            cells = [f"{rare:.2f}", f"{wrong:.2f}", *(_cell(*one) for one in seen), f"{us:.2f}"]
            print(f"{name:20s}", *(f"{cell:>12s}" for cell in cells), flush=True)
    drift, rate = found["drift"], ones["rate"]
    return {
        "mean_shift_delay": drift[3],
        "variance_delay": drift[4],
        "variance_delay_strict": drift[5],
        "bernoulli_delay": rate[4],
        "false_alarms_per_10k": round(drift[0], 3),
        "bernoulli_false_alarms_per_10k": round(rate[1], 3),
        "prewhitened_ar_false_alarms_per_10k": round(found["drift, prewhitened"][1], 3),
        "us_drift": round(drift[6], 3),
        "us_rate": round(rate[5], 3),
        "runs": runs,
    }
