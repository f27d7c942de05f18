"""Limits and silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors import registry
from detectors.checks import check_detector

SECOND = 1_000_000


def limits(value: float, **params: float) -> float:
    return float(registry.create("limits", params).score(np.array([value]), np.zeros(1, dtype=np.int64))[0])


def test_a_value_on_its_limit_is_inside() -> None:
    assert limits(10.0, upper=10.0) < 1
    assert limits(0.0, lower=0.0, upper=10.0) < 1


@pytest.mark.parametrize(("value", "score"), [(5.0, 0.0), (9.0, 0.8), (11.0, 1.1), (-10.0, 2.0)])
def test_the_score_between_two_bounds_is_by_their_width(value: float, score: float) -> None:
    assert limits(value, lower=0.0, upper=10.0) == pytest.approx(score)


def test_the_score_grows_towards_and_beyond_a_single_bound() -> None:
    scores = [limits(x, upper=100.0) for x in (-1e9, 0.0, 90.0, 100.0, 100.1, 150.0, 1e300)]
    assert scores == sorted(scores)
    assert scores[3] < 1 < scores[4]
    assert limits(-1.0, lower=0.0) == pytest.approx(2.0)


def test_silence_needs_no_warm_up_when_told_its_timeout_and_keeps_the_contract() -> None:
    check_detector(lambda: registry.create("silence", {"timeout_s": 40.0}), kind="value")


def test_silence_scores_the_arrival_that_ends_it() -> None:
    silence: Any = registry.create("silence", {"timeout_s": 10.0})
    scores = silence.score(np.zeros(4), np.array([0, 5, 30, 31]) * SECOND)
    assert scores.tolist() == [0.0, 0.5, 2.5, 0.1]
    assert silence.explain(2).note == "nothing for 25 s, timeout 10 s"


def test_silence_is_overdue_exactly_from_its_deadline_on() -> None:
    silence: Any = registry.create("silence", {"timeout_s": 10.0})
    assert silence.deadline_us() is None
    assert silence.overdue(10**15) == 0.0
    silence.score(np.zeros(1), np.array([100 * SECOND]))
    assert silence.deadline_us() == 110 * SECOND
    assert silence.overdue(110 * SECOND) == 1.0
    assert silence.overdue(110 * SECOND - 1) < 1.0
    assert silence.overdue(50 * SECOND) == 0.0


def test_a_learned_timeout_follows_the_pace_of_the_stream() -> None:
    rng = np.random.default_rng(0)
    for pace in (0.5, 60.0):
        silence: Any = registry.create("silence")
        times = np.cumsum(rng.exponential(pace * SECOND, 5000)).astype(np.int64)
        scores = silence.score(np.zeros(5000), times)
        assert np.isnan(scores[:200]).all()
        assert not (scores >= 1).any()
        assert 3 * 4 * pace < silence.timeout_s() < 3 * 14 * pace
        assert silence.overdue(int(times[-1]) + int(60 * pace * SECOND)) > 1


def test_a_stream_as_regular_as_a_clock_gets_the_least_timeout() -> None:
    silence: Any = registry.create("silence", {"min_timeout_s": 5.0})
    silence.score(np.zeros(500), np.arange(500) * SECOND)
    assert silence.timeout_s() == 5.0


def test_one_outage_hardly_moves_the_learned_timeout() -> None:
    silence: Any = registry.create("silence")
    silence.score(np.zeros(3000), np.arange(3000) * 10 * SECOND)
    before = silence.timeout_s()
    silence.score(np.zeros(1), np.array([3000 * 10 * SECOND + 86_400 * SECOND]))
    assert silence.timeout_s() == before
