"""Drift, event by event: `drift` and `rate` beside river's detectors, on the same series, in the same run.

Each detector of values sees independent normal values whose mean rises by half a standard deviation, or whose
standard deviation, or only whose variance, grows by half, after --before values; each detector of zeros and ones sees
their rate rise. The delay is the number of values from the change to the first alarm, the changed one counted; the
table has the median and the share missed within --after. False alarms are counted on unchanging series, per 10,000
values past 1,000: an alarm within 500 values of the last is the same alarm, for all alike.

Further tables: a mean that rises by one standard deviation over 1,000 values (delay from where it begins); one that is
up by one for 300 values in 2,000, four times (share of the four that are seen); and 50 features at once, of which 1, 3
or 10 rise by a standard deviation: whether the first to alarm is one of those, the delay until it does, and what
share of all that alarm within --after did not move.

River's detectors run with river's own defaults. Prints tables, then one JSON object. "At equal or fewer false alarms"
is for the reader to see: a detector that alarms more often than ours is quicker at that price.
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
    "drift, independent": ours("drift", {"limit": 1e5, "prewhiten": False}),
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


def gradual(before: int, after: int) -> Callable[[int], F64]:
    def series(seed: int) -> F64:
        values = np.random.default_rng((4, seed)).normal(size=before + after)
        values[before:] += np.minimum(np.arange(after) / 1_000.0, 1.0)
        return values

    return series


_EVERY, _LASTS, _TIMES = 2_000, 300, 4


def recurring_seen(watch: Watch, before: int, runs: int) -> float:
    """Return the share of recurrences during which, or within 50 values after, an alarm began."""
    seen = 0
    for seed in range(runs):
        values = np.random.default_rng((5, seed)).normal(size=before + _TIMES * _EVERY)
        starts = [before + k * _EVERY for k in range(_TIMES)]
        for start in starts:
            values[start : start + _LASTS] += 1.0
        alarms = watch(values, seed)
        # Only an alarm's first value counts: one that has lasted from before the recurrence sees nothing.
        begun = alarms[np.diff(alarms, prepend=-10) > 1]
        seen += sum(bool(((begun >= at) & (begun < at + _LASTS + 50)).any()) for at in starts)
    return seen / (runs * _TIMES)


def many_features(
    watch: Watch, moved: int, before: int, after: int, runs: int, features: int = 50
) -> tuple[float, float, float]:
    """Return the share of runs whose first alarm is of a feature that moved, its median delay, and the share of others.

    The last is the share, among all features that alarm after the change, of those that did not move.
    """
    right, delays, loud, wrong = 0, [], 0, 0
    for seed in range(runs):
        values = np.random.default_rng((6, seed)).normal(size=(features, before + after))
        values[:moved, before:] += 1.0
        firsts = []
        for k in range(features):
            alarms = watch(values[k], 100 * seed + k)
            later = alarms[alarms >= before]
            firsts.append(float(later[0] - before + 1) if len(later) else np.inf)
        right += int(np.argmin(firsts)) < moved and np.isfinite(min(firsts))
        delays.append(min(firsts[:moved]))
        heard = np.flatnonzero(np.isfinite(firsts))
        loud, wrong = loud + len(heard), wrong + int((heard >= moved).sum())
    return right / runs, float(np.median(delays)), wrong / max(loud, 1)


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
    if table:
        print(f"\n{'other changes':20s}", *(f"{title:>16s}" for title in ("gradual, 1 sd", "recurring seen")))
    others: dict[str, dict[str, Any]] = {}
    few = max(1, runs // 5)
    for name, watch in VALUES.items():
        if not baselines and name.startswith("river"):
            continue
        some = max(1, runs // 25) if name in SLOW else few
        delay, missed = delays(watch, gradual(before, after), before, some)
        seen_again = recurring_seen(watch, before, some)
        others[name] = {"gradual_delay": delay, "recurring_seen": round(seen_again, 3)}
        if table:
            print(f"{name:20s} {_cell(delay, missed):>16s} {seen_again:>16.0%}", flush=True)
    if table:
        print(f"\n{'50 features':20s}", *(f"{f'{k} moved':>24s}" for k in (1, 3, 10)))
        print(f"{'':20s}", *(f"{'first right':>12s}{'delay':>6s}{'wrong':>6s}" for _ in range(3)))
    for name, watch in {
        "drift": ours("drift", {"limit": 50 * 1e5}),
        **{name: watch for name, watch in VALUES.items() if name.startswith("river") and baselines},
    }.items():
        if name in SLOW:
            continue
        which = {k: many_features(watch, k, 1_500, 500, max(1, runs // 10)) for k in (1, 3, 10)}
        others.setdefault(name, {})["features"] = {
            str(k): {"first_right": round(a, 3), "delay": b, "wrong_share": round(c, 3)}
            for k, (a, b, c) in which.items()
        }
        if table:
            cells = [f"{a:>12.0%}{b:>6.0f}{c:>6.0%}" for a, b, c in which.values()]
            print(f"{name:20s}", *cells, flush=True)
    drift, rate = found["drift"], ones["rate"]
    return {
        "mean_shift_delay": drift[3],
        "variance_delay": drift[4],
        "variance_delay_strict": drift[5],
        "bernoulli_delay": rate[4],
        "false_alarms_per_10k": round(drift[0], 3),
        "bernoulli_false_alarms_per_10k": round(rate[1], 3),
        "ar_false_alarms_per_10k": round(drift[1], 3),
        "other_changes": others,
        "us_drift": round(drift[6], 3),
        "us_rate": round(rate[5], 3),
        "runs": runs,
    }
