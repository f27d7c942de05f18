from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from river import anomaly, drift, neighbors
from scipy import stats

from detectors import registry, river_adapter, river_compiled
from detectors.river_compiled import KSWIN, LocalOutlierFactor, critical_count, p_value


def words_of(seed: int) -> np.ndarray:
    return np.array(random.Random(seed).getstate()[1], dtype=np.uint32)


def seeded(seed: int) -> np.ndarray:
    words = np.zeros(625, dtype=np.uint32)
    key = KSWIN(alpha=0.1, window_size=4, stat_size=2, seed=seed)._key
    river_compiled.seed_words(key, words)
    return words


@pytest.mark.parametrize("seed", [0, 1, -7, 2**32 - 1, 2**32, 2**64 + 12345, 2**700 + 3])
def test_a_generator_is_seeded_and_draws_as_pythons(seed: int) -> None:
    words = seeded(seed)
    assert np.array_equal(words, words_of(seed))
    theirs = random.Random(seed)
    for bits in [1, 5, 17, 31, 32] * 300:
        assert river_compiled.draw_bits(words, bits) == theirs.getrandbits(bits)
    assert np.array_equal(words, np.array(theirs.getstate()[1], dtype=np.uint32))


@pytest.mark.parametrize(
    ("n", "k"),
    [(70, 30), (2, 2), (30, 30), (1, 1), (277, 30), (278, 30), (5000, 30), (22, 5), (21, 5), (22, 4), (99, 6)],
)
def test_a_sample_is_pythons(n: int, k: int) -> None:
    words, theirs = seeded(3), random.Random(3)
    work, out = np.zeros(n, dtype=np.int64), np.empty(k, dtype=np.int64)
    for _ in range(100):
        river_compiled.draw_sample(words, river_compiled._is_pooled(n, k), work, out)
        assert out.tolist() == theirs.sample(range(n), k)
        assert not work.any()


@pytest.mark.parametrize("n", [*range(2, 41), 100, 777])
def test_p_values_are_scipys_to_the_bit(n: int) -> None:
    for count in range(n + 1) if n < 41 else range(0, n + 1, 37):
        found = stats.ks_2samp(np.arange(n), np.arange(n) + count, method="auto")
        assert p_value(n, count) == found.pvalue
        assert found.statistic == count / n


@pytest.mark.parametrize("n", [10_000, 10_001, 30_000])
def test_large_samples_have_scipys_critical_count(n: int) -> None:
    count = critical_count(n, 0.005)
    assert stats.ks_2samp(np.arange(n), np.arange(n) + count).pvalue <= 0.005
    assert stats.ks_2samp(np.arange(n), np.arange(n) + count - 1).pvalue > 0.005


def test_the_statistic_is_scipys_with_ties_too() -> None:
    rng = np.random.default_rng(5)
    for trial in range(500):
        n = int(rng.integers(2, 60))
        one, other = rng.normal(size=(2, n))
        if trial % 2:
            one, other = np.trunc(one), np.trunc(other)  # zeros of both signs among them
        expected = stats.ks_2samp(one, other, method="auto").statistic
        assert river_compiled._statistic(np.sort(one), np.sort(other)) == expected


def test_the_statistic_of_a_large_sample_is_the_float_that_scipy_has() -> None:
    rng = np.random.default_rng(6)
    one, other = rng.normal(size=(2, 10_010))
    expected = stats.ks_2samp(one, other).statistic
    assert river_compiled._statistic(np.sort(one), np.sort(other)) == expected
    # a tenth, in floats: a little more or less, which is what river compares
    moved = np.arange(10_010.0)
    expected = stats.ks_2samp(moved, moved + 1001).statistic
    assert river_compiled._statistic(moved, moved + 1001) == expected


def stream(kind: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    match kind:
        case "shifts":
            return rng.normal(size=n) + (np.arange(n) // 400 % 3) * 1.5
        case "still":
            return rng.standard_t(2, size=n)
        case "constant":
            return np.full(n, 3.0)
        case "ties":
            return np.floor(rng.normal(size=n) * 1.5 + np.arange(n) // 700)
        case "zeros":
            return np.where(rng.random(n) < 0.5, -0.0, 0.0) + (np.arange(n) > 900) * (rng.random(n) < 0.4)
        case _:
            return rng.normal(size=n).cumsum()


@pytest.mark.parametrize("kind", ["shifts", "still", "constant", "ties", "zeros", "walk"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"alpha": 0.05, "window_size": 60, "stat_size": 30},
        {"alpha": 0.2, "window_size": 10, "stat_size": 3},
        {"alpha": 0.01, "window_size": 700, "stat_size": 25},
        {"alpha": 0.001, "window_size": 200, "stat_size": 70},
        {"alpha": 0.9, "window_size": 4, "stat_size": 2},
    ],
)
def test_drifts_are_rivers(kind: str, params: dict[str, Any]) -> None:
    values = stream(kind, 1500, 7)
    theirs = drift.KSWIN(seed=11, **params)
    expected = np.zeros(values.size)
    for i, x in enumerate(values.tolist()):
        theirs.update(x)
        expected[i] = theirs.drift_detected
    detector: Any = registry.create("kswin", params, seed=11)
    scores = detector.score(values, np.arange(values.size))
    lead = params.get("window_size", 100) - 1
    assert np.isnan(scores[:lead]).all()
    assert np.array_equal(scores[lead:], expected[lead:])
    assert expected.any() or kind in ("constant", "still", "zeros", "ties")
    if not theirs.drift_detected:
        state = detector.snapshot()["river"]
        assert state["window"].tolist() == list(theirs.window)
        if state["words"] is not None:
            assert tuple(state["words"].tolist()) == theirs._rng.getstate()[1]


def rows_of(kind: str, n: int, columns: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, columns))
    match kind:
        case "shift":
            rows[n // 2 :] += 2.0
            rows[n // 3] = 15.0
        case "constant":
            rows[:] = 2.5
        case "ties":
            rows = np.floor(rows)
        case "doubles":
            rows = rows[rng.integers(0, max(2, n // 20), n)]
        case "runs":
            rows = np.repeat(rows[: n // 7 + 1], 7, axis=0)[:n]
    return rows


@pytest.mark.parametrize("kind", ["shift", "normal", "constant", "ties", "doubles", "runs"])
@pytest.mark.parametrize(("columns", "k", "window"), [(10, 10, 60), (1, 3, 20), (3, 1, 4), (2, 5, 6), (4, 12, 40)])
def test_raw_scores_are_rivers(kind: str, columns: int, k: int, window: int) -> None:
    rows = rows_of(kind, 300, columns, 13)
    theirs = anomaly.LocalOutlierFactor(k, engine=neighbors.LazySearch(window_size=window))
    expected = []
    for row in rows.tolist():
        x = {f"{j:05d}": value for j, value in enumerate(row)}
        expected.append(theirs.score_one(x))
        theirs.learn_one(x)
    ours = LocalOutlierFactor(n_neighbors=k, window_size=window, columns=columns)
    raw = np.concatenate([ours.feed(part) for part in np.array_split(rows, 9)])
    if sys.version_info < (3, 12):
        assert raw.tobytes() == np.array(expected).tobytes()
    else:  # its sum compensates
        np.testing.assert_allclose(raw, expected, rtol=1e-12)


def test_the_detectors_raw_scores_are_rivers_of_standardised_rows() -> None:
    rows = rows_of("shift", 400, 3, 17) * [1.0, 100.0, 1e-4]
    detector: Any = registry.create("local_outlier_factor", {"window_size": 50, "n_neighbors": 4}, columns=3)
    detector.score(rows, np.arange(400))
    scaled = np.empty_like(rows)
    river_adapter.standardise(rows, np.zeros((3, 3)), scaled)
    theirs = anomaly.LocalOutlierFactor(4, engine=neighbors.LazySearch(window_size=50))
    expected = []
    for row in scaled.tolist():
        expected.append(theirs.score_one(dict(enumerate(row))))
        theirs.learn_one(dict(enumerate(row)))
    np.testing.assert_allclose(detector.raw, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["shift", "ties", "runs"])
def test_lists_filled_anew_are_the_lists_kept(kind: str) -> None:
    rows = rows_of(kind, 900, 3, 19)
    going = LocalOutlierFactor(n_neighbors=6, window_size=50, columns=3)
    for at in range(0, 900, 90):
        fresh = LocalOutlierFactor(n_neighbors=6, window_size=50, columns=3)
        fresh.restore(going.snapshot())
        part = rows[at : at + 90]
        assert fresh.feed(part).tobytes() == going.feed(part).tobytes()


def test_a_state_of_other_parameters_is_refused() -> None:
    for name, one, other in (
        ("kswin", {"window_size": 100}, {"window_size": 80}),
        ("local_outlier_factor", {"window_size": 100}, {"window_size": 80}),
    ):
        columns = 2 if name != "kswin" else 1
        detector = registry.create(name, one, columns=columns)
        values = np.random.default_rng(0).normal(size=(300, columns))
        detector.score(values if columns > 1 else values[:, 0], np.arange(300))
        with pytest.raises(river_compiled.StateError):
            registry.create(name, other, columns=columns).restore(detector.snapshot())


def test_neither_needs_river_or_scipy_to_be_loaded() -> None:
    code = (
        "import sys, numpy as np; from detectors import registry as r;"
        "r.create('kswin').score(np.zeros(200), np.arange(200));"
        "r.create('local_outlier_factor').score(np.zeros((9, 1)), np.arange(9));"
        "sys.exit(any(m in sys.modules for m in ('river', 'scipy.stats')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
