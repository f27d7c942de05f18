"""Our detectors keep river's contract, and say what `Detector.score` says.

river feeds anomaly detectors its CreditCard data, which it downloads. Here they get a stream of the same columns and
length, drawn from a seed, so that the checks run without a network; the checks themselves are river's own.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
import random
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from river import anomaly, base, checks, compose

from detectors import registry, river_api
from detectors.params import ParameterError
from detectors.state import dumps

ROWS = (river_api.Outlier, river_api.HalfSpaceTrees)
VALUES = (river_api.Spike, river_api.Pattern, river_api.RobustZ)
DRIFTS = (river_api.Drift, river_api.Rate)
EVERY = (*ROWS, *VALUES, *DRIFTS)
FEATURES = ("a", "b", "c")


def learned(model: Any) -> list[bytes]:
    """Return all that was learned. Pickles of equal models may differ, by which of their texts are one object."""
    detectors = model._each.values() if isinstance(model, VALUES) else [model._detector]
    return [dumps(detector.snapshot()) for detector in detectors]


@functools.cache
def credit_card(n: int) -> list[tuple[dict[str, float], int]]:
    """Return n rows like the first of river's CreditCard: 30 features, and 1 where that has its first frauds."""
    rng = np.random.default_rng(17)
    values = rng.normal(size=(n, 28)) * np.linspace(2.0, 0.3, 28)
    odd = np.zeros(n, dtype=bool)
    odd[[at for at in (541, 623, 4920, 6108, 6329) if at < n]] = True
    values[odd, :10] += rng.normal(0.0, 6.0, size=(int(odd.sum()), 10))
    amounts, seconds = rng.lognormal(3.0, 1.5, n), np.cumsum(rng.poisson(0.6, n))
    names = ["Time", *(f"V{k}" for k in range(1, 29)), "Amount"]
    table = np.column_stack([seconds, values, amounts]).tolist()
    return [(dict(zip(names, row, strict=True)), int(label)) for row, label in zip(table, odd, strict=True)]


def datasets(model: Any, scale: int = 1) -> Iterator[list[tuple[dict[str, float], int]]]:
    if isinstance(model, base.AnomalyDetector):
        yield credit_card(1000 * scale)


def checks_of(kind: Callable[[], Any]) -> list[Callable[[Any], None]]:
    with mock.patch.object(checks, "_yield_datasets", datasets):
        return list(checks.yield_checks(kind()))


def of_river() -> Iterator[Any]:
    """Give every check that river has for every estimator of ours."""
    for kind in EVERY:
        # Tags are of river's estimators, which its drift detectors are not: its own fail that check as well.
        skipped = {"check_tags"} if kind in DRIFTS else set()
        for check in checks_of(kind):
            if check.__name__ not in skipped:
                yield pytest.param(kind, check, id=f"{kind.__name__}-{check.__name__}")
    bounds = functools.partial(river_api.Limits, upper=1_000.0)
    for name, kind in (("Limits", bounds), ("Silence", river_api.Silence)):
        for check in checks_of(kind):
            # Which of the amounts are frauds no bound and no clock can tell; all else of an estimator is asked of them.
            if check.__name__ != "check_roc_auc":
                yield pytest.param(kind, check, id=f"{name}-{check.__name__}")


def roc_auc_score(labels: list[int], scores: list[float]) -> float:
    """Stand in for scikit-learn's, which river's check asks for, where that is not installed."""
    odd = np.array(labels, dtype=bool)
    one, other = np.array(scores)[odd][:, None], np.array(scores)[~odd][None, :]
    return float((one > other).mean() + 0.5 * (one == other).mean())


@pytest.mark.parametrize(("kind", "check"), list(of_river()))
def test_every_check_of_river_passes(
    kind: Callable[[], Any], check: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("sklearn") is None:
        metrics = types.SimpleNamespace(roc_auc_score=roc_auc_score)
        monkeypatch.setitem(sys.modules, "sklearn", types.SimpleNamespace(metrics=metrics))
    check(kind().clone())


@pytest.mark.parametrize("kind", [*ROWS, *VALUES])
def test_no_check_of_river_is_left_out_for_anomaly_detectors(kind: Callable[[], Any]) -> None:
    assert kind()._unit_test_skips() == set()
    names = {check.__name__ for check in checks_of(kind)}
    assert {"check_roc_auc", "check_emerging_features", "check_bounded_memory_growth"} <= names


@pytest.mark.parametrize("kind", [*EVERY, river_api.Silence])
def test_defaults_are_those_of_the_detector(kind: Any) -> None:
    struct = registry.spec(kind._NAME).params()
    for name, value in kind()._params().items():
        assert getattr(struct, name) == value
    assert set(kind()._params()) == set(struct.__struct_fields__)


def rows(n: int = 900) -> list[dict[str, float]]:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(n, 3)) * np.array([1.0, 10.0, 0.1])
    values[n - 50] = 30.0
    values[n - 100, 1] = -200.0
    return [dict(zip(FEATURES, row, strict=True)) for row in values.tolist()]


@pytest.mark.parametrize("kind", ROWS)
def test_rows_score_as_the_detector_scores_them(kind: Any) -> None:
    model, data = kind(seed=5), rows()
    scores = []
    for x in data:
        scores.append(model.score_one(x))
        model.learn_one(x)
    array = np.array([[x[name] for name in FEATURES] for x in data])
    expected = registry.create(kind._NAME, columns=3, seed=5).score(array, np.arange(len(data)))
    assert np.nan_to_num(expected, nan=0.0).tolist() == scores
    assert max(scores) >= 1.0


@pytest.mark.parametrize("kind", VALUES)
def test_values_score_as_the_detector_scores_them(kind: Any) -> None:
    model, data = kind(), [{"a": x["a"]} for x in rows()]
    scores = []
    for x in data:
        scores.append(model.score_one(x))
        model.learn_one(x)
    array = np.array([x["a"] for x in data])
    times = np.arange(len(data), dtype=np.int64) * 60_000_000
    expected = registry.create(kind._NAME).score(array, times)
    assert np.nan_to_num(expected, nan=0.0).tolist() == scores
    assert max(scores) >= 1.0


@pytest.mark.parametrize("kind", VALUES)
def test_of_many_features_the_largest_score_counts(kind: Any) -> None:
    data = rows()
    together, each = kind(), {name: kind() for name in FEATURES}
    for x in data[:850]:
        together.learn_one(x)
        for name in FEATURES:
            each[name].learn_one({name: x[name]})
    for x in data[850:]:
        assert together.score_one(x) == max(each[name].score_one({name: x[name]}) for name in FEATURES)


@pytest.mark.parametrize("kind", [*ROWS, *VALUES])
@pytest.mark.parametrize("learned", [0, 1, 40, 600])
def test_scoring_changes_nothing_not_even_when_it_fails(kind: Any, learned: int) -> None:
    model, data = kind(), rows()
    for x in data[:learned]:
        model.learn_one(x)
    before = pickle.dumps(model)
    scores = [model.score_one(data[700]) for _ in range(3)]
    assert len(set(scores)) == 1
    if learned:
        with pytest.raises(ValueError, match="finite"):
            model.score_one({"a": float("nan"), "b": 1.0, "c": 1.0})
        with pytest.raises(ValueError, match="finite"):
            model.learn_one({"a": 0.0, "b": 1.0, "c": float("inf")})
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("kind", [*ROWS, *VALUES])
@pytest.mark.parametrize("again", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy, copy.copy])
def test_a_copy_goes_on_to_the_bit_and_by_itself(kind: Any, again: Callable[[Any], Any]) -> None:
    model, data = kind(), rows()
    for x in data[:500]:
        model.learn_one(x)
    other = again(model)
    for x in data[500:700]:
        other.learn_one(x)  # alone first: nothing is shared
    for x in data[500:700]:
        model.learn_one(x)
    for x in data[700:]:
        assert other.score_one(x) == model.score_one(x)
        other.learn_one(x)
        model.learn_one(x)
    assert learned(other) == learned(model)


def test_a_missing_feature_is_a_usual_one_and_a_new_one_is_ignored() -> None:
    model, data = river_api.Outlier(), rows()
    for x in data[:800]:
        model.learn_one(x)
    assert model.score_one({"a": 0.0, "new": 1e9}) < 1.0
    assert model.score_one({"b": 500.0}) >= 1.0
    model.learn_one({"new": 1e9})
    model.learn_one({})
    assert model.score_one({}) < 1.0


def test_names_of_several_types_and_no_names_are_taken() -> None:
    model = river_api.Outlier()
    model.learn_one({})
    assert model.score_one({"a": 1.0}) == 0.0
    model.learn_one({"a": 1.0, 3: 2, "b": True})
    assert model.score_one({3: 1, "a": 2.0}) == 0.0


def test_in_a_pipeline_with_a_filter_odd_rows_are_not_learned() -> None:
    model = compose.Select("a") | anomaly.ThresholdFilter(river_api.Spike(), threshold=1.0)
    for i in range(100):
        model.learn_one({"a": float(i % 5), "other": "text"})
    before = pickle.dumps(model)
    model.learn_one({"a": 1000.0, "other": "text"})
    assert pickle.dumps(model) == before


def arrivals(n: int = 600) -> list[dict[str, float]]:
    """Return rows whose clock, in seconds, goes on at random and now and then back."""
    rng = np.random.default_rng(11)
    times = 1.7e9 + np.cumsum(rng.exponential(2.0, n))
    times[50::70] -= 30.0
    return [{"size": float(i), "time": time} for i, time in enumerate(times.tolist())]


def test_a_silence_scores_as_the_detector_scores_the_arrival_that_ends_it() -> None:
    model, data = river_api.Silence(), arrivals()
    data[-1]["time"] += 3_600.0
    scores = []
    for x in data:
        scores.append(model.score_one(x))
        model.learn_one(x)
    times = np.array([round(x["time"] * 1e6) for x in data], dtype=np.int64)
    expected = registry.create("silence").score(np.zeros(len(data)), times)
    assert np.nan_to_num(expected, nan=0.0).tolist() == scores
    assert scores[-1] >= 1.0 > max(scores[:-1])


def test_the_longer_the_silence_the_higher_the_score_with_nothing_learned() -> None:
    model = river_api.Silence(timeout_s=60.0)
    assert model.score_one({"time": 5.0}) == 0.0
    model.learn_one({"time": 100.0})
    before = pickle.dumps(model)
    assert [model.score_one({"time": at}) for at in (100.0, 130.0, 160.0, 220.0, 90.0)] == [0.0, 0.5, 1.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="finite"):
        model.score_one({"time": float("nan")})
    with pytest.raises(ValueError, match="finite"):
        model.learn_one({"time": float("inf")})
    assert pickle.dumps(model) == before


def test_a_time_that_goes_back_counts_as_the_latest_known() -> None:
    model = river_api.Silence(timeout_s=60.0)
    for time in (100.0, 40.0):
        model.learn_one({"time": time})
    assert model.score_one({"time": 130.0}) == 0.5


def test_the_clock_of_a_silence_is_time_or_else_the_first_by_name_and_stays_so() -> None:
    model = river_api.Silence(timeout_s=60.0)
    model.learn_one({})
    model.learn_one({"z": 5.0, "b": 100.0})
    assert model.score_one({"b": 130.0, "a": 9e9, "time": 9e9}) == 0.5
    assert model.score_one({"a": 9e9}) == 0.0
    model.learn_one({"a": 9e9})
    assert model.score_one({"b": 130.0}) == 0.5
    for far in (1e300, -1e300, 1e18):
        model.learn_one({"b": far})
        assert model.score_one({"b": 1e300}) >= 0.0


@pytest.mark.parametrize("again", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy, copy.copy])
def test_a_copy_of_a_silence_goes_on_to_the_bit_and_by_itself(again: Callable[[Any], Any]) -> None:
    model, data = river_api.Silence(), arrivals()
    for x in data[:300]:
        model.learn_one(x)
    other = again(model)
    for x in data[300:]:
        other.learn_one(x)  # alone first: nothing is shared
    for x in data[300:]:
        model.learn_one(x)
    late = {"time": data[-1]["time"] + 100.0}
    assert other.score_one(late) == model.score_one(late) > 0.0
    assert learned(other) == learned(model)
    assert learned(model.clone()) == learned(river_api.Silence())


@pytest.mark.parametrize("kind", DRIFTS)
def test_a_drift_is_found_once_and_then_anew(kind: Any) -> None:
    rng = random.Random(7)
    levels = [0.05] * 3000 + [0.5] * 3000 + [0.05] * 2000
    model = kind()
    assert isinstance(model, base.DriftDetector if kind is river_api.Drift else base.BinaryDriftDetector)
    found = []
    for i, level in enumerate(levels):
        model.update(level + 0.1 * rng.gauss(0, 1) if kind is river_api.Drift else rng.random() < level)
        if model.drift_detected:
            found.append(i)
    assert len(found) == 2
    assert 3000 <= found[0] < 3100
    assert 6000 <= found[1] < 6100


@pytest.mark.parametrize("kind", DRIFTS)
@pytest.mark.parametrize("again", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy, copy.copy])
def test_a_copy_of_a_drift_detector_goes_on_to_the_bit(kind: Any, again: Callable[[Any], Any]) -> None:
    rng = random.Random(9)
    bits = [rng.random() < (0.1 if i < 1500 else 0.6) for i in range(3000)]
    model = kind()
    for x in bits[:1400]:
        model.update(x)
    other = again(model)
    flags: dict[int, list[bool]] = {}
    for which, one in enumerate((other, model)):
        flags[which] = []
        for x in bits[1400:]:
            one.update(x)
            flags[which].append(one.drift_detected)
    assert flags[0] == flags[1]
    assert any(flags[0])
    assert learned(other) == learned(model)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (river_api.Outlier, {"half_life": 1}),
        (river_api.HalfSpaceTrees, {"height": 0}),
        (river_api.Spike, {"direction": "sideways"}),
        (river_api.Pattern, {"every_s": 0.0}),
        (river_api.RobustZ, {"sensitivity": "very"}),
        (river_api.Drift, {"reference": 3}),
        (river_api.Rate, {"limit": 1.0}),
        (river_api.Silence, {"factor": 0.5}),
    ],
)
def test_wrong_parameters_are_refused_at_once(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        kind(**wrong)


def test_what_is_no_value_is_refused_by_drift_detectors() -> None:
    with pytest.raises(ValueError, match="finite"):
        river_api.Drift().update(float("nan"))
    with pytest.raises(ValueError, match="0 or 1"):
        river_api.Rate().update(0.3)  # type: ignore[arg-type]


def test_naming_detectors_does_not_load_river() -> None:
    code = "import sys; from detectors import registry; registry.create('limits', {'upper': 1.0}); "
    code += "sys.exit('river' in sys.modules or 'detectors.river_api' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
