from __future__ import annotations

import numpy as np
import pytest

from detectors import rate, registry
from detectors.state import StateError, dumps

TIMES = np.arange(60_000, dtype=np.int64) * 1_000_000


def flips(before: float, after: float, *, seed: int = 0, n: int = 8000, at: int = 5000) -> np.ndarray:
    chances = np.where(np.arange(n) < at, before, after)
    return (np.random.default_rng(seed).random(n) < chances).astype(float)


def first_alarm(scores: np.ndarray, since: int) -> int:
    loud = np.flatnonzero(scores[since:] >= 1)
    return int(loud[0]) + 1 if len(loud) else 10**9


def test_the_compiled_loop_agrees_with_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    values = flips(0.1, 0.4)
    scores = registry.create("rate").score(values, TIMES[:8000])
    monkeypatch.setattr(rate, "score_rate", rate.score_rate.py_func)  # type: ignore[attr-defined]
    np.testing.assert_allclose(registry.create("rate").score(values, TIMES[:8000]), scores, rtol=1e-9, atol=1e-9)
    assert (scores >= 1).any()


@pytest.mark.parametrize(
    ("before", "after", "within"), [(0.1, 0.25, 80), (0.1, 0.15, 450), (0.02, 0.05, 430), (0.25, 0.1, 120)]
)
def test_a_change_is_seen_within_the_delay_known(before: float, after: float, within: int) -> None:
    delays = [
        first_alarm(registry.create("rate").score(flips(before, after, seed=seed), TIMES[:8000]), 5000)
        for seed in range(100)
    ]
    assert np.median(delays) <= within


@pytest.mark.parametrize("chance", [0.01, 0.1, 0.5, 0.97])
def test_an_unchanging_rate_alarms_less_often_than_the_limit_allows(chance: float) -> None:
    alarms = sum(
        (registry.create("rate").score(flips(chance, chance, seed=s, n=11_000), TIMES[:11_000]) >= 1).any()
        for s in range(100)
    )
    assert alarms <= 60  # 1 in each run of 10,000 is the expectation's bound


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_a_constant_is_silent_for_ever_and_its_end_is_not(constant: float) -> None:
    values = np.full(60_000, constant)
    values[59_000::3] = 1.0 - constant
    scores = registry.create("rate").score(values, TIMES)
    assert not (scores[:59_000] >= 1).any()
    assert (scores[59_000:59_030] >= 1).any()


@pytest.mark.parametrize(("after", "note"), [(0.6, "rate went up"), (0.1, "rate went down")])
def test_evidence_names_the_way_and_the_old_rate(after: float, note: str) -> None:
    detector = registry.create("rate")
    scores = detector.score(flips(0.3, after), TIMES[:8000])
    evidence = detector.explain(4999 + first_alarm(scores, 5000))
    assert evidence.note == note
    assert evidence.expected == pytest.approx(0.3, abs=0.03)
    assert (evidence.lower, evidence.upper) == (None, None)  # no line that a zero or a one crosses
    assert evidence.usual is not None
    assert evidence.usual[0] < 0.3 < evidence.usual[1]
    assert evidence.now is not None
    assert evidence.now == pytest.approx(after, abs=0.2)
    assert (evidence.now - 0.3) * evidence.side > 0.0
    assert detector.explain(1500) == rate.Evidence()


def test_the_limit_changes_no_learned_state_and_a_new_rate_becomes_normal() -> None:
    values = flips(0.1, 0.4)
    states = set()
    for limit in (10.0, 1e4, 1e9):
        detector = registry.create("rate", {"limit": limit})
        scores = detector.score(values, TIMES[:8000])
        states.add(dumps(detector.snapshot()))
    assert len(states) == 1
    assert (scores[5000:5300] >= 1).any()
    assert not (scores[6500:] >= 1).any()


def test_a_state_is_small_and_one_of_another_detector_is_refused() -> None:
    detector = registry.create("rate")
    state = detector.snapshot()
    assert len(dumps(state)) < 500
    for spoilt in ({}, {**state, "clock": 3}, {**state, "bets": np.zeros(5)}):
        with pytest.raises(StateError, match="rate"):
            detector.restore(spoilt)


def test_a_change_within_the_effect_is_none_and_one_beyond_it_is() -> None:
    small, large = flips(0.10, 0.115, n=60_000, at=20_000), flips(0.10, 0.25, n=21_000, at=20_000)
    plain, coarse = (registry.create("rate", {"limit": 1e6, "effect": effect}) for effect in (0.0, 0.02))
    assert (plain.score(small, TIMES) >= 1).any()
    assert not (coarse.score(small, TIMES) >= 1).any()
    assert first_alarm(registry.create("rate", {"effect": 0.02}).score(large, TIMES[:21_000]), 20_000) <= 150
    certain = registry.create("rate", {"effect": 0.9})  # no rate can be so much higher or lower
    assert not (certain.score(large, TIMES[:21_000]) >= 1).any()


def test_evidence_of_a_rate_well_known_rests_below_three_quarters_of_the_limit() -> None:
    detector = registry.create("rate", {"limit": 1e5, "effect": 0.02})
    scores = detector.score(flips(0.15, 0.15, n=60_000), TIMES)[30_000:]
    assert 0.3 < np.median(scores) < 0.6
    assert (scores >= 0.75).mean() < 0.01
