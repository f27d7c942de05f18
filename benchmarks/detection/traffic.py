"""A part of the traffic gone: how soon `seasonal` finds it, whether it holds it, and what quiet weeks cost.

Requests are counted by the minute, of a rhythm of the day of ±60 %. Counts are Poisson's, of twice their variance
(spread), of a rhythm of the week too (two days in seven have half), or of a level that wanders by 7 % for hours
(wander). On the twelfth day, at three in the afternoon, a part is gone for a day. Found: from the first value over the
limit on; held: the share of the rest of the day over it. An alarm begins a quarter of an hour or more after the last
one ended.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from detectors import registry
from detectors.protocol import F64, I64

__all__ = ["run"]

_MONDAY_US = 1_767_571_200_000_000
_DAY = 1440
_BEGINS = 11 * _DAY + 15 * 60
KINDS = ("counts", "spread", "week", "wander")
LOSSES = (0.2, 0.3, 0.41, 0.6)


def counted(rng: np.random.Generator, kind: str, a_minute: float, days: int, lost: float) -> tuple[F64, I64]:
    """Return requests a second by minute, and their times."""
    at = np.arange(days * _DAY)
    mean = a_minute * (1.0 + 0.6 * np.sin(2.0 * np.pi * (at / _DAY - 0.25)))
    if kind == "week":
        mean *= np.where(at // _DAY % 7 >= 5, 0.5, 1.0)
    if kind == "wander":
        level = np.zeros(len(at))
        for i, step in enumerate(rng.normal(size=len(at) - 1) * 0.01):
            level[i + 1] = 0.99 * level[i] + step
        mean *= np.exp(level)
    if lost:
        mean[_BEGINS : _BEGINS + _DAY] *= 1.0 - lost
    counts = rng.negative_binomial(mean, 0.5) if kind == "spread" else rng.poisson(mean)
    return counts / 60.0, (_MONDAY_US + at * 60_000_000).astype(np.int64)


def quiet(detector: str, kind: str, a_minute: float, seeds: int) -> float:
    """Return alarms a series in three weeks of which nothing is wrong."""
    alarms = 0
    for seed in range(seeds):
        values, times = counted(np.random.default_rng(seed), kind, a_minute, 21, 0.0)
        over = np.flatnonzero(registry.create(detector).score(values, times) >= 1.0)
        alarms += int(bool(len(over))) + int((np.diff(over) > 15).sum())
    return alarms / seeds


def found(detector: str, kind: str, a_minute: float, lost: float, seeds: int) -> dict[str, Any]:
    """Return of a loss how often it was found, in minutes at the median and at most, and the least share held."""
    after, held = [], []
    for seed in range(seeds):
        values, times = counted(np.random.default_rng(seed), kind, a_minute, 14, lost)
        over = registry.create(detector).score(values, times)[_BEGINS : _BEGINS + _DAY] >= 1.0
        # A single value that is far out for a minute is no loss held.
        begun = [i for i in np.flatnonzero(over) if over[i : i + 60].mean() > 0.5]
        if begun:
            after.append(int(begun[0]))
            held.append(float(over[begun[0] :].mean()))
    if not after:
        return {"found": 0, "of": seeds}
    return {
        "found": len(after), "of": seeds, "minutes": statistics.median(after), "most": max(after),
        "held": round(min(held), 3),
    }  # fmt: skip


def run(seeds: int = 8) -> dict[str, Any]:
    """Print both tables, and return them."""
    result: dict[str, Any] = {"quiet": {}, "lost": {}}
    print("alarms in three quiet weeks:        seasonal  robust_z")
    for kind in KINDS:
        for a_minute in (5.0, 60.0, 500.0):
            pair = [quiet(name, kind, a_minute, seeds) for name in ("seasonal", "robust_z")]
            print(f"{kind:8s}{a_minute:6.0f} a minute {pair[0]:20.2f}{pair[1]:10.2f}")
            result["quiet"][f"{kind} {a_minute:.0f}"] = pair
    print("a part gone for a day:              found  minutes (median, most)  held")
    for kind in KINDS:
        for a_minute in (5.0, 60.0, 500.0):
            for lost in LOSSES:
                row = found("seasonal", kind, a_minute, lost, seeds)
                last = f"{row['minutes']:8.0f}{row['most']:8d}{row['held']:12.3f}" if row["found"] else ""
                print(f"{kind:8s}{a_minute:6.0f} a minute {lost:5.0%}{row['found']:12d}/{seeds}{last}")
                result["lost"][f"{kind} {a_minute:.0f} {lost:.2f}"] = row
    return result
