from __future__ import annotations

import numpy as np
import pytest

from detectors import registry, robust_z
from detectors.tail import TAIL

TIMES = np.arange(10_000, dtype=np.int64)


def naive(values: np.ndarray, *, window: int, warm_up: int = 30, rel_floor: float = 0.01) -> np.ndarray:
    """The definition, one sort at a time."""
    kept: list[float] = []
    scores = []
    far = 0
    for x in values:
        score, learned, clip = np.nan, x, 3.5
        if len(kept) >= warm_up:
            past = np.array(kept)
            median = np.median(past)
            deviations = np.abs(past - median)
            scale = 1.4826 * np.median(deviations)
            if scale == 0.0:
                scale, clip = 1.2533141373155001 * deviations.mean(), 10.0
            scale = max(scale, rel_floor * abs(median), 1e-9)
            score = abs(x - median) / scale / 6.0
            learned = np.clip(x, median - clip * scale, median + clip * scale)
            far = far + 1 if abs(x - median) > max(6.0, clip) * scale else 0
        scores.append(score)
        if far % 4 != 0:
            continue
        kept = [*kept, learned][-window:]
    return np.array(scores)


@pytest.mark.parametrize("window", [30, 31, 64])
@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_the_compiled_window_agrees_with_sorting_it_each_time(window: int, decimals: int) -> None:
    values = np.random.default_rng(window).normal(5.0, 3.0, 800).round(decimals)
    values[300:380] = 4.0
    values[500:520] += 100.0
    scores = registry.create("robust_z", {"window": window}).score(values, TIMES[:800])
    np.testing.assert_allclose(scores, naive(values, window=window), rtol=1e-12)


def test_the_compiled_loop_equals_the_plain_one_to_the_bit() -> None:
    values = np.random.default_rng(2).normal(size=400)
    outcomes = []
    for loop in (robust_z.score_robust_z, robust_z.score_robust_z.py_func):  # type: ignore[attr-defined]
        place, out = np.zeros(3, dtype=np.int64), np.empty((3, 400))
        loop(values, np.zeros(50), np.zeros(50), place, np.zeros(TAIL), 30, 0, 6.0, 1e-4, 0.01, 1e-9, True, *out)
        outcomes.append(out.tobytes())
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("level", [1e-6, 1.0, 250.0, -1e9])
def test_a_jitter_after_a_constant_stretch_is_silent(level: float) -> None:
    values = np.full(600, level)
    values[400:] *= 1.0 + 1e-3 * np.random.default_rng(0).normal(size=200)
    assert not (registry.create("robust_z", sensitivity="high").score(values, TIMES[:600]) >= 1).any()


def test_a_jump_after_a_constant_stretch_alarms() -> None:
    values = np.r_[np.full(400, 50.0), 100.0]
    assert registry.create("robust_z").score(values, TIMES[:401])[-1] >= 1


def test_a_counter_that_is_mostly_zero_is_judged_by_its_other_values() -> None:
    values = np.where(np.arange(600) % 5 == 0, 3.0, 0.0)
    values[-1] = 40.0
    scores = registry.create("robust_z").score(values, TIMES[:600])
    assert not (scores[:-1] >= 1).any()
    assert scores[-1] >= 1


def test_a_level_shift_alarms_for_a_while_and_then_becomes_normal() -> None:
    rng = np.random.default_rng(3)
    values = np.r_[rng.normal(100.0, 2.0, 1000), rng.normal(200.0, 2.0, 3000)]
    loud = registry.create("robust_z").score(values, TIMES[:4000]) >= 1
    assert loud[1000:1500].all()
    assert not loud[2800:].any()


def test_an_incident_soon_after_the_start_does_not_become_normal_while_it_lasts() -> None:
    rng = np.random.default_rng(6)
    values = np.r_[rng.normal(100.0, 2.0, 40), rng.normal(200.0, 2.0, 60), rng.normal(100.0, 2.0, 40)]
    loud = registry.create("robust_z").score(values, TIMES[:140]) >= 1
    assert loud[40:100].all()
    assert not loud[105:].any()


def test_only_the_asked_direction_alarms() -> None:
    values = np.r_[np.random.default_rng(4).normal(100.0, 2.0, 400), 300.0, -300.0]
    up = registry.create("robust_z", {"direction": "up"})
    assert list(up.score(values, TIMES[:402])[-2:] >= 1) == [True, False]
    assert up.explain(-2).lower is None
    down = registry.create("robust_z", {"direction": "down"})
    assert list(down.score(values, TIMES[:402])[-2:] >= 1) == [False, True]


def test_the_band_given_is_where_the_score_becomes_one() -> None:
    values = np.random.default_rng(5).normal(100.0, 2.0, 400)
    detector = registry.create("robust_z")
    detector.score(np.r_[values, 150.0], TIMES[:401])
    upper = detector.explain().upper
    assert upper is not None
    again = registry.create("robust_z")
    again.score(values, TIMES[:400])
    assert again.score(np.array([upper]), TIMES[400:401])[0] == pytest.approx(1.0)
