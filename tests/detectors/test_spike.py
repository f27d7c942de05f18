from __future__ import annotations

import math

import numpy as np
import pytest

from detectors import registry, spike
from detectors.state import StateError
from detectors.tail import TAIL

TIMES = np.arange(10_000, dtype=np.int64)


def naive(values: np.ndarray, *, rel_floor: float = 0.01) -> np.ndarray:
    """The definition, one memory after the other."""
    zs = []
    for half_life in (50, 400):
        m, v, z = values[0], 0.0, np.full(len(values), np.nan)
        for n, x in enumerate(values):
            b = max(1 - 2 ** (-1 / half_life), 1 / (n + 1))
            d, sigma = x - m, max(math.sqrt(v), rel_floor * abs(m), 1e-9)
            if n >= 5:
                z[n] = min(abs(d) / sigma, 50.0)
            step, spread = d, d
            if n >= 30:
                step, spread = np.clip(d, -3.5 * sigma, 3.5 * sigma), np.clip(d, -10 * sigma, 10 * sigma)
            v, m = (1 - b) * (v + b * spread**2), m + b * step
        zs.append(z)
    return np.minimum(*zs)


def test_the_loop_agrees_with_the_definition() -> None:
    values = np.random.default_rng(0).standard_t(2, 1500) * 3 + 50
    values[700:760] += 100.0
    scores = registry.create("spike").score(values, TIMES[:1500])
    np.testing.assert_allclose(scores, naive(values) / 6.0, rtol=1e-9)


def test_the_compiled_loop_equals_the_plain_one_to_the_bit() -> None:
    values = np.random.default_rng(2).normal(size=400)
    values[200] = 1e200
    outcomes = []
    for loop in (spike.score_spike, spike.score_spike.py_func):  # type: ignore[attr-defined]
        state, tail, out = np.zeros(5), np.zeros(TAIL), [np.empty(400), np.empty(400), np.empty((2, 400))]
        loop(values, state, tail, 50.0, 400.0, 5, 30, 0, 6.0, 1e-4, 0.01, 1e-9, *out)
        outcomes.append((*(part.tobytes() for part in (*out, state, tail)),))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("level", [1e-6, 1.0, 250.0, -1e9])
def test_a_jitter_after_a_constant_stretch_is_silent(level: float) -> None:
    values = np.full(600, level)
    values[400:] *= 1.0 + 1e-3 * np.random.default_rng(0).normal(size=200)
    assert not (registry.create("spike", sensitivity="high").score(values, TIMES[:600]) >= 1).any()


def test_a_jump_after_a_constant_stretch_alarms() -> None:
    values = np.r_[np.full(400, 50.0), 100.0]
    assert registry.create("spike").score(values, TIMES[:401])[-1] >= 1


def test_what_either_memory_explains_is_no_spike() -> None:
    rng = np.random.default_rng(3)
    # A swing far outside the last 50 values that the last 400 have seen.
    values = np.where(np.arange(1000) % 400 < 200, 100.0, 200.0) + rng.normal(0, 1, 1000)
    assert not (registry.create("spike").score(values, TIMES[:1000])[210:] >= 1).any()


def test_a_spike_does_not_hide_the_next() -> None:
    values = np.random.default_rng(4).normal(100.0, 2.0, 600)
    values[[400, 420, 440]] = 200.0
    assert list(np.flatnonzero(registry.create("spike").score(values, TIMES[:600]) >= 1)) == [400, 420, 440]


def test_a_new_level_becomes_normal() -> None:
    rng = np.random.default_rng(5)
    values = np.r_[rng.normal(100.0, 2.0, 1000), rng.normal(200.0, 2.0, 1000)]
    loud = registry.create("spike").score(values, TIMES[:2000]) >= 1
    assert loud[1000]
    assert not loud[1300:].any()


def test_one_extreme_value_is_forgotten() -> None:
    values = np.random.default_rng(6).normal(100.0, 2.0, 1000)
    values[300], values[700] = 1e300, 130.0
    scores = registry.create("spike").score(values, TIMES[:1000])
    assert scores[300] == pytest.approx(100.0 / 6.0)
    assert list(np.flatnonzero(scores >= 1)) == [300, 700]


def test_only_the_asked_direction_alarms() -> None:
    values = np.r_[np.random.default_rng(4).normal(100.0, 2.0, 400), 300.0, -300.0]
    up = registry.create("spike", {"direction": "up"})
    assert list(up.score(values, TIMES[:402])[-2:] >= 1) == [True, False]
    assert up.explain(-2).lower is None
    down = registry.create("spike", {"direction": "down"})
    assert list(down.score(values, TIMES[:402])[-2:] >= 1) == [False, True]


@pytest.mark.parametrize("x", [150.0, 20.0])
def test_a_value_that_alarms_is_outside_the_band_given(x: float) -> None:
    values = np.random.default_rng(5).normal(100.0, 2.0, 400)
    detector = registry.create("spike")
    score = detector.score(np.r_[values, x], TIMES[:401])[-1]
    evidence = detector.explain()
    assert evidence.lower is not None
    assert evidence.upper is not None
    assert evidence.expected is not None
    assert score == pytest.approx(abs(x - evidence.expected) / (evidence.upper - evidence.expected))
    assert score >= 1
    assert not evidence.lower < x < evidence.upper


@pytest.mark.parametrize("memories", [None, np.zeros(4), np.full(5, np.nan), [0.0] * 5])
def test_another_state_is_refused(memories: object) -> None:
    with pytest.raises(StateError):
        registry.create("spike").restore({"memories": memories})


def test_a_slow_memory_shorter_than_the_fast_is_refused() -> None:
    with pytest.raises(registry.ParameterError, match="slow = 10"):
        registry.create("spike", {"slow": 10.0})
