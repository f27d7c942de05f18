"""Segments and versions: a fault in one of them is found and named, however many there are and however cut."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigError
from streamproc.events import Alert, RecordBatch
from streamproc.segments import LEAST_EVENTS, VERSION, HeavyHitters, History
from tests.core.make import (
    BEGIN_US,
    SECOND,
    batch,
    check_cut_and_restored,
    config,
    feed,
    pipeline,
    prediction,
    quick,
)

BY_COUNTRY = quick() + "models:\n  - match: {model: fraud}\n    segments: [country]\n"
BY_VERSION = quick() + 'models:\n  - match: {model: fraud}\n    segments: ["model.version"]\n'


@functools.cache
def told(seed: int = 1, *, n: int = 3000, fault: bool = True, countries: int = 4) -> RecordBatch:
    """Return 50 events a second in which, after two thirds, every request from DE fails."""
    rng = np.random.default_rng(seed)
    names = ["DE", "FR", "IT", "US", *(f"x{i}" for i in range(countries - 4))]
    events, stamps = [], []
    for i in range(n):
        at = BEGIN_US + i * SECOND // 50
        country = names[int(rng.integers(4 if rng.random() < 0.7 else len(names)))]
        failing = fault and country == "DE" and i > 2 * n // 3
        answer: dict[str, Any] = {"error": {"type": "timeout"}} if failing else {"prediction": float(rng.normal())}
        event = prediction(at, segment={"country": country}, id=str(i), **answer)
        if failing:
            del event["prediction"]
        events.append(event)
        stamps.append(at)
    return batch(events, stamps_us=stamps)


def of_segments(alerts: list[Alert]) -> set[tuple[str, str]]:
    return {(a.labels["segment"], a.signal) for a in alerts if a.action == "opened" and "segment" in a.labels}


def test_a_fault_in_one_segment_is_found_there_and_nowhere_else() -> None:
    found = of_segments(feed(pipeline(config(BY_COUNTRY)), [told()]))
    assert ("country=DE", "error_rate") in found
    assert {segment for segment, _ in found} == {"country=DE"}


def test_without_a_fault_no_segment_alarms() -> None:
    assert not of_segments(feed(pipeline(config(BY_COUNTRY)), [told(fault=False)]))


def test_an_alert_of_a_segment_says_which_and_is_another_condition_than_the_models() -> None:
    alerts = feed(pipeline(config(BY_COUNTRY)), [told()])
    rates = [a for a in alerts if a.signal == "error_rate" and a.action == "opened"]
    part = next(a for a in rates if a.labels.get("segment") == "country=DE")
    whole = next(a for a in rates if "segment" not in a.labels)
    assert part.fingerprint != whole.fingerprint
    assert part.summary.startswith("fraud (country=DE): error_rate is 1")
    assert part.service == part.labels["model"] == "fraud"
    assert part.name == "fraud country=DE error_rate"


def test_a_feature_may_be_the_dimension_too() -> None:
    events = [prediction(BEGIN_US + i * 20_000, features={"country": "DE", "x": 1.0}) for i in range(200)]
    p = pipeline(config(BY_COUNTRY))
    feed(p, [batch(events)])
    assert list(p.models["fraud"].parts) == ["country=DE"]


def test_a_model_without_segments_keeps_none() -> None:
    p = pipeline(config(quick()))
    feed(p, [told()])
    assert not p.models["fraud"].parts
    assert not p.models["fraud"].common


def test_a_segment_is_watched_for_the_signals_asked() -> None:
    p = pipeline(config(BY_COUNTRY + "    segment_signals: [error_rate]\n"))
    feed(p, [told()])
    assert {signal for part in p.models["fraud"].parts.values() for signal, _ in part.watches} == {"error_rate"}


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("    segments: [country]\n    segment_signals: [eror_rate]\n", "did you mean `error_rate`"),
        ("    segments: [country]\n    segment_signals: [label_share]\n", "one of predictions"),
        ("    segment_signals: [error_rate]\n", "there is no `segments`"),
    ],
)
def test_a_mistake_about_segments_is_named(said: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config("models:\n  - match: {model: fraud}\n" + said)


@settings(max_examples=15, deadline=None)
@given(edges=st.lists(st.integers(1, 2999), max_size=30), at=st.integers(1, 2999))
def test_cutting_and_restoring_anywhere_changes_no_alert_and_no_bit_of_any_segment(edges: list[int], at: int) -> None:
    # Three may be watched of forty-four: some are given up for others on the way.
    book = config(BY_COUNTRY + "    max_segments: 3\n")
    check_cut_and_restored(book, told(3, countries=44), at=at, edges=edges)



def test_of_many_segments_the_commonest_are_watched_and_memory_is_bounded() -> None:
    rng = np.random.default_rng(4)
    names = [f"common{k}" if k < 5 else f"rare{rng.integers(100_000)}" for k in rng.integers(0, 15, 40_000)]
    hitters = HeavyHitters(5)
    for start in range(0, len(names), 1000):
        hitters.take(names[start : start + 1000])
    assert set(hitters.watched) == {f"common{k}" for k in range(5)}
    assert len(hitters.counts) == 20


def test_a_count_is_over_by_at_most_its_error_and_never_under() -> None:
    rng = np.random.default_rng(5)
    names = [f"n{int(k)}" for k in rng.zipf(1.3, 20_000) if k < 500]
    hitters = HeavyHitters(8)
    hitters.take(names)
    truth = Counter(names)
    for name, (count, error) in hitters.counts.items():
        assert count - error <= truth[name]
        if name not in hitters.watched:
            assert truth[name] <= count


def test_what_becomes_commoner_takes_the_place_of_what_became_rare() -> None:
    hitters = HeavyHitters(1)
    hitters.take(["old"] * 100)
    assert list(hitters.watched) == ["old"]
    names, given_up = hitters.take(["new"] * 300)
    assert given_up == [(200, "old")]
    assert list(hitters.watched) == ["new"]
    assert names.index("new") == 200


def test_a_segment_counts_from_its_first_events_only_once_there_are_enough() -> None:
    names, _ = HeavyHitters(10).take(["a"] * 60)
    assert names.count(None) == LEAST_EVENTS - 1


# ------------------------------------------------------------------------------------ versions


def deployed(*, broken: bool, n: int = 3000, share: float = 1.0) -> RecordBatch:
    """Return 50 events a second; after two thirds, version 8 answers a share of them, broken or not."""
    rng = np.random.default_rng(6)
    events, stamps = [], []
    for i in range(n):
        at = BEGIN_US + i * SECOND // 50
        new = i > 2 * n // 3 and rng.random() < share
        value = float(rng.normal(6.0 if new and broken else 0.0))
        event = prediction(at, id=str(i), prediction={"value": value})
        events.append({**event, "model": {"name": "fraud", "version": 8 if new else 7}})
        stamps.append(at)
    return batch(events, stamps_us=stamps)


def test_an_alert_after_a_deployment_says_since_which_version() -> None:
    alerts = feed(pipeline(config(quick())), [deployed(broken=True)])
    found = next(a for a in alerts if a.signal == "prediction_value" and a.action == "opened")
    assert "; since version 8" in found.summary
    assert [(c.what, c.to, c.before) for c in found.changes] == [("version", "8", "7")]
    assert found.labels["model_version"] == "8"


def test_an_alert_without_a_deployment_says_of_none() -> None:
    alerts = feed(pipeline(config(BY_COUNTRY)), [told()])
    assert alerts
    assert not any(a.changes for a in alerts)


def test_a_new_version_is_measured_from_its_first_window_by_what_its_predecessor_taught() -> None:
    book = config(BY_VERSION)
    alerts = feed(pipeline(book), [deployed(broken=True, share=0.3)])
    found = [a for a in alerts if a.labels.get("segment") == f"{VERSION}=8" and a.action == "opened"]
    assert [a.signal for a in found if a.signal == "prediction_value"]
    first = next(a for a in found if a.signal == "prediction_value")
    # It is watched 44 s in; what learned by itself would warm up for 5 windows and take the fault for normal.
    assert first.startsAt < "2026-01-05T09:00:47"
    assert not any(a.labels.get("segment") == f"{VERSION}=7" for a in alerts)


def test_a_new_version_that_answers_as_the_old_raises_nothing() -> None:
    alerts = feed(pipeline(config(BY_VERSION)), [deployed(broken=False, share=0.3)])
    assert not [a for a in alerts if a.signal == "prediction_value"]


def noted(versions: list[str | None], times: list[int], at: list[int]) -> History:
    history = History()
    for start, end in zip([0, *at], [*at, len(versions)], strict=True):
        part = versions[start:end]
        if part:
            codes = np.array([-1 if v is None else int(v) for v in part])
            history.note(part, codes, np.array(times[start:end]))
    return history


@given(data=st.data(), n=st.integers(1, 60))
def test_the_history_of_versions_does_not_depend_on_the_cut(data: Any, n: int) -> None:
    versions = data.draw(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=n, max_size=n))
    gaps = data.draw(st.lists(st.sampled_from([0, 1, 4_000_000_000]), min_size=n, max_size=n))
    times = [int(t) for t in np.cumsum(gaps)]
    at = sorted(data.draw(st.sets(st.integers(1, n), max_size=5)))
    assert noted(versions, times, at).snapshot() == noted(versions, times, []).snapshot()


def test_a_canary_is_one_change_and_a_roll_back_another() -> None:
    hour = 3_600_000_000
    versions: list[str | None] = ["7"] * 5 + ["7", "8"] * 5 + ["8"] * 5 + ["7"]
    times = [i * 1000 for i in range(20)] + [2 * hour]
    history = noted(versions, times, [])
    assert [(c.version, c.before) for c in history.changes] == [("7", None), ("8", "7"), ("7", "8")]
    assert history.near(hour // 2, until_us=hour // 2) == history.changes[1]
    assert history.near(1, until_us=1) is None  # the first version ever seen is no change
