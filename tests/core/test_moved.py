"""What an alert says of where a value was, where it is, and where it came to rest is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from detectors import registry
from detectors.protocol import F64, I64
from streamproc.events import Alert, Feedback
from streamproc.rules import RuleBook
from streamproc.telling import Subject
from streamproc.watch import Basis, Watch
from tests.core.make import config

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
MONDAY_US = 1_767_571_200_000_000
SUBJECT = Subject("t", 0, "m")


def watch(signal: str, detector: str | None = None, said: str = "") -> Watch:
    text = f"defaults: {{signals: {{{signal}: {said}}}}}" if said else "defaults: {}"
    rules = RuleBook(config(text)).for_model("predictions", "m").of(signal)
    return Watch(next(r for r in rules if detector in (None, r.detector)))


def run(watched: Watch, values: F64, times: I64, *, cut: int = 0) -> list[Alert]:
    """Observe values one by one as windows, or many at a time as events; cut: by snapshots, so many at a time."""
    offsets = np.arange(len(values), dtype=np.int64)
    out: list[Alert] = []
    step = cut or len(values)
    for i in range(0, len(values), step):
        own = slice(i, i + step)
        out += watched.observe(SUBJECT, values[own], times[own], offsets[own], basis=Basis(n=60))
        if cut:
            out += watched.expire(SUBJECT, int(times[own][-1]))
            state = watched.snapshot()
            watched = Watch(watched.rule)
            watched.restore(state)
    return [*out, *watched.expire(SUBJECT, int(times[-1]) + HOUR_US)]


def scores_of_events(*, back: int | None = None, by: float = 1.0) -> tuple[F64, I64]:
    """Answers of a mean of .48 that rise, one a second."""
    values = np.random.default_rng(3).normal(0.48, 0.1, 9000)
    values[3000:back] += 0.14 * by
    return values, MONDAY_US + np.arange(9000, dtype=np.int64) * 1_000_000


def told(alerts: list[Alert], action: str) -> Alert:
    return next(a for a in alerts if a.action == action)


@pytest.mark.parametrize(("by", "way"), [(1.0, "up"), (-1.0, "down")])
def test_a_drift_says_which_way_it_went_and_where_it_is_and_was(by: float, way: str) -> None:
    values, times = scores_of_events(by=by)
    opened = told(run(watch("prediction_value", "drift"), values, times), "opened")
    said = rf"m: prediction_value drifted {way}: it is about (\S+) of late and was (\S+) \((\S+) to (\S+)\)"
    found = re.fullmatch(said, opened.summary)
    assert found, opened.summary
    now, was, least, most = map(float, found.groups())
    assert now == pytest.approx(0.48 + 0.14 * by, abs=0.06)
    assert was == pytest.approx(0.48, abs=0.02)
    assert (least, most) == pytest.approx((0.28, 0.68), abs=0.05)
    assert opened.expected is not None
    assert (opened.expected.lower, opened.expected.upper) == (None, None)  # no line is crossed by a value
    assert opened.effect == pytest.approx(now - was, abs=0.01)


def test_a_drift_that_stays_is_settled_and_not_normal_again() -> None:
    values, times = scores_of_events()
    alerts = run(watch("prediction_value", "drift"), values, times)
    resolved = told(alerts, "resolved")
    found = re.search(r"no longer changes; it has settled at (\S+) \(was (\S+)\) after", resolved.summary)
    assert found, resolved.summary
    assert [float(x) for x in found.groups()] == pytest.approx([0.62, 0.48], abs=0.06)
    assert "normal" not in resolved.summary


def test_a_drift_that_is_gone_is_back_to_normal() -> None:
    watched = watch("prediction_value", "drift")
    values, times = scores_of_events(back=3060)
    alerts = run(watched, values, times)
    assert "is back to normal" in told(alerts, "resolved").summary


def test_a_spread_that_changed_is_not_said_to_be_at_a_level_nor_normal() -> None:
    rng = np.random.default_rng(3)
    times = MONDAY_US + np.arange(9000, dtype=np.int64) * 1_000_000
    values = rng.normal(0.48, 0.05, 9000)
    values[3000:] = rng.normal(0.48, 0.15, 6000)
    alerts = run(watch("prediction_value", "drift"), values, times)
    found = re.search(r"spread wider: it is about (\S+) to (\S+) of late and was (\S+) to (\S+)$", alerts[0].summary)
    assert found, alerts[0].summary
    least, most, low, high = map(float, found.groups())
    assert least < low < high < most
    assert "no longer stands out" in told(alerts, "resolved").summary


def test_a_level_that_a_rolling_window_has_learned_is_settled_and_one_that_is_left_is_normal() -> None:
    rng = np.random.default_rng(1)
    times = MONDAY_US + np.arange(3000, dtype=np.int64) * MINUTE_US
    values = rng.normal(0.2, 0.005, 3000)
    values[400:] += 0.3
    stays = told(run(watch("latency_p95"), values, times), "resolved").summary
    found = re.search(r"settled at ([\d.]+) ms \(was ([\d.]+) ms\)", stays)
    assert found, stays
    assert [float(x) for x in found.groups()] == pytest.approx([500.0, 200.0], abs=5.0)
    values[460:] -= 0.3
    assert "is back to normal" in told(run(watch("latency_p95"), values, times), "resolved").summary


def counts(days: int, begin_h: float, hours: float, lost: float) -> tuple[F64, I64]:
    times = MONDAY_US + np.arange(days * 1440, dtype=np.int64) * MINUTE_US
    hour = (times - MONDAY_US) / HOUR_US
    mean = 60.0 * (1.0 + 0.6 * np.sin(2.0 * np.pi * (hour / 24.0 - 0.25)))
    mean[(hour >= begin_h) & (hour < begin_h + hours)] *= 1.0 - lost
    return np.random.default_rng(0).poisson(mean) / 60.0, times


BEGIN_H = 9 * 24 + 15


@pytest.mark.parametrize("lost", [0.3, 0.41])
def test_a_part_of_the_traffic_gone_for_a_day_is_one_alert_until_it_is_back(lost: float) -> None:
    values, times = counts(12, BEGIN_H, 24, lost)
    alerts = run(watch("throughput"), values, times, cut=1)
    assert [a.action for a in alerts if a.action in ("opened", "resolved")] == ["opened", "resolved"]
    opened, resolved = told(alerts, "opened"), told(alerts, "resolved")
    assert opened.lastReceived < f"2026-01-14T{15 + 1}:00:00Z"
    assert "2026-01-15T15:00" <= resolved.lastReceived < "2026-01-15T16:00"
    assert "is back to normal" in resolved.summary
    assert opened.expected is not None
    assert opened.expected.value is not None
    assert opened.expected.lower is not None
    found = re.search(r"is about (\S+) 1/s of late, usual is (\S+) 1/s, the limit (\S+) 1/s", opened.summary)
    if found:  # found by the mean of the latest, not by a single value far out
        now, usual, limit = map(float, found.groups())
        assert now < limit < usual


def test_traffic_that_is_gone_for_good_is_settled_at_a_new_level_after_a_day() -> None:
    values, times = counts(13, BEGIN_H, 1000, 0.41)
    alerts = run(watch("throughput"), values, times, cut=1)
    assert [a.action for a in alerts if a.action in ("opened", "resolved")] == ["opened", "resolved"]
    resolved = told(alerts, "resolved")
    assert "2026-01-15T18" < resolved.lastReceived < "2026-01-16T03"
    found = re.search(r"settled at a new level: (\S+) 1/s \(was (\S+) 1/s\)", resolved.summary)
    assert found, resolved.summary
    now, was = map(float, found.groups())
    assert now / was == pytest.approx(0.59, abs=0.15)  # at the same hour of the day


def test_how_it_ended_is_the_same_wherever_the_stream_is_cut() -> None:
    values, times = scores_of_events()
    whole = run(watch("prediction_value", "drift"), values, times)
    parts = run(watch("prediction_value", "drift"), values, times, cut=7)
    assert [a.summary for a in parts] == [a.summary for a in whole]


def _bands() -> Iterator[Any]:
    rng = np.random.default_rng(2)
    noise = rng.normal(100.0, 5.0, 500)
    for name in ("robust_z", "spike", "seasonal"):
        yield pytest.param(name, noise, id=name)


@pytest.mark.parametrize(("name", "values"), list(_bands()))
def test_a_band_that_is_shown_is_where_the_score_reaches_one(name: str, values: F64) -> None:
    times = MONDAY_US + np.arange(len(values), dtype=np.int64) * MINUTE_US
    for edge in ("lower", "upper"):
        detector = registry.create(name)
        values = values.copy()
        values[-1] = 1e6
        detector.score(values, times)
        line = getattr(detector.explain(), edge)
        for by, over in ((-1e-6, edge == "lower"), (1e-6, edge == "upper")):
            values[-1] = line + by
            assert (registry.create(name).score(values, times)[-1] >= 1.0) == over


def test_the_band_is_the_line_that_alarms_after_an_operator_has_moved_it_too() -> None:
    rng = np.random.default_rng(4)
    times = MONDAY_US + np.arange(2000, dtype=np.int64) * MINUTE_US
    values = rng.normal(0.2, 0.005, 2000)
    values[[400, 401, 402, 403, 404]] = 0.3
    values[1500:1520] = 1.0
    watched = watch("latency_p95", said="{direction: both}")
    offsets = np.arange(2000, dtype=np.int64)
    opened = watched.observe(SUBJECT, values[:410], times[:410], offsets[:410])[0]
    assert opened.expected is not None
    watched.feedback(SUBJECT, Feedback(opened.fingerprint, "NOT_ANOMALY"), 1, int(times[409]))
    later = told(watched.observe(SUBJECT, values[410:], times[410:], offsets[410:]), "opened")
    assert later.expected is not None
    assert later.expected.upper is not None
    assert later.expected.value is not None
    assert later.value is not None
    reach = (later.value - later.expected.value) / (later.expected.upper - later.expected.value)
    assert later.score == pytest.approx(reach)
