from __future__ import annotations

import importlib
import random

import numpy as np
import pytest

from detectors import registry, river_adapter
from detectors.state import dumps

RNG = np.random.default_rng(0)
VALUES = np.r_[RNG.normal(0.0, 1.0, 1500), RNG.normal(4.0, 1.0, 1500)]
BITS = (np.r_[RNG.random(1500) < 0.05, RNG.random(1500) < 0.5, RNG.random(500) < 0.02]).astype(float)
CLASSES = {
    "adwin": "river.drift:ADWIN",
    "kswin": "river.drift:KSWIN",
    "page_hinkley": "river.drift:PageHinkley",
    "ddm": "river.drift.binary:DDM",
    "eddm": "river.drift.binary:EDDM",
    "fhddm": "river.drift.binary:FHDDM",
    "hddm_a": "river.drift.binary:HDDMA",
    "hddm_w": "river.drift.binary:HDDMW",
}
SCALED = ("adwin", "page_hinkley")
VALUED = ("adwin", "kswin", "page_hinkley", "gaussian_scorer", "standard_absolute_deviation")
ROWED = ("loda", "one_class_svm", "local_outlier_factor", "half_space_trees")


@pytest.mark.parametrize("name", CLASSES)
def test_drifts_are_found_where_river_finds_them(name: str) -> None:
    module, _, attribute = CLASSES[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    theirs = kind(seed=4) if name == "kswin" else kind()
    values = BITS if registry.spec(name).kind == "boolean" else VALUES
    found = []
    for i, x in enumerate(values.tolist()):
        theirs.update(x)
        if theirs.drift_detected:
            found.append(i)
    as_they_are = {"scaled": False} if name in SCALED else {}
    detector = registry.create(name, as_they_are, seed=4)
    scores = detector.score(values, np.arange(len(values)))
    assert np.flatnonzero(scores >= 1).tolist() == found
    assert found


@pytest.mark.parametrize("name", ["gaussian_scorer", "standard_absolute_deviation"])
def test_a_value_far_out_alarms(name: str) -> None:
    values = np.r_[RNG.normal(10.0, 1.0, 2000), 30.0]
    assert registry.create(name).score(values, np.arange(2001))[-1] >= 1


@pytest.mark.parametrize("name", ["loda", "local_outlier_factor"])
def test_a_row_far_out_alarms(name: str) -> None:
    rows = np.r_[RNG.normal(10.0, 1.0, (700, 3)), [[40.0, -20.0, 40.0]]]
    assert registry.create(name, columns=3).score(rows, np.arange(701))[-1] >= 1


def test_values_that_are_not_bits_are_refused_by_a_detector_of_bits() -> None:
    with pytest.raises(ValueError, match="must be 0 or 1"):
        registry.create("ddm").score(np.array([0.0, 0.5]), np.arange(2))


def test_an_object_of_an_unknown_type_is_not_written() -> None:
    class Other:
        pass

    with pytest.raises(TypeError, match="not known to come back exactly"):
        river_adapter._pack({"x": Other()})


def test_only_classes_of_river_are_made_from_a_state() -> None:
    for name in ("os:system", "river.drift:nothing", "random:Random", "river.drift.adwin:AdaptiveWindowing2"):
        with pytest.raises(river_adapter.StateError):
            river_adapter._unpack(["river", name, []], None)


def test_a_generator_comes_back_in_the_middle_of_its_sequence() -> None:
    generator = random.Random(3)
    generator.gauss(0.0, 1.0)
    back = river_adapter._unpack(river_adapter._pack(generator), None)
    assert [back.random(), back.gauss(0, 1)] == [generator.random(), generator.gauss(0, 1)]


def test_standardising_follows_its_definition() -> None:
    rows = RNG.normal(5.0, 3.0, (300, 2))
    out = np.empty_like(rows)
    river_adapter.standardise(rows, np.zeros((3, 2)), out)
    for i in range(2, 300):
        expected = (rows[i] - rows[:i].mean(axis=0)) / rows[:i].std(axis=0)
        np.testing.assert_allclose(out[i], np.clip(expected, -30, 30), rtol=1e-9, atol=1e-12)


def test_two_detectors_made_alike_have_the_same_state() -> None:
    for name in river_adapter.ENTRIES:
        columns = 2 if registry.spec(name).kind == "vector" else 1
        one, other = (registry.create(name, columns=columns, seed=5) for _ in range(2))
        assert dumps(one.snapshot()) == dumps(other.snapshot())


@pytest.mark.parametrize("unit", [1e-9, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("level", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("name", VALUED)
def test_a_constant_and_then_a_jump_alarms_whatever_the_unit(name: str, level: float, unit: float) -> None:
    values = np.full(1400, level * unit)
    values[1000:] += unit
    over = np.flatnonzero(registry.create(name).score(values, np.arange(1400)) >= 1)
    assert len(over)
    assert 1000 <= over[0] < 1100


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("name", ROWED)
def test_rows_of_constants_and_then_a_jump_alarm_whatever_the_unit(name: str, unit: float) -> None:
    rows = np.tile([1.0, 2.0, 3.0], (2100, 1)) * unit
    rows[2000:] += unit
    over = np.flatnonzero(registry.create(name, columns=3).score(rows, np.arange(2100)) >= 1)
    assert len(over)
    assert 2000 <= over[0] < 2100


@pytest.mark.parametrize("name", SCALED)
def test_a_drift_is_found_at_the_same_values_whatever_the_unit_and_none_where_there_is_none(name: str) -> None:
    noise = np.random.default_rng(1).normal(size=6000)
    quiet, moved = 10.0 + noise, 10.0 + noise + 2.0 * (np.arange(6000) >= 3000)
    found = set()
    for unit in (2.0**-30, 1.0, 2.0**20):  # exact in binary
        assert not (registry.create(name).score(quiet * unit, np.arange(6000)) >= 1).any()
        found.add(tuple(np.flatnonzero(registry.create(name).score(moved * unit, np.arange(6000)) >= 1).tolist()))
    assert len(found) == 1
    (places,) = found
    assert len(places) == 1
    assert 3000 <= places[0] < 3200


def test_who_sets_a_threshold_of_page_hinkley_means_it_in_the_unit_of_the_value() -> None:
    kind = importlib.import_module("river.drift").PageHinkley(threshold=20.0)
    found = []
    for i, x in enumerate(VALUES.tolist()):
        kind.update(x)
        if kind.drift_detected:
            found.append(i)
    scores = registry.create("page_hinkley", {"threshold": 20.0}).score(VALUES, np.arange(len(VALUES)))
    assert np.flatnonzero(scores >= 1).tolist() == found


@pytest.mark.parametrize("name", SCALED)
def test_the_scale_is_cut_and_restored_with_the_rest_and_a_state_of_before_goes_on_unscaled(name: str) -> None:
    whole = registry.create(name)
    scores, parts = whole.score(VALUES, np.arange(3000)), []
    detector = registry.create(name)
    for i in range(0, 3000, 7):
        parts.append(detector.score(VALUES[i : i + 7], np.arange(3000)[i : i + 7]))
        state = detector.snapshot()
        detector = registry.create(name)
        detector.restore(state)
    np.testing.assert_array_equal(np.concatenate(parts), scores)
    plain = registry.create(name, {"scaled": False})
    plain.score(VALUES[:1000], np.arange(1000))
    went_on = registry.create(name)
    went_on.restore(plain.snapshot())
    theirs = plain.score(VALUES[1000:1550], np.arange(550))
    np.testing.assert_array_equal(went_on.score(VALUES[1000:1550], np.arange(550))[:500], theirs[:500])


def test_what_jitters_about_a_constant_by_less_than_a_millionth_is_no_anomaly() -> None:
    values = np.full(2000, 5.0)
    values[1500:] += 1e-8
    assert not (registry.create("gaussian_scorer").score(values, np.arange(2000)) >= 1).any()
