from __future__ import annotations

import math

import numpy as np
import pytest

from detectors import calibrate
from detectors.calibrate import WARM_UP, Calibrator

LAWS = {
    "exponential": lambda rng, n: rng.exponential(size=n),
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 1.5, size=n),
    "student": lambda rng, n: np.abs(rng.standard_t(3, size=n)),
    "uniform": lambda rng, n: rng.uniform(size=n),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("alpha", [1e-2, 1e-3])
def test_scores_of_one_come_as_often_as_alpha_says(law: str, alpha: float) -> None:
    raw = LAWS[law](np.random.default_rng(1), 100_000)
    rate = (Calibrator(alpha=alpha).score(raw)[5000:] >= 1).mean()
    assert 0.5 * alpha < rate < 1.3 * alpha


def test_the_tail_kept_is_within_the_promised_share_of_the_exact_one() -> None:
    raw = np.random.default_rng(2).lognormal(size=calibrate.HALF_LIFE - 10)
    calibrator = Calibrator(alpha=1e-3)
    for value in raw:
        calibrate.learn_one(calibrator.sketch, value, 1.0)
    for quantile in (0.5, 0.9, 0.99, 0.999, 0.9999):
        at = np.quantile(raw, quantile)
        exact = (raw >= at).sum()
        kept = calibrate.tail_of(calibrator.sketch, at)
        assert exact <= kept <= 1.2 * exact + 1


def test_a_constant_raw_score_is_silent() -> None:
    for constant in (0.0, 1.0, -7.5, 1e300):
        scores = Calibrator(alpha=1e-2).score(np.full(2000, constant))
        assert np.isnan(scores[:WARM_UP]).all()
        assert (scores[WARM_UP:] == 0.0).all()


def test_severity_grows_beyond_all_that_was_seen() -> None:
    past = np.random.default_rng(3).exponential(size=5000)
    severities = []
    for raw in (15.0, 20.0, 40.0, 1e3, 1e9, 1e300):
        calibrator = Calibrator(alpha=1e-3)
        calibrator.score(past)
        severities.append(float(calibrator.score(np.array([raw]))[0]))
    assert severities == sorted(set(severities))
    assert math.isfinite(severities[-1])


def test_an_incident_does_not_become_normal_in_its_first_minutes() -> None:
    rng = np.random.default_rng(4)
    raw = np.r_[rng.normal(size=10_000), rng.normal(12.0, 0.1, size=100)]
    assert (Calibrator(alpha=1e-3).score(raw)[10_000:] >= 1).sum() >= 60


def test_memory_does_not_grow() -> None:
    calibrator = Calibrator(alpha=1e-3)
    size = calibrator.sketch.nbytes
    calibrator.score(np.random.default_rng(5).standard_cauchy(size=50_000))
    assert calibrator.sketch.nbytes == size < 5000


def test_the_compiled_loop_equals_the_plain_one() -> None:
    raw = np.random.default_rng(6).exponential(size=600)
    compiled, plain = np.empty(600), np.empty(600)
    calibrate.calibrate(calibrate.new_sketch(), raw, math.log(1e-3), 1e-9, compiled)
    sketch = calibrate.new_sketch()
    for i, value in enumerate(raw):
        plain[i] = calibrate.calibrate_one.py_func(sketch, value, math.log(1e-3), 1e-9)  # type: ignore[attr-defined]
    np.testing.assert_allclose(compiled, plain, rtol=1e-14)
