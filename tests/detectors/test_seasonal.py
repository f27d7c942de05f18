from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from detectors import registry, seasonal
from detectors.checks import CHECKS, Subject
from detectors.seasonal import Seasonal
from detectors.state import StateError, dumps

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
MONDAY_US = 1_767_571_200_000_000  # 5 January 2026


def traffic(
    days: float, *, minutes: int = 30, a_minute: float = 5.0, seed: int = 0, times_us: Any = None, swing: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Events a second by window: a swing of the day and of the weekend, a wander of a tenth, and counts.

    times_us: of (beginning, end, factor), by which traffic is multiplied then.
    """
    rng = np.random.default_rng(seed)
    n = int(days * 1440 / minutes)
    ends = MONDAY_US + (1 + np.arange(n, dtype=np.int64)) * minutes * MINUTE_US
    day = (ends - 1 - MONDAY_US) / DAY_US
    usual = (1.0 + swing * np.sin(2.0 * np.pi * (day - 0.35))) * np.where(day % 7 >= 5, 0.7, 1.0)
    keep = 0.5 ** (minutes / 60)
    wander = np.empty(n)
    level = 0.0
    for i, step in enumerate(rng.normal(size=n) * math.sqrt(1.0 - keep * keep)):
        wander[i] = level = keep * level + step
    mean = a_minute * minutes * usual * np.exp(0.1 * wander)
    for begin, end, factor in times_us or ():
        mean = np.where((ends > begin) & (ends <= end), factor * mean, mean)
    return rng.poisson(mean) / (60.0 * minutes), ends


def alerts(name: str, values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return where an alert would be on: two of three windows over the limit, by half of what was expected."""
    detector = registry.create(name)
    over = detector.score(values, times) >= 1
    for i in np.flatnonzero(over):
        expected = detector.explain(int(i)).expected
        assert expected is not None
        over[i] = abs(values[i] - expected) >= 0.5 * expected
    before = np.r_[False, over[:-1]] | np.r_[False, False, over[:-2]]
    return over & before


NIGHT = MONDAY_US + 9 * DAY_US + 2 * HOUR_US
NOON = MONDAY_US + 9 * DAY_US + 13 * HOUR_US


@pytest.mark.parametrize(("minutes", "a_minute"), [(1, 60.0), (5, 60.0), (30, 5.0), (60, 5.0)])
@pytest.mark.parametrize(("begin", "hour"), [(NIGHT, "night"), (NOON, "day")])
def test_the_same_rise_is_found_by_night_and_by_day(minutes: int, a_minute: float, begin: int, hour: str) -> None:
    for seed in range(3):
        said = [(begin, begin + 3 * HOUR_US, 4.0)]
        values, times = traffic(10, minutes=minutes, a_minute=a_minute, seed=seed, times_us=said)
        found = np.flatnonzero(alerts("seasonal", values, times) & (times > begin))
        assert len(found), hour
        assert times[found[0]] <= begin + 3 * minutes * MINUTE_US


@pytest.mark.parametrize("minutes", [5, 30, 60])
def test_a_rolling_median_misses_it_by_night(minutes: int) -> None:
    said = [(NIGHT, NIGHT + 3 * HOUR_US, 4.0)]
    values, times = traffic(10, minutes=minutes, a_minute=60.0, times_us=said)
    assert not (alerts("robust_z", values, times) & (times > NIGHT)).any()


@pytest.mark.parametrize(("minutes", "a_minute"), [(1, 5.0), (1, 60.0), (5, 60.0), (30, 5.0), (60, 60.0)])
def test_a_month_without_a_fault_is_silent_but_for_the_first_day(minutes: int, a_minute: float) -> None:
    for seed in range(3):
        values, times = traffic(28, minutes=minutes, a_minute=a_minute, seed=seed)
        late = times > MONDAY_US + DAY_US
        assert (alerts("seasonal", values, times) & late).sum() <= (alerts("robust_z", values, times) & late).sum()
        if a_minute > 5.0:
            assert not (alerts("seasonal", values, times) & late).any()


@pytest.mark.parametrize("minutes", [5, 30])
def test_a_level_that_lasts_is_told_of_once_and_comes_to_rest(minutes: int) -> None:
    begin = MONDAY_US + 9 * DAY_US + 9 * HOUR_US
    values, times = traffic(21, minutes=minutes, a_minute=60.0, times_us=[(begin, 1 << 62, 5.0)])
    on = alerts("seasonal", values, times)
    assert on[(times > begin + HOUR_US) & (times < begin + 20 * HOUR_US)].all()
    assert not on[times > begin + 31 * HOUR_US].any()
    spike = begin + 6 * DAY_US + 17 * HOUR_US  # at night; what is usual then was learned before the level changed
    values, times = traffic(
        21, minutes=minutes, a_minute=60.0, times_us=[(begin, 1 << 62, 5.0), (spike, spike + 3 * HOUR_US, 4.0)]
    )
    assert alerts("seasonal", values, times)[(times > spike) & (times < spike + 3 * HOUR_US)].any()


@pytest.mark.parametrize("factor", [6.0, 0.0])
def test_an_incident_of_hours_is_not_expected_the_next_day(factor: float) -> None:
    for days in (3, 7):
        begin = MONDAY_US + days * DAY_US + 10 * HOUR_US
        values, times = traffic(12, a_minute=60.0, times_us=[(begin, begin + 5 * HOUR_US, factor)])
        after = times > begin + 12 * HOUR_US
        assert not (alerts("seasonal", values, times) & after).any()


def test_without_a_season_scores_are_those_of_robust_z_to_the_bit() -> None:
    values, times = traffic(21, minutes=15, swing=0.0)
    values[900] *= 10.0
    flat, plain = registry.create("seasonal"), registry.create("robust_z")
    assert flat.score(values, times).tobytes() == plain.score(values, times).tobytes()
    assert flat.explain(900) == plain.explain(900)


def test_in_the_first_two_days_and_below_zero_too() -> None:
    values, times = traffic(21)
    early = times <= MONDAY_US + 2 * DAY_US
    one = registry.create("seasonal").score(values, times)
    other = registry.create("robust_z").score(values, times)
    assert one[early].tobytes() == other[early].tobytes()
    assert not np.array_equal(one[~early], other[~early])
    values[40] = -1.0
    below = registry.create("seasonal").score(values, times)
    assert below.tobytes() == registry.create("robust_z").score(values, times).tobytes()


def test_a_model_that_idled_at_first_is_learned_too() -> None:
    said = [(0, MONDAY_US + 3 * DAY_US, 0.0), (NIGHT + 4 * DAY_US, 1 << 62, 4.0)]
    values, times = traffic(16, a_minute=60.0, times_us=said)
    assert alerts("seasonal", values, times)[times > NIGHT + 4 * DAY_US][1:4].any()


class Naive:
    """The definition, one sort at a time."""

    def __init__(self) -> None:
        self.day: dict[int, list[float]] = {}
        self.week: dict[int, list[float]] = {}
        self.open: dict[str, Any] = {"day": [None, []], "week": [None, []]}
        self.kept: list[float] = []
        self.past: list[float] = []
        self.far = self.plain_far = 0
        self.level, self.usual, self.shape = 1.0, 0.0, 0.0
        self.errors = [0.0, 0.0, 0.0]
        self.n = {"spread": 0, "judged": 0, "weeks": 0}
        self.mean = {"median": 0.0, "ours": 0.0, "day": 0.0, "week": 0.0}
        self.used = False
        self.last = self.since = 0
        self.run: list[float] = []
        self.run_since, self.run_side = 0, 0
        self.last_week: dict[int, float] = {}
        self.raw: list[float] = []
        self.late, self.sure, self.late_size, self.lates = 0.0, 0.0, 0.0, 0
        self.out, self.soon = 0, 0.0
        self.now = math.nan

    def window(self, kept: list[float], far: int, x: float, *, rel: float, floor: float, size: int) -> Any:
        """Score x among those kept, learn it; return distance, median, scale and the run of far ones."""
        z, median, scale, learned, clip = math.nan, math.nan, math.nan, x, 3.5
        if len(kept) >= 30:
            median = float(np.median(kept))
            deviations = np.abs(np.array(kept) - median)
            scale = 1.4826 * float(np.median(deviations))
            if scale == 0.0:
                scale, clip = 1.2533141373155001 * float(deviations.mean()), 10.0
            scale = max(scale, rel * abs(median), floor)
            z = abs(x - median) / scale
            learned = min(max(x, median - clip * scale), median + clip * scale)
            far = far + 1 if abs(x - median) > max(6.0, clip) * scale else 0
        if far % 4 == 0:
            kept.append(learned)
            del kept[:-size]
        return z, median, scale, far

    def close(self, name: str, key: int, least: float) -> None:
        number, values = self.open[name]
        if number == key:
            return
        if values:
            cycle = 96 if name == "day" else 168
            mean, visits = getattr(self, name).setdefault(number % cycle, [0.0, 0])
            share = max(least, 1.0 / (visits + 1))
            mean = float(np.float32(mean + share * (sum(values) / len(values) - mean)))
            getattr(self, name)[number % cycle] = [mean, visits + 1]
        self.open[name] = [key, []]

    def average(self, old: float, new: float, n: int, days: float) -> float:
        if n > 30 and old > 0.0:
            new = min(new, 6.0 * old)
        return old + max(1.0 / n, days / 7.0) * (new - old)

    def score(self, x: float, time: int) -> float:
        z, before, _, self.plain_far = self.window(self.past, self.plain_far, x, rel=0.01, floor=1e-9, size=300)
        days = min(time - self.last, DAY_US) / DAY_US
        self.last = time
        quarter, hour = time // (15 * MINUTE_US), time // HOUR_US
        if self.open["week"][0] != hour and self.raw:
            self.last_week[self.open["week"][0] % 168] = float(np.float32(sum(self.raw) / len(self.raw)))
            self.raw = []
        self.close("day", quarter, 1 / 7)
        self.close("week", hour, 0.25)
        daily = self.day.get(quarter % 96)
        weekly = self.week.get(hour % 168)
        known = weekly is not None and weekly[1] >= 2
        learned, middle = x, math.nan
        if daily is not None:
            forecast = self.level * (weekly if known and self.mean["week"] < self.mean["day"] else daily)[0]
            if self.n["spread"] == 0:
                self.usual = forecast
            usual = max(self.usual, 1e-9)
            shape = max(forecast / usual, 0.05)
            costs = [e * math.exp(0.5 * k * self.shape) for k, e in enumerate(self.errors)]
            power = costs.index(min(costs))
            unit = usual * shape ** (0.5 * power)
            r = (x - forecast) / unit
            floor = max(0.01, 1e-9 / unit, self.errors[power])
            was, far = list(self.kept), self.far
            own, middle, scale, self.far = self.window(self.kept, self.far, r, rel=0.0, floor=floor, size=150)
            if self.out:
                self.kept, self.far = was, far
            if not math.isnan(middle):
                expected = forecast + middle * unit
                if self.used:
                    z = own
                if not self.out:
                    self.n["judged"] += 1
                    if self.n["judged"] == 1:
                        self.since = time
                    for name, error in (("median", abs(x - before)), ("ours", abs(x - expected))):
                        self.mean[name] = self.average(self.mean[name], error, self.n["judged"], days)
                    if time - self.since >= DAY_US and self.n["judged"] >= 24:
                        share = self.mean["ours"] / self.mean["median"]
                        self.used = share < 0.75 or (self.used and share < 0.9)
                z = self.lasting(x, time, z, (r - middle) / scale, expected, unit * scale, days)
                nearest = min(max(r, middle - 2.0 * scale), middle + 2.0 * scale)
                learned = max(forecast + nearest * unit, 0.0)
            if not self.out:
                self.n["spread"] += 1
                share = max(1.0 / self.n["spread"], days / 7.0)
                self.usual += share * (forecast - self.usual)
                shape = max(forecast / self.usual, 0.05)
                self.shape += share * (math.log(shape) - self.shape)
                for k in range(3):
                    error = abs(x - forecast) / self.usual / shape ** (0.5 * k)
                    self.errors[k] = self.average(self.errors[k], error, self.n["spread"], days)
                if known:
                    self.n["weeks"] += 1
                    for name, (mean, _) in (("day", daily), ("week", weekly)):
                        error = abs(x - self.level * mean)
                        self.mean[name] = self.average(self.mean[name], error, self.n["weeks"], days)
        self.raw.append(x / self.level)
        if self.far % 4 == 0 and not self.out:
            self.open["day"][1].append(learned / self.level)
            self.open["week"][1].append(learned / self.level)
        if not math.isnan(middle):
            side = self.out or (int(np.sign(r - middle)) if abs(r - middle) > 3.0 * scale else 0)
            if side == 0 or side != self.run_side:
                self.run, self.run_since, self.run_side = [], time, side if self.far or self.out else 0
            if self.run_side:
                self.run.append(x / max(expected, 0.05 * self.usual, 1e-9))
            whole = 30 * HOUR_US if self.out else DAY_US
            if self.run_side and time - self.run_since >= whole and len(self.run) >= 8:
                if np.mean(self.run) >= 0.05:
                    self.level *= float(np.mean(self.run))
                    self.usual *= float(np.mean(self.run))
                self.far = self.run_side = self.out = 0
                self.late = self.sure = 0.0
        return z / 6.0

    def lasting(self, x: float, time: int, z: float, r: float, expected: float, scale: float, days: float) -> float:
        """Return the distance of the latest values on average, in limits as of a value, where it is the larger."""
        ago = self.last_week.get(time // HOUR_US % 168)
        weekly = math.nan if ago is None else (x - self.level * ago) / scale
        sure = 0.0
        if weekly * r > 0.0 and 0.05 * x <= expected:
            sure = math.copysign(min(abs(weekly), abs(r)), r)
        self.late += (min(max(r, -4.0), 4.0) - self.late) / 50.0
        sure = min(max(sure, -4.0), 4.0)
        self.sure += (sure - self.sure) / 50.0
        good = time - self.since >= DAY_US and self.mean["ours"] < 1.1 * self.mean["median"]
        good, least = good or self.used, 0.1 * expected / scale
        deviation = math.sqrt(math.pi / 2.0) * self.late_size
        if not self.out and good and self.lates >= 60 and abs(self.sure) > max(4.5 * deviation, least):
            self.out, self.soon = int(np.sign(self.sure)), self.sure
        elif not self.out:
            self.lates += 1
            self.late_size = self.average(self.late_size, abs(self.late), self.lates, days)
        else:
            self.soon += (sure - self.soon) / 8.0
            if self.out * (self.sure - self.soon) > 0.8 and self.out * self.soon < 0.35 * self.out * self.sure:
                self.late, self.sure, self.out = 0.0, 0.0, 0
            elif self.out * self.sure <= max(2.0 * deviation, 0.5 * least):
                self.out = 0
        if self.out:
            self.used, self.since = True, time
        width = max(0.75 * 6.0 * math.sqrt(math.pi / 2.0) * self.late_size, least) * (0.5 if self.out else 1.0)
        known = self.sure != 0.0 and (self.out or good) and self.lates >= 60
        if known and abs(self.sure) >= max(width, z / 6.0 * width):
            return 6.0 * abs(self.sure) / width
        return z


@pytest.mark.parametrize("minutes", [12, 30])
def test_the_compiled_loop_agrees_with_the_definition(minutes: int) -> None:
    begin = MONDAY_US + 11 * DAY_US + 5 * HOUR_US
    changes = [
        (begin, 1 << 62, 5.0),
        (begin + 4 * DAY_US, begin + 4 * DAY_US + 5 * HOUR_US, 6.0),
        (begin + 6 * DAY_US, begin + 6 * DAY_US + 5 * HOUR_US, 0.0),
    ]
    values, times = traffic(28, minutes=minutes, a_minute=8.0, times_us=changes)
    detector = registry.create("seasonal")
    scores = detector.score(values, times)
    naive = Naive()
    defined = [naive.score(*pair) for pair in zip(values, times, strict=True)]
    np.testing.assert_allclose(scores, defined, rtol=1e-12, atol=1e-12)
    assert naive.used
    assert naive.level > 2.0
    assert naive.n["weeks"] > 100


def test_the_compiled_loop_equals_the_plain_one_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    values, times = traffic(17, a_minute=8.0, times_us=[(NIGHT, NIGHT + 30 * HOUR_US, 6.0)])
    outcomes = []
    for again in range(2):
        if again:
            for name in ("_close", "_average", "_forecast", "_unit", "_learn_spread", "_judge", "_level"):
                monkeypatch.setattr(seasonal, name, getattr(seasonal, name).py_func)
            monkeypatch.setattr(seasonal, "score_seasonal", seasonal.score_seasonal.py_func)  # type: ignore[attr-defined]
        detector = registry.create("seasonal")
        outcomes.append((detector.score(values, times).tobytes(), dumps(detector.snapshot())))
    assert outcomes[0] == outcomes[1]


class Traffic(Subject):
    """A subject whose values have a season: what the detector does once it has learned it."""

    def stream(self, n: int, *, salt: int = 0) -> tuple[np.ndarray, np.ndarray]:
        values, times = traffic(n / 48, seed=self.seed + salt)
        for share in (0.4, 0.7, 0.9):
            values[int(n * share) : int(n * share) + 4] *= 8.0
        values[n * 4 // 5 :] *= 6.0
        return values, times


@pytest.mark.parametrize("check", sorted(CHECKS))
def test_the_contract_holds_of_a_season_too(check: str) -> None:
    CHECKS[check](Traffic(factory=lambda: registry.create("seasonal"), kind="value", long=8_000))


def test_the_season_is_what_is_checked() -> None:
    values, times = Traffic(factory=Seasonal, kind="value").stream(1_000)  # type: ignore[arg-type]
    plain = registry.create("robust_z").score(values, times)
    assert (registry.create("seasonal").score(values, times) != plain).sum() > 800


@pytest.mark.parametrize("direction", ["up", "down"])
def test_only_the_asked_direction_alarms(direction: str) -> None:
    said = [(NIGHT, NIGHT + HOUR_US, 6.0), (NOON, NOON + HOUR_US, 0.0)]
    values, times = traffic(10, a_minute=600.0, times_us=said)
    detector = registry.create("seasonal", {"direction": direction}, sensitivity="high")
    over = detector.score(values, times) >= 1
    at, other = (NIGHT, NOON) if direction == "up" else (NOON, NIGHT)
    assert over[(times > at) & (times <= at + HOUR_US)].all()
    assert not over[(times > other) & (times <= other + HOUR_US)].any()


def test_the_band_given_is_where_the_score_becomes_one_and_the_limit_changes_nothing_learned() -> None:
    values, times = traffic(10)
    values[-1] *= 9.0
    detector = registry.create("seasonal")
    detector.score(values, times)
    upper = detector.explain().upper
    assert upper is not None
    values[-1] = upper
    again = registry.create("seasonal", sensitivity="high")
    assert again.score(values, times)[-1] == pytest.approx(1.5)
    more = registry.create("seasonal", {"alpha": 1e-9})
    more.score(values, times)
    assert dumps(again.snapshot()) == dumps(more.snapshot())


def test_what_was_no_anomaly_is_learned_in_full() -> None:
    begin, end = NOON, NOON + 4 * HOUR_US
    daily = [(begin + k * DAY_US, end + k * DAY_US, 4.0) for k in range(4)]
    values, times = traffic(14, a_minute=60.0, times_us=daily)
    first = (times > begin) & (times <= end)
    second = (times > begin + DAY_US) & (times <= end + DAY_US)
    expected = {}
    for told in (False, True):
        detector = registry.create("seasonal")
        assert isinstance(detector, Seasonal)
        detector.score(values[times <= end], times[times <= end])
        for _ in range(5 if told else 0):
            detector.learn_undamped(values[first], times[first])
        later = (times > end) & (times <= end + DAY_US)
        detector.score(values[later], times[later])
        expected[told] = detector.explain(int(np.flatnonzero(second[later])[2])).expected
    assert expected[True] > 1.5 * expected[False]
    with pytest.raises(ValueError, match="finite"):
        detector.learn_undamped(np.array([math.nan]), times[:1])


def test_a_state_is_small_and_one_of_another_detector_is_refused() -> None:
    values, times = traffic(20)
    detector, plain = registry.create("seasonal"), registry.create("robust_z")
    detector.score(values, times)
    plain.score(values, times)
    state = detector.snapshot()
    assert len(dumps(state)) <= len(dumps(plain.snapshot())) + 4_096
    for spoilt in ({}, plain.snapshot(), {**state, "means": np.zeros(5)}, {**state, "residuals": np.zeros(500)}):
        with pytest.raises(StateError, match="seasonal"):
            registry.create("seasonal").restore(spoilt)


def counted(
    days: int, *, a_minute: float, lost: float, begin: int = 0, hours: float = 24, seed: int = 0, kind: str = "counts"
) -> tuple[np.ndarray, np.ndarray]:
    """Events a second by minute: a swing of the day of .6; of them a share is lost for some hours.

    kind: counts, counts of twice the variance, or a rhythm of the week too, of half the traffic for two days of seven.
    """
    rng = np.random.default_rng(seed)
    times = MONDAY_US + np.arange(days * 1440, dtype=np.int64) * MINUTE_US
    day = (times - MONDAY_US) / DAY_US
    mean = a_minute * (1.0 + 0.6 * np.sin(2.0 * np.pi * (day - 0.25)))
    if kind == "week":
        mean *= np.where(day % 7 >= 5, 0.5, 1.0)
    mean[(times >= begin) & (times < begin + int(hours * HOUR_US))] *= 1.0 - lost
    return (rng.negative_binomial(mean, 0.5) if kind == "spread" else rng.poisson(mean)) / 60.0, times


@pytest.mark.parametrize("kind", ["counts", "spread", "week"])
@pytest.mark.parametrize(("a_minute", "lost"), [(60.0, 0.3), (60.0, 0.41), (500.0, 0.2), (500.0, 0.3)])
def test_a_part_of_the_traffic_gone_is_found_within_an_hour_and_held_until_it_is_back(
    kind: str, a_minute: float, lost: float
) -> None:
    begin = MONDAY_US + 15 * DAY_US + 15 * HOUR_US
    for seed in range(3):
        values, times = counted(18, a_minute=a_minute, lost=lost, begin=begin, seed=seed, kind=kind)
        over = registry.create("seasonal").score(values, times) >= 1.0
        during = (times >= begin + HOUR_US) & (times < begin + DAY_US)
        assert over[during].mean() > 0.99
        assert np.diff(np.flatnonzero(over[during])).max() <= 5  # one alert, whatever the hour
        assert not over[times > begin + DAY_US + HOUR_US].any()


@pytest.mark.parametrize("kind", ["counts", "spread", "week"])
@pytest.mark.parametrize("a_minute", [60.0, 500.0])
def test_three_quiet_weeks_alarm_no_more_than_values_by_themselves_do(kind: str, a_minute: float) -> None:
    for seed in range(3):
        values, times = counted(21, a_minute=a_minute, lost=0.0, seed=seed, kind=kind)
        detector = registry.create("seasonal")
        over = np.flatnonzero(detector.score(values, times) >= 1.0)
        assert all(detector.explain(int(i)).now is None for i in over)


def test_what_is_gone_for_good_is_a_new_level_after_a_day() -> None:
    begin = MONDAY_US + 9 * DAY_US + 15 * HOUR_US
    values, times = counted(14, a_minute=60.0, lost=0.4, begin=begin, hours=1000)
    over = registry.create("seasonal").score(values, times) >= 1.0
    assert over[(times >= begin + HOUR_US) & (times < begin + DAY_US)].mean() > 0.99
    assert not over[times > begin + 31 * HOUR_US].any()


def test_evidence_of_a_loss_that_lasts_says_what_it_is_now_beside_the_line_that_alarms() -> None:
    begin = MONDAY_US + 9 * DAY_US + 12 * HOUR_US
    values, times = counted(10, a_minute=60.0, lost=0.3, begin=begin)
    detector = registry.create("seasonal")
    scores = detector.score(values, times)
    at = int(np.flatnonzero(times == begin + 2 * HOUR_US)[0])
    found = detector.explain(at)
    assert found.now is not None
    assert found.expected is not None
    assert found.lower is not None
    assert found.upper is not None
    assert found.now < found.lower < found.expected < found.upper
    assert found.now / found.expected == pytest.approx(0.7, abs=0.06)
    assert scores[at] == pytest.approx((found.expected - found.now) / (found.expected - found.lower))
