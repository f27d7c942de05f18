from __future__ import annotations

import bisect
import math

import numpy as np
import pytest

from detectors import pattern, registry
from detectors.state import StateError

MINUTE_US = 60_000_000


class Moments:
    """Mean and variance, exponentially weighted."""

    def __init__(self, half_life: float) -> None:
        self.m, self.v, self.n, self.least = 0.0, 0.0, 0, 1 - 0.5 ** (1 / half_life)

    def learn(self, y: float) -> None:
        b, d = max(self.least, 1 / (self.n + 1)), y - self.m
        self.v, self.m, self.n = (1 - b) * (self.v + b * d * d), self.m + b * d, self.n + 1

    def z(self, y: float) -> float:
        return (y - self.m) / (math.sqrt(self.v) + 1e-9)


class Rarity(Moments):
    def __call__(self, y: float, t: int) -> float:
        if y <= 0:
            return 0.0
        out, z = 0.0, self.z(y)
        if t >= 100 and self.n > 10 and z > 0:
            out = min(8.0, -math.log10(max(0.5 * math.erfc(min(z, 25.0) / 1.41421356), 1e-30)))
        self.learn(y)
        return out


class Spread:
    def __init__(self, w: int) -> None:
        self.w, self.past, self.bins, self.of = w, np.full(12, 1 / 12), [], Moments(1000)

    def __call__(self, x: float) -> float:
        w, t = self.w, self.of.n
        if t == 0:
            self.of.m = x
        self.bins.append(int((min(3.5, max(-3.5, self.of.z(x))) + 3.5) / 7 * (12 - 1e-6)))
        out = 0.0
        if t >= w:
            leaving = self.bins.pop(0)
            b = max(1 - 0.5 ** (1 / 1500), 1 / (t - w + 2))
            self.past = self.past * (1 - b)
            self.past[leaving] += b
            if t > 2 * w:
                p = np.bincount(self.bins, minlength=12) / w
                both = zip(p, self.past, strict=True)
                out = float(sum(q * math.log(q / (0.98 * h + 0.02 / 12)) for q, h in both if q))
        self.of.learn(x)
        return out


class Range:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self, x: float) -> float:
        if self.n == 0:
            self.m = self.high = self.low = x
        beyond = max(x - self.high, self.low - x, 0.0) if self.n > 20 else 0.0
        out = min(10.0, beyond / (self.high - self.low + 1e-9))
        self.m += max(0.001, 1 / (self.n + 1)) * (x - self.m)
        keep = 0.5 ** (1 / 3000)
        self.high, self.low = max(x, self.m + (self.high - self.m) * keep), min(x, self.m + (self.low - self.m) * keep)
        self.n += 1
        return out


class Stretch:
    """Keeps every stretch, and looks at the latest 500."""

    def __init__(self, block: int, w: int, excluded: int, *, ratio: bool) -> None:
        self.block, self.w, self.excluded, self.ratio = block, w, excluded, ratio
        self.of, self.open, self.blocks, self.kept = Moments(2000), [], [], []

    def __call__(self, x: float) -> float:
        if self.of.n == 0:
            self.of.m = x
        self.of.learn(x)
        self.open.append(x)
        if len(self.open) < self.block:
            return 0.0
        self.blocks.append((sum(self.open) / self.block, 0.5 * (max(self.open) - min(self.open))))
        self.open = []
        if len(self.blocks) < self.w:
            return 0.0
        g = np.array(self.blocks[-self.w :]).T.ravel()
        out = nearest = 0.0
        if len(self.kept) > self.excluded + 10 + self.ratio:
            among = self.kept[-500 : -self.excluded]
            far = [float(((h - g) ** 2).sum()) for h, _ in among]
            j = int(np.argmin(far))
            nearest = math.sqrt(far[j] / self.w) / (math.sqrt(self.of.v) + 1e-9)
            out = ((nearest + 0.02) / (among[j][1] + 0.05) if self.ratio else nearest) + 1e-6
        self.kept.append((g, nearest))
        return out


class Tail:
    """Keeps all of the past."""

    def __init__(self) -> None:
        self.past, self.rarities = [], []

    def __call__(self, x: float) -> float:
        t, low, high = len(self.past), bisect.bisect_left(self.past, x), bisect.bisect_right(self.past, x)
        self.rarities.append(-math.log10(min(1.0, 2 * min((high + 1) / (t + 2), (t - low + 1) / (t + 2)))))
        self.past.insert(low, x)
        return float(np.mean(self.rarities[-20:]))


class Residual:
    def __init__(self) -> None:
        self.mean, self.count, self.v, self.n = [0.0] * 96, [0] * 96, 0.0, 0

    def __call__(self, x: float, k: int) -> float:
        if not self.count[k]:
            self.mean[k], self.count[k] = x, 1
            return 0.0
        out = e = x - self.mean[k]
        if self.n > 100:
            sigma = math.sqrt(self.v) + 1e-9
            e = min(4 * sigma, max(-4 * sigma, e))
        self.v += max(0.002, 1 / (self.n + 1)) * (e * e - self.v)
        self.n += 1
        self.count[k] += 1
        self.mean[k] += max(0.25, 1 / self.count[k]) * e
        return out


def naive(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The definition, view by view."""
    day, s120, s30, s60, tail = Residual(), Spread(120), Spread(30), Spread(60), Tail()
    range_x, range_r = Range(), Range()
    fast, middle = Stretch(1, 6, 10, ratio=True), Stretch(5, 5, 10, ratio=False)
    slow, rare = Stretch(30, 6, 6, ratio=False), [Rarity(2000) for _ in range(4)]
    out = []
    for t, (x, us) in enumerate(zip(values.tolist(), times.tolist(), strict=True)):
        r = day(x, us // MINUTE_US % 1440 * 96 // 1440)
        limited = [(s120(x), 4.4), (s30(x), 4.4), (range_x(x), 0.082), (range_r(r), 0.14), (fast(r), 26.0)]
        says = [6 * min(y / c, 1.5) for y, c in limited]
        says += [rare[0](tail(x), t), rare[1](middle(r), t), rare[2](s60(r), t), rare[3](slow(x), t)]
        out.append(sum(says) / 9)
    return np.array(out)


def days(n: int, *, decimals: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    times = np.arange(n) * 5 * MINUTE_US
    return np.round(50 + 20 * np.sin(np.arange(n) / 288 * 2 * np.pi) + rng.normal(0, 3, n), decimals), times


def test_the_loop_agrees_with_the_definition() -> None:
    # One decimal: fewer distinct values than cells, so that ranks are those of the whole past.
    values, times = days(2_500, decimals=1)
    values[2_000:2_040] += 30.0
    assert np.unique(values).size < 1000
    scores = registry.create("pattern", {"limit": 1.0, "warm_up": 1}).score(values, times)
    np.testing.assert_allclose(scores[1:], naive(values, times)[1:], rtol=0, atol=1e-12)


def test_ranks_from_the_sketch_are_close_to_those_of_the_whole_past() -> None:
    values = np.random.default_rng(1).standard_t(3, 12_000)
    state, cells, tail = np.zeros(23), np.zeros((2, 1024)), Tail()
    found = np.array([pattern._tail(state, cells, x) for x in values])
    # 5 % of a rank is .02 of its logarithm.
    np.testing.assert_allclose(found, [tail(x) for x in values], atol=0.03)
    assert cells[1, : int(state[1])].sum() == pytest.approx(12_000)


def test_at_most_one_alarm_while_held() -> None:
    values, times = days(3_000)
    values[2_000:2_100] = 300.0
    free = registry.create("pattern").score(values, times)
    held = registry.create("pattern", {"hold": 99}).score(values, times)
    loud = np.flatnonzero(held >= 1)
    assert (free >= 1).sum() > loud.size > 0
    assert (np.diff(loud) >= 100).all()
    np.testing.assert_array_equal(held[free < 1], free[free < 1])
    assert loud[0] == np.flatnonzero(free >= 1)[0]


def test_a_normal_level_at_the_wrong_time_of_day_is_found_and_said() -> None:
    values, times = days(3_000)
    values[2_380:2_420] = values[2_380 - 144 : 2_420 - 144]
    detector = registry.create("pattern")
    scores = detector.score(values, times)
    at = 2_380 + int(np.argmax(scores[2_380:2_440]))
    assert scores[at] > 2 * np.quantile(scores[1_000:2_300], 0.99)
    evidence = detector.explain(at)
    assert evidence.note
    assert evidence.expected == pytest.approx(50 + 20 * math.sin(at / 288 * 2 * math.pi), abs=12)


def test_another_state_is_refused() -> None:
    detector = registry.create("pattern")
    good = detector.snapshot()
    for spoilt in ({}, {**good, "day": np.zeros(3)}, {**good, "ranges": np.full((2, 4), np.nan)},
                   {**good, "cells": np.zeros((2, 5))}):  # fmt: skip
        with pytest.raises(StateError):
            detector.restore(spoilt)
    with pytest.raises(StateError):
        registry.create("pattern", {"shingles": 100}).restore(good)
    with pytest.raises(registry.ParameterError, match="shingles"):
        detector.reconfigure(pattern.PatternParams(shingles=60))
