from __future__ import annotations

import bisect
import math

import numpy as np
import pytest

from detectors import pattern, registry
from detectors.state import StateError, dumps

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
    """Keeps every block, and looks at the latest 506."""

    def __init__(self, block: int) -> None:
        self.block, self.of, self.open, self.blocks = block, Moments(2000), [], []

    def __call__(self, x: float) -> float:
        if self.of.n == 0:
            self.of.m = x
        self.of.learn(x)
        self.open.append(x)
        if len(self.open) < self.block:
            return 0.0
        self.blocks.append((sum(self.open) / self.block, 0.5 * (max(self.open) - min(self.open))))
        self.open = []
        if len(self.blocks) < 23:
            return 0.0
        stretches = np.lib.stride_tricks.sliding_window_view(np.array(self.blocks[-506:]), 6, axis=0)
        # None shares a block with the latest stretch.
        nearest = float(((stretches[:-6] - stretches[-1]) ** 2).sum(axis=(1, 2)).min())
        return math.sqrt(nearest / 6) / (math.sqrt(self.of.v) + 1e-9) + 1e-6


class Tail:
    """Keeps all of the past."""

    def __init__(self) -> None:
        self.past, self.rarities = [], []

    def __call__(self, x: float) -> tuple[float, float]:
        t, low, high = len(self.past), bisect.bisect_left(self.past, x), bisect.bisect_right(self.past, x)
        self.rarities.append(-math.log10(min(1.0, 2 * min((high + 1) / (t + 2), (t - low + 1) / (t + 2)))))
        self.past.insert(low, x)
        return float(np.mean(self.rarities[-20:])), float(np.mean(self.rarities[-60:]))


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


class Weekly:
    def __init__(self) -> None:
        self.means, self.hour, self.open, self.n, self.day, self.week = {}, None, [], 0, 0.0, 0.0

    def __call__(self, x: float, hour: int, daily: float) -> float:
        if hour != self.hour:
            if self.open:
                count, mean = self.means.get(self.hour % 168, (0, 0.0))
                mean += max(0.25, 1 / (count + 1)) * (sum(self.open) / len(self.open) - mean)
                self.means[self.hour % 168] = count + 1, mean
            self.hour, self.open = hour, []
        self.open.append(x)
        count, mean = self.means.get(hour % 168, (0, 0.0))
        if count < 2:
            return daily
        out = x - mean if self.week < self.day else daily
        a, b = abs(daily), abs(x - mean)
        if self.n > 100:
            a, b = min(a, 6 * self.day), min(b, 6 * self.week)
        share = max(0.002, 1 / (self.n + 1))
        self.day, self.week, self.n = self.day + share * (a - self.day), self.week + share * (b - self.week), self.n + 1
        return out


def naive(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The definition, view by view: their means."""
    day, week, s30, s60, tail, span = Residual(), Weekly(), Spread(30), Spread(60), Tail(), Range()
    of_x, of_r = ([Stretch(block) for block in (1, 5, 12, 30)] for _ in range(2))
    rare = [Rarity(2000) for _ in range(12)]
    out = []
    for t, (x, us) in enumerate(zip(values.tolist(), times.tolist(), strict=True)):
        r = week(x, us // MINUTE_US // 60, day(x, us // MINUTE_US % 1440 * 96 // 1440))
        views = [*(of(x) for of in of_x), *(of(r) for of in of_r), s30(x), s60(r), *tail(x)]
        total = sum(rarity(y, t) for rarity, y in zip(rare, views, strict=True))
        out.append((total + 6 * min(span(x) / 0.082, 1.5)) / 13)
    return np.array(out)


def thinned(raw: np.ndarray, limit: float, hold: int) -> np.ndarray:
    """The definition of what passes: clocks of levels, each of which alarms at most once in `hold` values."""
    levels = [1.5 * 2 ** (k / 4) for k in range(-16, 13)]
    own = max(k for k, level in enumerate(levels) if level <= limit * 1.000001)
    fired = []
    for level in levels:
        marks, free = np.zeros(raw.size, dtype=bool), 0
        for i in np.flatnonzero(raw >= level):
            if i >= free:
                marks[i], free = True, i + hold
        fired.append(marks)
    out = raw / limit
    for i, y in enumerate(raw):
        reached = sum(y >= level for level in levels) - 1
        if reached >= 0 and not fired[min(own, reached)][i]:
            out[i] = 0.5 * y / (y + limit)
    return out


def days(n: int, *, decimals: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    times = np.arange(n) * 5 * MINUTE_US
    return np.round(50 + 20 * np.sin(np.arange(n) / 288 * 2 * np.pi) + rng.normal(0, 3, n), decimals), times


def test_the_loop_agrees_with_the_definition() -> None:
    # In fifths: fewer distinct values than cells, so that ranks are those of the whole past.
    values, times = days(2_500)
    values = np.round(5 * values) / 5
    values[2_000:2_040] += 20.0
    assert np.unique(values).size < 512
    raw = registry.create("pattern", {"limit": 1.5, "warm_up": 1, "hold": 0}).score(values, times) * 1.5
    # Stretches are kept in single precision.
    np.testing.assert_allclose(raw[1:], naive(values, times)[1:], rtol=0, atol=1e-4)


def test_the_week_tells_when_the_day_does_not() -> None:
    # An hour apart for six weeks, with idle weekends.
    times = np.arange(6 * 168) * 60 * MINUTE_US
    hours = np.arange(times.size) % 168
    values = np.round(50 + 20 * np.sin(hours / 24 * 2 * np.pi), 1) * (hours < 120) + (np.arange(times.size) % 7)
    detector = registry.create("pattern", {"limit": 1.5, "warm_up": 1, "hold": 0})
    raw = detector.score(values, times) * 1.5
    np.testing.assert_allclose(raw[1:], naive(values, times)[1:], rtol=0, atol=1e-4)
    saturday = 5 * 168 + 130
    evidence = detector.explain(saturday)
    assert evidence.usual[0] < values[saturday] < evidence.usual[1]
    assert evidence.expected == pytest.approx(3.0, abs=4.0)


def test_compiled_and_plain_loops_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    values, times = days(700)
    values[600:] += 40.0
    found = registry.create("pattern", {"shingles": 50}).score(values, times)
    for name in (
        "score_pattern",
        "_stretch",
        "_passes",
        "_of_day",
        "_of_week",
        "_of_rhythm",
        "_search",
        "_period",
        "_spread",
        "_tail",
        "_rarity",
        "_beyond",
    ):
        monkeypatch.setattr(pattern, name, getattr(pattern, name).py_func)
    plain = registry.create("pattern", {"shingles": 50}).score(values, times)
    np.testing.assert_allclose(found, plain, rtol=1e-6, atol=1e-9)
    assert np.nanmax(found) > 1


def test_ranks_from_the_sketch_are_close_to_those_of_the_whole_past() -> None:
    values = np.random.default_rng(1).standard_t(3, 12_000)
    state, cells, tail = np.zeros(64), np.zeros((2, 512)), Tail()
    found = np.array([pattern._tail(state, cells, x) for x in values])
    # 5 % of a rank is .02 of its logarithm.
    np.testing.assert_allclose(found, [tail(x) for x in values], atol=0.03)
    assert cells[1, : int(state[1])].sum() == pytest.approx(12_000)


def test_an_incident_alarms_once_at_any_sensitivity() -> None:
    values, times = days(3_000)
    values[2_000:2_100] = 300.0
    raw = registry.create("pattern", {"hold": 0, "limit": 1.5}).score(values, times)[100:] * 1.5
    states = []
    for sensitivity in ("low", "medium", "high"):
        detector = registry.create("pattern", sensitivity=sensitivity)
        scores = detector.score(values, times)[100:]
        limit = {"low": 1.5 * 2**0.5, "medium": 1.5, "high": 1.5 * 2**-0.5}[sensitivity]
        np.testing.assert_allclose(scores, thinned(raw, limit, 100), rtol=1e-12)
        loud = np.flatnonzero(scores >= 1)
        assert (raw >= limit).sum() > 3 * loud.size > 0
        assert (np.diff(loud) >= 100).all()
        assert loud[0] == np.flatnonzero(raw >= limit)[0]
        states.append(dumps(detector.snapshot()))
    assert len(set(states)) == 1, "the limit changed what is kept"
    other = registry.create("pattern", {"limit": 0.7})
    other.score(values, times)
    assert dumps(other.snapshot()) == states[0]


@pytest.mark.parametrize("kind", ["normal", "lognormal", "autoregressive", "walk", "counter"])
def test_noise_of_any_kind_alarms_less_than_twice_in_a_thousand(kind: str) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=20_000)
    if kind == "lognormal":
        values = np.exp(1.5 * values)
    elif kind == "autoregressive":
        for i in range(1, values.size):
            values[i] += 0.9 * values[i - 1]
    elif kind == "walk":
        values = np.cumsum(values)
    elif kind == "counter":
        values = 1e9 + np.cumsum(rng.poisson(5.0, values.size))
    scores = registry.create("pattern").score(values, np.arange(values.size) * MINUTE_US)
    assert (scores >= 1).sum() < 40


def test_a_normal_level_at_the_wrong_time_of_day_is_found_and_said() -> None:
    values, times = days(3_000)
    values[2_380:2_420] = values[2_380 - 144 : 2_420 - 144]
    detector = registry.create("pattern", {"hold": 0})
    scores = detector.score(values, times)
    at = 2_380 + int(np.argmax(scores[2_380:2_440]))
    assert scores[at] > 2 * np.quantile(scores[1_000:2_300], 0.99)
    evidence = detector.explain(at)
    assert evidence.note
    assert evidence.expected == pytest.approx(50 + 20 * math.sin(at / 288 * 2 * math.pi), abs=12)
    # Three sigmas of noise of 3 about a mean of few days.
    calm = detector.explain(2_300)
    assert calm.usual[1] - calm.expected == pytest.approx(10, abs=2)
    assert evidence.expected - evidence.usual[0] == pytest.approx(evidence.usual[1] - evidence.expected)
    assert evidence.lower is evidence.upper is None  # a stretch is out, not a value


def test_a_time_of_day_never_seen_has_no_expected_value() -> None:
    values, times = days(151)
    detector = registry.create("pattern")
    detector.score(values, times)
    # The first value of its quarter of an hour.
    evidence = detector.explain()
    assert evidence.expected is evidence.usual is None
    assert evidence.note


def test_a_series_takes_little_memory() -> None:
    values, times = days(20_000)
    detector = registry.create("pattern")
    detector.score(values, times)
    assert len(dumps(detector.snapshot())) < 55_000


def test_another_state_is_refused() -> None:
    detector = registry.create("pattern")
    good = detector.snapshot()
    for spoilt in ({}, {**good, "day": np.zeros(3)}, {**good, "range": np.full(4, np.nan)},
                   {**good, "cells": np.zeros((2, 5))}):  # fmt: skip
        with pytest.raises(StateError):
            detector.restore(spoilt)
    with pytest.raises(StateError):
        registry.create("pattern", {"shingles": 100}).restore(good)
    with pytest.raises(registry.ParameterError, match="shingles"):
        detector.reconfigure(pattern.PatternParams(shingles=60))


def batch_job(seed: int, period: int, step: int, *, skipped: bool) -> tuple[np.ndarray, np.ndarray, slice]:
    """Return ten days of a metric that a job raises for .3 of each period, minutes; once in the eighth it does not run.

    No value of that is new, nor is any for a while before or after.
    """
    rng = np.random.default_rng((seed, period, step))
    minutes = np.arange(0, 10 * 1440, step)
    phase = (minutes + rng.integers(period)) % period
    runs = phase < 0.3 * period
    begins = np.flatnonzero(np.diff(phase, prepend=phase[0]) < 0)
    first = int(begins[minutes[begins] > 7 * 1440][0])
    idle = slice(first, first + int(0.3 * period / step) + 1)
    if skipped:
        runs[idle] = False
    return 10.0 + 8.0 * runs + rng.normal(size=minutes.size), minutes * MINUTE_US, idle


def skipped_found(period: int, step: int) -> int:
    """Return in how many of ten metrics an alarm says that the job did not run, and none where it did."""
    found = 0
    for seed in range(10):
        loud = {}
        for skipped in (False, True):
            values, times, idle = batch_job(seed, period, step, skipped=skipped)
            scores = registry.create("pattern").score(values, times)
            loud[skipped] = bool((scores[idle.start : idle.stop + 20] >= 1.0).any())
        found += loud[True] and not loud[False]
    return found


@pytest.mark.parametrize(
    ("period", "step", "without"), [(95, 1, 8), (95, 5, 6), (360, 1, 10), (360, 5, 10), (420, 1, 0), (660, 1, 0)]
)
def test_a_job_that_does_not_run_at_its_own_time_is_found(
    monkeypatch: pytest.MonkeyPatch, period: int, step: int, without: int
) -> None:
    found = skipped_found(period, step)
    assert found >= 8
    # Six hours divide the day, whose own forecast does as well then.
    if without == 0:
        monkeypatch.setattr(pattern, "_of_rhythm", lambda *given: given[-2:])
        monkeypatch.setattr(pattern, "score_pattern", pattern.score_pattern.py_func)
        assert skipped_found(period, step) == without


def autocorrelated(rng: np.random.Generator, n: int) -> np.ndarray:
    values = rng.normal(size=n)
    for i in range(1, n):
        values[i] += 0.95 * values[i - 1]
    return values


@pytest.mark.parametrize(
    "kind", ["normal", "lognormal", "autocorrelated", "random walk", "trend", "daily", "mostly zero", "constant"]
)
def test_what_has_no_rhythm_but_the_days_is_not_forecast_by_another(kind: str) -> None:
    n = 7 * 1440
    for seed in range(5):
        rng = np.random.default_rng(seed)
        noise, t = rng.normal(size=n), np.arange(n) / 1440
        values = {
            "normal": noise,
            "lognormal": np.exp(noise),
            "autocorrelated": autocorrelated(rng, n),
            "random walk": np.cumsum(noise),
            "trend": 3.0 * t + noise,
            "daily": 5.0 * np.sin(2.0 * np.pi * t) + noise,
            "mostly zero": np.where(rng.random(n) < 0.03, np.abs(noise), 0.0),
            "constant": np.full(n, 3.0),
        }[kind]
        detector = registry.create("pattern")
        for i in range(0, n, 60):
            detector.score(values[i : i + 60], np.arange(i, i + 60) * MINUTE_US)
            state = detector.snapshot()
            used = state["rhythm"][pattern._TESTS] >= pattern._TRIED
            assert not used or state["rhythm"][pattern._OWN] >= pattern._BETTER * state["rhythm"][pattern._THEIRS]


@pytest.mark.parametrize("period", [6.0, 17.3, 47.5, 210.0, 330.0])
def test_a_period_is_found_to_a_hundredth_of_itself(period: float) -> None:
    rng = np.random.default_rng(1)
    values = 3.0 * ((np.arange(1024) / period) % 1.0 < 0.3) + rng.normal(size=1024)
    assert pattern._period(values) == pytest.approx(period, rel=0.01)


def test_a_metric_sampled_otherwise_has_its_rhythm_found_anew() -> None:
    rng = np.random.default_rng(2)
    minutes = np.concatenate((np.arange(0, 4000), np.arange(4000, 20_000, 10)))
    values = 8.0 * (minutes % 170 < 50) + rng.normal(size=minutes.size)
    detector = registry.create("pattern")
    for part, width in ((slice(0, 4000), 2), (slice(4000, None), 10)):
        detector.score(values[part], minutes[part] * MINUTE_US)
        beat = detector.snapshot()["beat"]
        assert beat[pattern._WIDTH] == width * MINUTE_US
        assert beat[pattern._PERIOD] / MINUTE_US == pytest.approx(170.0, rel=0.01)


def test_clocks_that_stand_still_leap_or_go_back_change_nothing_for_good() -> None:
    rng = np.random.default_rng(3)
    minutes = np.arange(6 * 1440)
    values = 8.0 * (minutes % 130 < 40) + rng.normal(size=minutes.size)
    times = minutes * MINUTE_US
    times[2_000:2_200] = times[2_000]
    times[2_500] += 400 * 86_400_000_000
    times[2_600] = -(10**17)
    detector = registry.create("pattern")
    assert np.isfinite(detector.score(values, times)[100:]).all()
    assert detector.snapshot()["beat"][pattern._PERIOD] / MINUTE_US == pytest.approx(130.0, rel=0.01)
