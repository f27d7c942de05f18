from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors import drift, registry, whiten
from detectors.state import StateError, dumps, loads

TIMES = np.arange(60_000, dtype=np.int64) * 1_000_000


def series(n: int = 6000, *, seed: int = 1, at: int = 3000, by: float = 0.0, wider: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=n)
    values[at:] = values[at:] * wider + by
    return 100.0 + 5.0 * values


def first_alarm(scores: np.ndarray, since: int = 0) -> int:
    loud = np.flatnonzero(scores[since:] >= 1)
    return int(loud[0]) + 1 if len(loud) else 10**9


@pytest.mark.parametrize("prewhiten", [False, True])
def test_the_compiled_loop_agrees_with_plain_python(monkeypatch: pytest.MonkeyPatch, prewhiten: bool) -> None:
    values = series(1500, at=800, by=1.5)
    compiled = registry.create("drift", {"prewhiten": prewhiten, "reference": 200})
    scores = compiled.score(values, TIMES[:1500])
    for module, names in (
        (whiten, ("_transformed", "_untransformed", "whiten_one", "unwhiten", "_start", "_run", "begin_whitening")),
        (drift, ("uniform", "_bin_of", "_place", "_bet", "_leading", "_quantile", "score_drift")),
    ):
        for name in names:
            plain_function = getattr(module, name).py_func
            monkeypatch.setattr(module, name, plain_function)
            if hasattr(drift, name):
                monkeypatch.setattr(drift, name, plain_function)
    plain = registry.create("drift", {"prewhiten": prewhiten, "reference": 200})
    with np.errstate(over="ignore"):  # the generator's products are meant to wrap
        expected = plain.score(values, TIMES[:1500])
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
    assert (scores >= 1).any()
    at = int(np.flatnonzero(scores >= 1)[0])
    assert plain.explain(at).note == compiled.explain(at).note


def test_the_numbers_drawn_are_splitmix64s_and_uniform() -> None:
    # The first outputs for seed 1234567, as published with the reference implementation.
    draws = np.array([1234567, 0], dtype=np.uint64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(drift.uniform(draws) * 2**52) for _ in range(3)] == [number >> 12 for number in published]
    numbers = np.array([drift.uniform(draws) for _ in range(20_000)])
    assert 0 < numbers.min() < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.003


@pytest.mark.parametrize(
    ("change", "within"), [({"by": 0.5}, 90), ({"by": -0.5}, 95), ({"wider": 1.5}, 85), ({"wider": 0.6}, 65)]
)
@pytest.mark.parametrize("prewhiten", [False, True])
def test_a_change_is_seen_within_the_delay_known(change: dict[str, float], within: int, prewhiten: bool) -> None:
    # A thousand values a second: no rhythm of the day is to be had from three seconds.
    delays = [
        first_alarm(
            registry.create("drift", {"prewhiten": prewhiten}, seed=seed).score(
                series(5000, seed=seed, **change), TIMES[:5000] // 1000
            ),
            3000,
        )
        for seed in range(60)
    ]
    assert np.median(delays) <= within


def test_an_unchanging_series_alarms_less_often_than_the_limit_allows() -> None:
    rng = np.random.default_rng(5)
    for values in (rng.normal(size=(40, 10_500)), rng.lognormal(size=(40, 10_500))):
        runs = [
            registry.create("drift", seed=k).score(row, TIMES[:10_500]).copy() for k, row in enumerate(values)
        ]
        assert sum(np.nanmax(scores) >= 1 for scores in runs) <= 10  # 4 is the expectation's bound


def test_prewhitening_keeps_an_autocorrelated_series_quiet_and_still_sees_a_shift() -> None:
    quiet, without, seen = 0, 0, []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=8000)
        values = np.zeros(8000)
        for i in range(1, 8000):
            values[i] = 0.5 * values[i - 1] + noise[i]
        without += (registry.create("drift", {"prewhiten": False}, seed=seed).score(values, TIMES[:8000]) >= 1).any()
        quiet += (registry.create("drift", seed=seed).score(values, TIMES[:8000]) >= 1).any()
        values[6000:] += 1.5
        scores = registry.create("drift", seed=seed).score(values, TIMES[:8000])
        seen.append(first_alarm(scores, 6000))
    assert quiet <= 2 < without
    assert np.median(seen) < 120


MINUTES = np.arange(7 * 1440, dtype=np.int64) * 60_000_000


@pytest.mark.parametrize("kind", ["seasonal", "throughput", "latency", "trending", "sparse"])
def test_a_daily_rhythm_is_no_drift_from_the_first_morning_on_and_a_shift_in_it_is(kind: str) -> None:
    alarms, seen = 0, []
    for seed in range(15):
        rng = np.random.default_rng((8, seed))
        wave = np.sin(2 * np.pi * np.arange(MINUTES.size) / 1440 + rng.uniform(0, 6.28))
        values, sd = {
            "seasonal": (2.0 * wave + rng.normal(size=MINUTES.size), 1.0),
            "throughput": (rng.poisson(50.0 * (1.0 + 0.5 * wave)).astype(float), 7.0),
            "latency": (np.exp(0.4 * wave + 0.3 * rng.normal(size=MINUTES.size)), 0.3),
            "trending": (np.arange(MINUTES.size) / 1440 * rng.uniform(-1, 1) + rng.normal(size=MINUTES.size), 1.0),
            "sparse": ((rng.random(MINUTES.size) < 0.05) * rng.exponential(size=MINUTES.size), 1.0),
        }[kind]
        alarms += (registry.create("drift", seed=seed).score(values, MINUTES) >= 1).any()
        values[6000:] += np.round(sd) if kind == "throughput" else sd
        seen.append(first_alarm(registry.create("drift", seed=seed).score(values, MINUTES), 6000))
    assert alarms <= 4  # 15 x 10,080 values at a limit of 1e5: 1.5 is the expectation's bound
    assert np.median(seen) < 60


def test_a_rhythm_whose_trough_is_far_below_the_reference_is_learned() -> None:
    # The reference is the flat top of the day: the trough is ten of its scales below, and once counted as ten.
    rng = np.random.default_rng(8)
    times = np.arange(7 * 1440, dtype=np.int64) * 60_000_000
    mean = 180.0 * (1.0 + 0.72 * np.sin(2.0 * np.pi * times / 86_400_000_000 + 0.6))
    for seed in range(3):
        scores = registry.create("drift", {"limit": 288_000.0}, seed=seed).score(
            rng.poisson(mean).astype(np.float64), times
        )
        assert not (scores >= 1.0).any()


def test_a_constant_that_changes_for_good_is_a_drift() -> None:
    values = np.full(MINUTES.size, 3.25)
    values[5000:] += 1e-3
    scores = registry.create("drift").score(values, MINUTES)
    assert not (scores[:5000] >= 1).any()
    assert (scores[5000:5010] >= 1).any()


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"by": 1.0}, "drifted up"),
        ({"by": -1.0}, "drifted down"),
        ({"wider": 2.0}, "spread wider"),
        ({"wider": 0.4}, "drew together"),
    ],
)
@pytest.mark.parametrize("prewhiten", [False, True])
def test_evidence_names_what_moved_and_gives_the_old_normal(
    change: dict[str, float], note: str, prewhiten: bool
) -> None:
    detector = registry.create("drift", {"prewhiten": prewhiten})
    scores = detector.score(series(**change), TIMES[:6000] // 1000)
    evidence = detector.explain(2999 + first_alarm(scores, 3000))
    assert evidence.note == note
    assert evidence.expected == pytest.approx(100.0, abs=1.5)
    assert (evidence.lower, evidence.upper) == (None, None)  # no line that a value crosses
    assert evidence.usual == pytest.approx((90.2, 109.8), abs=3.0)
    assert evidence.now is not None
    assert evidence.late is not None
    assert evidence.now - 100.0 == pytest.approx(5.0 * change.get("by", 0.0), abs=2.5 * change.get("wider", 1.0))
    spread = (evidence.late[1] - evidence.late[0]) / 19.6
    assert np.sign(spread - 1.0) == np.sign(change.get("wider", spread) - 1.0)
    assert detector.explain(100) == drift.Evidence()


def test_an_alarm_lasts_then_the_new_level_is_normal_and_a_further_move_is_seen() -> None:
    values = series(12_000, by=1.0)
    values[8000:] += 5.0
    loud = registry.create("drift").score(values, TIMES[:12_000]) >= 1
    lasting = np.flatnonzero(loud[3000:8000])
    assert lasting[0] < 60
    assert 10 < len(lasting) < 300
    assert loud[8000:8100].any()


def test_the_limit_and_the_sensitivity_change_no_learned_state() -> None:
    values = series(8000, by=1.0)
    states = set()
    for params, sensitivity in (({}, "low"), ({}, "high"), ({"limit": 10.0}, "medium"), ({"limit": 1e9}, "low")):
        detector = registry.create("drift", params, sensitivity=sensitivity)  # type: ignore[arg-type]
        detector.score(values, TIMES[:8000])
        states.add(dumps(detector.snapshot()))
    assert len(states) == 1


def test_a_snapshot_taken_while_a_new_reference_is_gathered_goes_on_to_the_bit() -> None:
    values = series(8000, by=1.0)
    whole = registry.create("drift").score(values, TIMES[:8000])
    for stop in (3300, 3500, 3700):
        one, other = registry.create("drift"), registry.create("drift", seed=9)
        one.score(values[:stop], TIMES[:stop])
        other.restore(loads(dumps(one.snapshot())))
        assert other.score(values[stop:], TIMES[stop:8000]).tobytes() == whole[stop:].tobytes()


def test_few_distinct_values_do_not_alarm() -> None:
    values = np.random.default_rng(3).integers(0, 3, 20_000).astype(float)
    assert not (registry.create("drift").score(values, TIMES[:20_000]) >= 1).any()


def test_a_snapshot_and_an_instance_are_small() -> None:
    detector: Any = registry.create("drift")
    detector.score(series(), TIMES[:6000])
    assert len(dumps(detector.snapshot())) < 4_200
    filter_ = detector._whitener
    kept = [value for name, value in vars(detector).items() if name not in ("_scores", "_why")]
    kept += [getattr(filter_, name) for name in filter_.__slots__]
    assert sum(value.nbytes for value in kept if isinstance(value, np.ndarray)) < 4_600


def test_a_state_of_another_detector_is_refused() -> None:
    detector = registry.create("drift")
    state = detector.snapshot()
    for spoilt in ({}, {**state, "clock": 3}, {**state, "first": None}, {**state, "draws": np.zeros(5)}):
        with pytest.raises(StateError, match="drift"):
            detector.restore(spoilt)


def test_a_rise_by_night_is_told_as_a_rise_beside_what_was_foreseen_though_days_are_higher() -> None:
    rng = np.random.default_rng(5)
    wave = np.sin(2.0 * np.pi * np.arange(6000) / 1440.0)
    values = 100.0 + 40.0 * wave + rng.normal(size=6000) * 2.0
    values[5300:] += 8.0  # a trough
    detector = registry.create("drift")
    scores = detector.score(values, np.arange(6000, dtype=np.int64) * 60_000_000)
    found = np.flatnonzero(scores[5300:5600] >= 1)
    assert len(found)
    evidence = detector.explain(5300 + int(found[0]))
    assert evidence.note == "drifted up"
    assert evidence.now is not None
    assert evidence.expected is not None
    assert 0.0 < evidence.now - evidence.expected < 20.0


def test_a_state_from_before_values_of_late_is_taken_up() -> None:
    detector = registry.create("drift")
    detector.score(series(by=1.0)[:2000], TIMES[:2000])
    state = detector.snapshot()
    del state["late"]
    registry.create("drift").restore(state)
